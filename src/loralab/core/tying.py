"""Modules that share the input embedding's weight, such as a tied output head."""

from collections.abc import Mapping, Sequence
from typing import final

from torch import Tensor, nn

from loralab.core.config import LoraConfig
from loralab.core.layers import Activation, LoraLayer
from loralab.core.layers.linear import LinearLike
from loralab.core.targets import original
from loralab.errors import ConfigError

__all__ = ["TiedLayer", "embedding_path", "tied_paths"]


def embedding_path(model: nn.Module, modules: Mapping[str, nn.Module]) -> str | None:
    """Return where the input embedding stands, None if the model does not say which one it is."""
    finder = getattr(model, "get_input_embeddings", None)
    if not callable(finder):
        return next((p for p in modules if p.rpartition(".")[2] == "embed_tokens"), None)
    embedding = original(finder())
    return next((path for path, module in modules.items() if module is embedding), None)


def tied_paths(modules: Mapping[str, nn.Module], source: str) -> list[str]:
    """Return the paths of the other modules whose weight is that of the module at `source`."""
    weight = getattr(modules[source], "weight", None)
    if weight is None:
        return []
    return [p for p, module in modules.items() if p != source and getattr(module, "weight", None) is weight]


@final
class TiedLayer(LinearLike):
    """An output head whose adapter is that of its embedding: W + scaling * A^T B^T, with E's own A and B.

    The factors are views, not parameters, so one optimizer step moves both. (PEFT 0.21.2 gives the head
    parameters of its own in the same memory, and the optimizer steps twice.)
    """

    def __init__(self, base_layer: nn.Module, activation: Activation, source: LoraLayer) -> None:
        super().__init__(base_layer, activation)
        self._source = (source,)  # in a tuple: no child of this module

    @property
    def source(self) -> LoraLayer:
        """The embedding's layer."""
        return self._source[0]

    def add_adapter(
        self, name: str, path: str, config: LoraConfig, tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        if config.use_dora or config.lora_bias:
            raise ConfigError("ensure_weight_tying goes with plain LoRA: leave out use_dora and lora_bias.")
        self.r[name] = config.rank_of(self.source.path)
        self.scale_adapter(name, self.source.path, config)
        self.lora_dropout[name] = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        self.lora_dropout[name].train(self.training)
        self.variants[name] = config.variant

    def scale_adapter(self, name: str, path: str, config: LoraConfig) -> None:
        super().scale_adapter(name, self.source.path, config)

    def expected(self, path: str, config: LoraConfig) -> dict[str, tuple[int, ...]]:
        return super().expected(self.source.path, config)

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        a_RV, b_DR = self.source.factors(name)
        return b_DR.t(), a_RV.t()

    def train_adapter(self, name: str, trains: bool) -> None:
        """The embedding's layer says whether its factors get gradients."""

    def make_room(self, name: str, rank: int | None) -> None:
        """Take the rank that the embedding's layer pads the factors to."""
        self.r[name] = self.r[name] if rank is None else rank
        super().make_room(name, None)

    def silence(self, name: str) -> None:
        """The embedding's layer says whether there is an adapter."""

    def copy_values(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """The embedding's layer takes the values."""

    def install(self, names: Sequence[str], merged: dict[str, nn.Parameter]) -> None:
        """Show the embedding's merged weight, which is this one's too, so that the two stay tied."""
        theirs = self.source._merged.get(self.source.weight_name)
        own = merged if theirs is None else merged | {self.weight_name: theirs}
        super().install(names, own)
