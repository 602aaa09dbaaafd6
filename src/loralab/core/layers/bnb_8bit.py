"""LoRA over bitsandbytes' `Linear8bitLt`, LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339)."""

from typing import Any, final

import torch
from torch import Tensor, nn

from loralab.core.layers.quantized import Bnb8bitBackend, QuantizedLinear, is_of

LINEAR = True


def matches(module: nn.Module) -> bool:
    """Known by its name, so that nothing is imported for it."""
    return is_of(module, "bitsandbytes", "Linear8bitLt")


@final
class Layer(QuantizedLinear):
    """One scale (`SCB`) for each output's row.

    bitsandbytes moves the scales from the weight into the layer's state at the first use. So that every
    weight has its own with it, they go back before another weight takes the place.
    """

    peft_name = "Linear8bitLt"
    quantization_backend = Bnb8bitBackend()

    def dense(self, weight: Any) -> Tensor:
        if weight.dtype != torch.int8:  # Not quantized before it is moved, or never.
            return super().dense(weight)
        scales_O = self._linear().state.SCB if weight.SCB is None else weight.SCB
        numbers: Tensor = weight.data.float()
        return numbers.mul_(scales_O.to(weight.device)[:, None] / 127)

    def stored(self, weight: Tensor) -> nn.Parameter:
        original: Any = self.original_weight
        dtype = torch.float16 if original.dtype == torch.int8 else original.dtype
        new: nn.Parameter = type(original)(
            weight.to(dtype).contiguous(), requires_grad=False, has_fp16_weights=original.has_fp16_weights
        )
        if original.dtype != torch.int8:
            return new
        # Only one that comes from the CPU is quantized on its way.
        return new.cpu().to(weight.device)  # type: ignore[return-value]

    def _put(self, key: str, value: nn.Parameter) -> None:
        if key == "weight":
            self._give_scales_back()
        super()._put(key, value)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._give_scales_back()
        super()._apply(fn, recurse)
        weight = self._linear().weight
        if weight.SCB is not None:
            weight.CB, weight.SCB = weight.data, weight.SCB.to(weight.device)
        return self

    def _give_scales_back(self) -> None:
        weight, state = self._linear().weight, self._linear().state
        if weight.dtype == torch.int8 and weight.SCB is None:
            weight.CB, weight.SCB = weight.data, state.SCB
        state.reset_grads()

    def _linear(self) -> Any:
        return self.base_layer
