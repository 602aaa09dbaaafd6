"""The base's own biases, trained by at most one adapter of a model (`bias`)."""

from collections.abc import Callable, Collection, Mapping

from torch import Tensor, nn

from loralab.core.config import LoraConfig
from loralab.core.layers import LoraLayer

__all__ = ["Biases", "biases_of"]


def biases_of(
    config: LoraConfig,
    layers: Mapping[str, LoraLayer],
    modules: Callable[[], Mapping[str, nn.Module]],
    saved: Mapping[str, nn.Module],
) -> dict[str, nn.Parameter]:
    """Return the biases that an adapter of that config trains, by their keys in a file.

    `modules` returns the base's modules by path; those in `saved` are trained in full elsewhere.
    """
    if config.bias == "none":
        return {}
    only = {
        f"{path}.base_layer.{layer.bias_name}": layer.bias
        for path, layer in layers.items()
        if layer.bias_name == "bias" and layer.bias is not None  # PEFT knows no other names
    }
    if config.bias == "lora_only":
        return only
    adapted = {id(layer.holder) for layer in layers.values() if layer.bias_name}
    others = {
        f"{path}.{key}": parameter
        for path, module in modules().items()
        if id(module) not in adapted and path not in saved
        for key, parameter in module.named_parameters(recurse=False)
        if key == "bias"
    }
    return only | others


class Biases:
    """Values of trained biases: an adapter's stand in the model while it runs, else the base's do."""

    def __init__(self) -> None:
        self._parameters: dict[str, dict[str, nn.Parameter]] = {}
        self._aside: dict[str, Tensor] = {}
        self._shown: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._parameters

    def start(self, name: str, parameters: dict[str, nn.Parameter]) -> None:
        """Let the adapter `name` train these; it starts from the base's values, and is not shown yet."""
        if parameters:
            self._parameters[name] = parameters
            self._aside |= {key: bias.detach().clone() for key, bias in parameters.items()}

    def train(self, name: str, trains: bool) -> None:
        """Set whether an adapter's biases get gradients."""
        for bias in self._parameters.get(name, {}).values():
            bias.requires_grad_(trains)

    def show(self, names: Collection[str]) -> None:
        """Let the values of these adapters stand in the model, and the base's for all others."""
        for name in self._parameters:
            if (name in names) != (name in self._shown):
                self._swap(name)
        self._shown = {name for name in self._parameters if name in names}

    def forget(self, name: str) -> None:
        """Give the base its own biases back, frozen."""
        if name not in self._parameters:
            return
        self.show(self._shown - {name})
        for key, bias in self._parameters.pop(name).items():
            bias.requires_grad_(False)
            del self._aside[key]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return an adapter's values by their keys in a file."""
        parameters = self._parameters.get(name, {})
        shown = name in self._shown
        return {key: bias if shown else self._aside[key] for key, bias in parameters.items()}

    def _swap(self, name: str) -> None:
        swapped: dict[int, Tensor] = {}  # one tensor may stand under several names
        for key, bias in self._parameters[name].items():
            if id(bias) not in swapped:
                bias.data, swapped[id(bias)] = self._aside[key].to(bias), bias.data
            self._aside[key] = swapped[id(bias)]
