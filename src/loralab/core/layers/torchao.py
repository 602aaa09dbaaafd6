"""LoRA over `torch.nn.Linear` whose weight torchao has made one of its own tensors."""

from typing import Any, final

import torch
from torch import Tensor, nn

from loralab.core.layers.quantized import QuantizedLinear, TorchaoBackend, library
from loralab.errors import AdapterError

LINEAR = True


def matches(module: nn.Module) -> bool:
    """torchao leaves the class as it is; the weight's tells."""
    return isinstance(module, nn.Linear) and type(module.weight).__module__.startswith("torchao.")


@final
class Layer(QuantizedLinear):
    """int8, intx and float8, the weight alone or the input with it.

    Where torchao quantizes the input, it has no gradient for it, and what lies below would not train. So the
    gradient is that of the product with the numbers the weight stands for, as bitsandbytes has it.
    """

    peft_name = "TorchaoLoraLinear"
    quantization_backend = TorchaoBackend()

    def _base(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        known = type(self.weight).__name__ in _QUANTIZE
        if not (known and x.requires_grad and torch.is_grad_enabled()):
            return super()._base(x, *args, **kwargs)
        output: Tensor = _Straight.apply(x, self.bias, self)  # type: ignore[no-untyped-call]
        return output

    def dense(self, weight: Any) -> Tensor:
        try:
            numbers: Tensor = weight.detach().dequantize()
        except NotImplementedError:
            raise AdapterError(
                f"a weight of torchao's {type(weight).__name__} cannot be had as numbers, so nothing can be "
                "merged into it or be initialised from it; a plain adapter runs over it unmerged."
            ) from None
        return numbers

    def stored(self, weight: Tensor) -> nn.Parameter:
        original = self.original_weight
        kind = type(original).__name__
        if kind not in _QUANTIZE:
            raise AdapterError(
                f"a weight cannot be put back into torchao's {kind}; "
                f"merging is there for {', '.join(_QUANTIZE)}."
            )
        tensor = _QUANTIZE[kind](original, weight.to(original.dtype).contiguous())
        return nn.Parameter(tensor, requires_grad=False)


class _Straight(torch.autograd.Function):
    """The base's output forward; backward, the gradient of x W^T + bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: Layer) -> Tensor:
        ctx.layer, ctx.weight = layer, layer.weight
        output: Tensor = layer.base_layer(x)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need_x, need_bias, _ = ctx.needs_input_grad
        grad_x = grad @ ctx.layer.dense(ctx.weight).to(grad.dtype) if need_x else None
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if need_bias else None
        return grad_x, grad_bias, None


def _blocks(original: Any) -> Any:
    """Return the granularity in which a weight [O, I] has its scales."""
    granularity = library("torchao").quantization
    rows, columns = original.block_size
    if [rows, columns] == list(original.shape):
        return granularity.PerTensor()
    return granularity.PerRow() if columns == original.shape[1] else granularity.PerGroup(columns)


def _int8(original: Any, weight: Tensor) -> Tensor:
    if original.act_pre_scale is not None:
        raise AdapterError(
            "a torchao weight whose input is scaled before (SmoothQuant) cannot be merged into."
        )
    quantized: Tensor = type(original).from_hp(
        weight,
        granularity=_blocks(original),
        act_quant_kwargs=original.act_quant_kwargs,
        act_quant_scale=original.act_quant_scale,
        act_quant_zero_point=original.act_quant_zero_point,
        reduce_range=original.reduce_range,
    )
    return quantized


def _intx(original: Any, weight: Tensor) -> Tensor:
    mapping = library("torchao").quantization.MappingType
    quantized: Tensor = type(original).from_hp(
        weight,
        original.block_size,
        original.target_dtype,
        mapping_type=mapping.ASYMMETRIC if original.zero_point.any() else mapping.SYMMETRIC,
        activation_quantization=original.activation_quantization,
    )
    return quantized


def _float8(original: Any, weight: Tensor) -> Tensor:
    quantized: Tensor = type(original).from_hp(
        weight,
        float8_dtype=original.qdata.dtype,
        granularity=_blocks(original),
        mm_config=original.mm_config,
        kernel_preference=original.kernel_preference,
        act_quant_kwargs=original.act_quant_kwargs,
    )
    return quantized


_QUANTIZE = {"Int8Tensor": _int8, "IntxUnpackedToInt8Tensor": _intx, "Float8Tensor": _float8}
