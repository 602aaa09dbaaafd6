"""LoRA over `torch.nn.MultiheadAttention`: its joint input projection [3 E, E], and its output projection."""

import warnings
from collections.abc import Mapping
from typing import Any, final

from torch import nn

from loralab.core.config import LoraConfig
from loralab.core.layers import out_proj
from loralab.core.layers.activation import Activation
from loralab.core.layers.base import LoraLayer
from loralab.core.layers.effective import EffectiveLayer
from loralab.errors import TargetError

LINEAR = False


def matches(module: nn.Module) -> bool:
    """Torch's own attention."""
    return isinstance(module, nn.MultiheadAttention)


@final
class Layer(EffectiveLayer):
    """Attention with W_in + scaling * B A for q, k and v together, B being [3 E, R], and an adapted W_out.

    The two have factors of their own. PEFT 0.21.2 adds the output projection's delta twice; here it counts
    once, as merging does.
    """

    weight_name = "in_proj_weight"
    bias_name = "in_proj_bias"
    noun = "projections"
    peft_name = "MultiheadAttention"
    refuses_dropout = False  # other layers of the model may have it

    def __init__(self, base_layer: nn.MultiheadAttention, activation: Activation) -> None:
        if base_layer.in_proj_weight is None:
            raise TargetError(
                "a MultiheadAttention whose keys or values have a width of their own keeps three weights; "
                "adapt them with target_parameters=['q_proj_weight', 'k_proj_weight', 'v_proj_weight']."
            )
        super().__init__(base_layer, activation)
        projection: nn.Module = base_layer.out_proj
        if not isinstance(projection, LoraLayer):
            projection = out_proj.Layer(projection, activation)
        self._out: tuple[LoraLayer] = (projection,)  # in a tuple: no child of this module

    def _check(self, name: str, config: LoraConfig) -> None:
        super()._check(name, config)
        if config.lora_dropout and not config.inference_mode:
            warnings.warn(
                f"lora_dropout={config.lora_dropout} does not reach {self.path!r}, whose weights are read, "
                "not called; exclude the module to be rid of this line.",
                stacklevel=2,
            )

    def parts(self, path: str) -> Mapping[str, LoraLayer]:
        (out,) = self._out
        out.path = self.path
        return {path: self, f"{path}.base_layer.out_proj": out}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        weights = {self.weight_name: self.effective_weight()}
        if self.bias is not None:
            weights[self.bias_name] = self._lowered(self.bias)
        return self.call(weights, args, kwargs)
