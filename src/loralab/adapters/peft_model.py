"""`PeftModel`: an adapted model under the names that PEFT's users know."""

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MethodType
from typing import Any

from torch import nn

from loralab.adapters.peft_format import read_adapter, write_adapter
from loralab.adapters.trainer import teach_trainer
from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig
from loralab.core.model import LoraModel
from loralab.core.status import LayerStatus, ModelStatus, layer_status, model_status
from loralab.errors import ConfigError

__all__ = [
    "PeftModel",
    "PeftModelForCausalLM",
    "PeftModelForFeatureExtraction",
    "PeftModelForQuestionAnswering",
    "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification",
    "PeftModelForTokenClassification",
    "get_peft_model",
]


def get_peft_model(model: nn.Module, peft_config: LoraConfig, adapter_name: str = "default") -> "PeftModel":
    """Return `model` with a new adapter attached to it. The model itself is changed in place.

    >>> from torch import nn
    >>> from loralab import LoraConfig, get_peft_model
    >>> base = nn.Sequential(nn.Linear(100, 500))
    >>> model = get_peft_model(base, LoraConfig(r=10, target_modules="all-linear"))
    >>> model.get_nb_trainable_parameters()
    (6000, 56500)

    Raises:
        TargetError: `target_modules` matches nothing, or an entry of a list matches nothing.
        ConfigError: the model has adapters already; use `add_adapter`.
    """
    if isinstance(model, PeftModel):
        raise ConfigError("the model has adapters already; use model.add_adapter(name, config) for one more.")
    return _class_for(peft_config)(model, peft_config, adapter_name)


class PeftModel(nn.Module):
    """A base model with named adapters. What it does not define itself, the base model answers.

    Subclasses say what the model is for; `get_peft_model` picks one by the config's `task_type`.

    It passes for an instance of its base model's class too, so that code which asks for a `PreTrainedModel`,
    as `transformers.Trainer` does, takes it.
    """

    task_type: str | None = None

    def __init__(
        self,
        model: nn.Module,
        peft_config: LoraConfig,
        adapter_name: str = "default",
        *,
        adapter: Adapter | None = None,
    ) -> None:
        """`adapter` gives the first adapter's tensors; without it they are initialised."""
        super().__init__()
        config = _with_base(peft_config, model)
        self.base_model = LoraModel(model, config, adapter_name, adapter)
        self._show_signature_of(model)
        if hasattr(model, "save_pretrained"):
            teach_trainer(PeftModel)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        modules = self.__dict__.get("_modules") or {}
        return type(modules["base_model"].model) if "base_model" in modules else type(self)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            return getattr(self.base_model, name)

    def __reduce__(self) -> Any:
        state = {name: value for name, value in self.__dict__.items() if name != "forward"}
        return _bare, (type(self),), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._show_signature_of(self.get_base_model())

    def _show_signature_of(self, model: nn.Module) -> None:
        """Give `forward` the base's signature: Trainer picks a data set's columns by it."""

        def forward(self: PeftModel, *args: Any, **kwargs: Any) -> Any:
            return PeftModel.forward(self, *args, **kwargs)

        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        shown = inspect.signature(model.forward)
        parameters = [
            p.replace(kind=p.KEYWORD_ONLY) if p.kind == p.POSITIONAL_ONLY else p
            for p in shown.parameters.values()
        ]
        forward.__signature__ = inspect.Signature([own, *parameters])  # type: ignore[attr-defined]
        self.forward = MethodType(forward, self)  # type: ignore[method-assign]

    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Return what the base model returns, the active adapters applied.

        `adapter_names` gives every row of the batch an adapter of its own, or "__base__" for none.
        """
        with self._rows(adapter_names):
            return self.base_model(*args, **kwargs)

    def generate(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Return what the base model generates, the active adapters (or each row's own) applied."""
        with self._rows(adapter_names):
            return self.get_base_model().generate(*args, **kwargs)  # type: ignore[operator]

    def _rows(self, names: Sequence[str] | None) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if names is None else self.base_model.rows(names)

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

    def add_adapter(self, adapter_name: str, peft_config: LoraConfig) -> None:
        """Attach one more adapter, freshly initialised. It is not made active."""
        self.base_model.attach(adapter_name, _with_base(peft_config, self.get_base_model()))
        self.base_model.set_adapter(self.active_adapters)

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Make these adapters, and no others, run."""
        self.base_model.set_adapter(adapter_name, inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter."""
        self.base_model.detach(adapter_name)

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

    def get_layer_status(self) -> list[LayerStatus]:
        """Return the status of every adapted layer."""
        return layer_status(self.base_model)

    def get_model_status(self) -> ModelStatus:
        """Return the status of the model as a whole."""
        return model_status(self.base_model)

    # files

    def save_pretrained(
        self,
        save_directory: str | Path,
        selected_adapters: Sequence[str] | None = None,
        *,
        is_main_process: bool = True,
        state_dict: Any = None,
        safe_serialization: bool = True,
    ) -> None:
        """Write adapters as PEFT does: "default" into the folder itself, others into folders of their names.

        `state_dict` is accepted because `transformers.Trainer` passes it, and not needed.

        Raises:
            ConfigError: `safe_serialization=False`; loralab writes no pickles.
            AdapterError: there is no such adapter.
        """
        if not safe_serialization:
            raise ConfigError(
                "safe_serialization=False would write a pickle; loralab writes safetensors only."
            )
        if not is_main_process:
            return
        names = list(self.peft_config) if selected_adapters is None else list(selected_adapters)
        for name in names:
            folder = Path(save_directory) if name == "default" else Path(save_directory) / name
            write_adapter(self.base_model.adapter(name), folder)

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: str | Path,
        adapter_name: str = "default",
        *,
        is_trainable: bool = False,
        allow_pickle: bool = False,
    ) -> "PeftModel":
        """Return `model` with the adapter in the folder `model_id` attached, in evaluation mode.

        Raises:
            AdapterError: the files cannot be read, or do not fit the model, which is then unchanged.
        """
        if isinstance(model, PeftModel):
            raise ConfigError("the model has adapters already; use model.load_adapter(folder, name).")
        adapter = _stored(model_id, is_trainable, allow_pickle)
        kind = _class_for(adapter.config) if cls is PeftModel else cls
        adapted = kind(model, adapter.config, adapter_name, adapter=adapter)
        return adapted if is_trainable else adapted.eval()

    def load_adapter(
        self,
        model_id: str | Path,
        adapter_name: str,
        is_trainable: bool = False,
        *,
        allow_pickle: bool = False,
    ) -> None:
        """Attach the adapter in the folder `model_id` beside the others; it is not made active.

        If there is one of that name already, it takes the values from the file and stays the same object
        for an optimizer.

        Raises:
            AdapterError: the files cannot be read, or do not fit the model, which is then unchanged.
        """
        adapter = _stored(model_id, is_trainable, allow_pickle)
        self.base_model.load(adapter_name, adapter)
        if not is_trainable:
            self.eval()

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


class PeftModelForCausalLM(PeftModel):
    """A model that continues text."""

    task_type = "CAUSAL_LM"


class PeftModelForSeq2SeqLM(PeftModel):
    """A model that turns one text (or sound) into another."""

    task_type = "SEQ_2_SEQ_LM"


class PeftModelForSequenceClassification(PeftModel):
    """A model that classifies texts; its classification head is trained in full."""

    task_type = "SEQ_CLS"


class PeftModelForTokenClassification(PeftModel):
    """A model that classifies tokens; its classification head is trained in full."""

    task_type = "TOKEN_CLS"


class PeftModelForQuestionAnswering(PeftModel):
    """A model that marks answers in a text; its head is trained in full."""

    task_type = "QUESTION_ANS"


class PeftModelForFeatureExtraction(PeftModel):
    """A model whose hidden states are what is wanted."""

    task_type = "FEATURE_EXTRACTION"


def _class_for(config: LoraConfig) -> type[PeftModel]:
    kinds = {kind.task_type: kind for kind in PeftModel.__subclasses__()}
    return kinds.get(config.task_type, PeftModel)


def _bare(kind: type[PeftModel]) -> PeftModel:
    """Return an empty model for pickle and deepcopy to fill; `__class__`, which they ask, is the base's."""
    return kind.__new__(kind)


def _with_base(config: LoraConfig, model: nn.Module) -> LoraConfig:
    """Return the config with the base model's name in it, unless it names one."""
    name = config.base_model_name_or_path or getattr(model, "name_or_path", None) or None
    return dataclasses.replace(config, base_model_name_or_path=name)


def _stored(folder: str | Path, is_trainable: bool, allow_pickle: bool) -> Adapter:
    adapter = read_adapter(folder, allow_pickle=allow_pickle)
    return dataclasses.replace(
        adapter, config=dataclasses.replace(adapter.config, inference_mode=not is_trainable)
    )
