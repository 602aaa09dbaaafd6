"""How strongly the adapters of one layer act."""

from torch import Tensor, nn

from loralab.core.config import LoraConfig
from loralab.core.layers.activation import Activation
from loralab.core.layers.mergeable import Mergeable

__all__ = ["Scaled"]


class Scaled(Mergeable):
    """A layer whose adapters have a rank, an alpha, and a scaling, which need not be what the two give."""

    def __init__(self, base_layer: nn.Module, activation: Activation) -> None:
        super().__init__(base_layer, activation)
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self._own_scaling: dict[str, float] = {}

    def scale_adapter(self, name: str, path: str, config: LoraConfig) -> None:
        """Take an adapter's alpha and scaling from `config`."""
        self.lora_alpha[name] = config.alpha_of(path)
        self._own_scaling[name] = config.scaling_of(path)
        self._rescale(name, self._own_scaling[name])

    def _rescale(self, name: str, scaling: float) -> None:
        """Set an adapter's scaling; one that is a tensor, for compiled code, stays the same tensor."""
        current = self.scaling.get(name)
        if isinstance(current, Tensor):
            current.fill_(float(scaling))
        else:
            self.scaling[name] = scaling

    def set_scale(self, adapter: str, scale: float) -> None:
        """Make the adapter's delta `scale` times what its alpha and rank alone give."""
        if adapter in self.r:
            self._rescale(adapter, scale * self._own_scaling[adapter])

    def scale_layer(self, scale: float) -> None:
        """Multiply the scale of the active adapters."""
        for name in self._activation.names:
            if name in self.r:
                self._rescale(name, self.scaling[name] * scale)

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the scale of the active adapters; without `scale`, back to what alpha and rank give."""
        for name in self._activation.names:
            if name in self.r:
                own = self._own_scaling[name]
                self._rescale(name, own if scale is None else self.scaling[name] / scale)
