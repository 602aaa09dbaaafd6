"""LoRA over bitsandbytes' `Linear4bit`: QLoRA (Dettmers et al. 2023, arXiv 2305.14314)."""

from typing import Any, final

from torch import Tensor, nn

from loralab.core.layers.activation import Activation
from loralab.core.layers.quantized import Bnb4bitBackend, QuantizedLinear, is_of, library

LINEAR = True


def matches(module: nn.Module) -> bool:
    """Known by its name, so that nothing is imported for it."""
    return is_of(module, "bitsandbytes", "Linear4bit")


@final
class Layer(QuantizedLinear):
    """NF4 or FP4 in blocks, with or without the scales quantized too.

    The base computes in training mode. In evaluation mode on some CPUs bitsandbytes repacks the weight in
    place: its scales lose bits, and no gradient passes through it any more.
    """

    peft_name = "Linear4bit"
    quantization_backend = Bnb4bitBackend()

    def __init__(self, base_layer: Any, activation: Activation) -> None:
        super().__init__(base_layer, activation)
        self._keep_plain()

    def _keep_plain(self) -> None:
        base: Any = self.base_layer
        if not base.training:
            base.training = True
        if getattr(base.weight.quant_state, "packing_format_for_cpu", False):
            base.state_dict()  # This undoes the repacking, in place.

    def _base(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self._keep_plain()
        return super()._base(x, *args, **kwargs)

    def dense(self, weight: Any) -> Tensor:
        self._keep_plain()
        if weight.quant_state is None:  # Not quantized before it is moved for the first time.
            return super().dense(weight)
        functional = library("bitsandbytes").functional
        numbers: Tensor = functional.dequantize_4bit(weight.data, weight.quant_state)
        return numbers

    def stored(self, weight: Tensor) -> nn.Parameter:
        original: Any = self.original_weight
        state = original.quant_state
        dtype = original.dtype if state is None else state.dtype
        new: nn.Parameter = type(original)(
            weight.to(dtype).contiguous(),
            requires_grad=False,
            blocksize=original.blocksize,
            compress_statistics=original.compress_statistics,
            quant_type=original.quant_type,
            quant_storage=original.quant_storage,
        )
        return new if state is None else new.to(weight.device)  # type: ignore[return-value]

    def _put(self, key: str, value: nn.Parameter) -> None:
        super()._put(key, value)
        if key == "weight":
            self.base_layer.quant_state = value.quant_state  # type: ignore[attr-defined]
