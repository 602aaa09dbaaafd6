"""A model with adapters: what runs, what trains, and in which state it is."""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from loralab.adapters import functional
from loralab.adapters.arguments import batch_size, check_rows
from loralab.adapters.kbit import let_gradients_in
from loralab.adapters.wrapper import Wrapper
from loralab.core.config import LoraConfig
from loralab.core.status import LayerStatus, ModelStatus

__all__ = ["AdaptedModel"]


class AdaptedModel(Wrapper):
    """A base model with named adapters, apart from their files."""

    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Return what the base model returns, the active adapters applied.

        `adapter_names` gives every row of the batch an adapter of its own, or "__base__" for none.

        Raises:
            AdapterError: not one name for each row, no such adapter, or one that cannot be mixed.
        """
        with self._rows(adapter_names, batch_size(args, kwargs)):
            return self.base_model(*args, **kwargs)

    def generate(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Return what the base model generates, the active adapters (or each row's own) applied.

        Beams and several sequences of a row run with the row's adapter.

        Raises:
            AdapterError: as for `forward`.
        """
        with self._rows(adapter_names, batch_size(args, kwargs) or 1):
            return self.get_base_model().generate(*args, **kwargs)  # type: ignore[operator]

    def _rows(self, names: Sequence[str] | None, rows: int | None) -> AbstractContextManager[None]:
        if names is None:
            return contextlib.nullcontext()
        check_rows(names, rows)
        return self.base_model.rows(names)

    def get_base_model(self) -> nn.Module:
        """Return the base model, with the LoRA layers still in it; see `unload` to take them out."""
        return self.base_model.model

    # adapters

    @property
    def peft_config(self) -> dict[str, LoraConfig]:
        """The configs by adapter name."""
        return self.base_model.peft_config

    @property
    def active_adapter(self) -> str | list[str]:
        """The name of the adapter that runs, or a list of several."""
        return self.base_model.active_adapter

    @property
    def active_adapters(self) -> list[str]:
        """The names of the adapters that run."""
        return self.base_model.active_adapters

    @property
    def active_peft_config(self) -> LoraConfig:
        """The config of the adapter that runs (of the first, if several do)."""
        return self.peft_config[self.active_adapters[0]]

    @property
    def has_active_enabled_adapter(self) -> bool:
        """Whether an adapter runs now."""
        return bool(self.active_adapters) and self.base_model.adapters_enabled

    @property
    def modules_to_save(self) -> set[str] | None:
        """The names of the modules that some adapter trains in full; None if there are none."""
        return {name for config in self.peft_config.values() for name in config.modules_to_save or ()} or None

    @property
    def base_model_torch_dtype(self) -> torch.dtype | None:
        """The base model's dtype, if it says one."""
        return getattr(self.get_base_model(), "dtype", None)

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Make these adapters, and no others, run."""
        self.base_model.set_adapter(adapter_name, inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter. If none runs then, the first that is left does, and a warning says so."""
        self.base_model.detach(adapter_name)
        functional.run_another(self.base_model, adapter_name)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Set whether adapters get gradients, active or not."""
        self.base_model.set_requires_grad(adapter_names, requires_grad)

    @contextlib.contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within the block the model computes what the base computes, merged or not; afterwards as before."""
        was_enabled = self.base_model.adapters_enabled
        self.base_model.disable_adapter_layers()
        try:
            yield
        finally:
            if was_enabled:
                self.base_model.enable_adapter_layers()

    def prepare_model_for_gradient_checkpointing(self, model: nn.Module) -> nn.Module:
        """Let the embeddings' output require a gradient, as reentrant checkpointing needs; return `model`."""
        let_gradients_in(model)
        return model

    def get_layer_status(self) -> list[LayerStatus]:
        """Return the status of every adapted layer."""
        return functional.get_layer_status(self)

    def get_model_status(self) -> ModelStatus:
        """Return the status of the model as a whole."""
        return functional.get_model_status(self)

    # numbers

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Return the numbers of trainable and of all parameters."""
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in self.parameters()]
        return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)

    def print_trainable_parameters(self) -> None:
        """Print the numbers of trainable and of all parameters and their share, as PEFT does."""
        trainable, total = self.get_nb_trainable_parameters()
        share = 100 * trainable / total
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}")
