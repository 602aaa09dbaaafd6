"""`LoraModel`: a base model with adapters attached: attach and detach, switch, merge and unmerge."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig
from loralab.core.init_config import check_sub_configs
from loralab.core.layers import BASE, Activation, LoraLayer
from loralab.core.merge import LayerMerge, MergeReport, Rounding, check_rounding
from loralab.core.parts import Parts
from loralab.core.peft_answers import (
    delete_adapter,
    set_requires_grad,
    supports_lora_conversion,
    targeted_module_names,
    targeted_parameter_names,
)
from loralab.core.saved import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from loralab.core.tokens import TrainableTokensWrapper
from loralab.core.weighted import add_weighted_adapter
from loralab.errors import AdapterError, ConfigError, did_you_mean

__all__ = ["LoraModel"]

_SCALE_FIELDS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")


class LoraModel(nn.Module):
    """A base model whose targeted modules are LoRA layers. The base model is changed in place.

    All its parameters are frozen; those of the adapters are trainable as long as they are active.

    Raises:
        TargetError: the config's targets match nothing, or an entry of a list matches nothing.
    """

    prefix = "lora_"

    def __init__(
        self,
        model: nn.Module,
        config: LoraConfig,
        adapter_name: str = "default",
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.peft_config: dict[str, LoraConfig] = {}
        self._activation = Activation()
        self._parts = Parts(model, self._activation)
        self.attach(adapter_name, config, adapter)
        self.set_adapter(adapter_name, inference_mode=config.inference_mode)

    @property
    def lora_layers(self) -> dict[str, LoraLayer]:
        """The LoRA layers by their place in files."""
        return self._parts.layers

    @property
    def wrappers(self) -> dict[str, AuxiliaryTrainingWrapper]:
        """What is trained otherwise than by factors, by path: modules in full, and tokens."""
        return self._parts.wrappers

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the base model returns, the active adapters applied."""
        return self.model(*args, **kwargs)

    # attach and detach

    def attach(self, name: str, config: LoraConfig, adapter: Adapter | None = None) -> None:
        """Attach a new adapter, with the tensors of `adapter` or freshly initialised. It is not made active.

        Nothing is changed when an error is raised.

        Raises:
            ConfigError: the name is taken or not usable, or a second adapter wants to train biases.
            TargetError: no module matches; or, for a fresh adapter, an entry of a list matches none.
            AdapterError: the tensors of `adapter` do not fit the model.
        """
        self._check_name(name, config)
        if adapter is None:
            check_sub_configs(config)
        first = not self.peft_config
        self.peft_config[name] = self._parts.attach(name, config, adapter, first=first)

    def detach(self, name: str) -> None:
        """Forget an adapter. When none is left the LoRA layers stay, doing what the base does; see `unload`.

        Raises:
            AdapterError: there is no such adapter.
        """
        self._known([name])
        self._parts.detach(name)
        del self.peft_config[name]
        self._activation.forget(name)

    def load(self, name: str, adapter: Adapter) -> None:
        """Attach `adapter` under `name`, or copy its values into the adapter that has that name already.

        Raises:
            AdapterError: the tensors do not fit the model; nothing has been changed.
        """
        if name not in self.peft_config:
            self.attach(name, adapter.config, adapter)
            return
        if name in self.merged_adapters:
            raise AdapterError(f"adapter {name!r} is merged; call unmerge_adapter() before new values come.")
        self._parts.copy(name, adapter)
        scale = {field: getattr(adapter.config, field) for field in _SCALE_FIELDS}
        self.peft_config[name] = dataclasses.replace(self.peft_config[name], **scale)

    def adapter(self, name: str) -> Adapter:
        """Return the adapter `name` as it is now; its tensors are the model's own, not copies.

        Raises:
            AdapterError: there is no such adapter.
        """
        self._known([name])
        return Adapter(self.peft_config[name], self._parts.tensors(name))

    add_weighted_adapter = add_weighted_adapter
    delete_adapter = delete_adapter
    set_requires_grad = set_requires_grad
    supports_lora_conversion = supports_lora_conversion
    targeted_module_names = property(targeted_module_names)
    targeted_parameter_names = property(targeted_parameter_names)

    def unload(self) -> nn.Module:
        """Return the base model as it was before the first adapter, merged weights undone.

        Where an active adapter goes with a base weight of its own, as after PiSSA, that weight stays, so that
        the two can be saved. `detach` the adapter first to have the old one back.
        """
        self.unmerge_adapter()
        for name in self.peft_config:
            self._parts.biases.forget(name)
        self._parts.undo_replication()
        self._parts.take_out({})
        self.peft_config = {}
        return self.model

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = True,
        adapter_names: str | Sequence[str] | None = None,
        *,
        rounding: Rounding = "nearest",
    ) -> nn.Module:
        """Return the base model with the adapters (by default the active ones) merged into its weights.

        With `rounding="float32"` the whole model is fp32. `progressbar` is accepted for PEFT's sake: a merge
        takes a second or two.

        Raises:
            AdapterError: a merged weight would not be finite; nothing has been changed.
        """
        self.merge_adapter(adapter_names, safe_merge, rounding=rounding)
        model = self.unload_merged()
        return model.float() if rounding == "float32" else model

    def unload_merged(self) -> nn.Module:
        """Return the base model with what is merged now left in its weights, and what is not gone."""
        untied = self._parts.untied()
        self._parts.settle_replication()
        merged = self.merged_adapters or self.active_adapters
        self._parts.biases.show(merged)
        shown = {id(w): w.copy_of(merged) for w in self._parts.of(ModulesToSaveWrapper)}
        self._parts.take_out(shown)
        self.peft_config = {}
        config = getattr(self.model, "config", None)
        if untied and getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False  # type: ignore[union-attr]
        return self.model

    # switch

    @property
    def active_adapters(self) -> list[str]:
        """The names of the adapters that run."""
        return list(self._activation.names)

    @property
    def active_adapter(self) -> str | list[str]:
        """The name of the adapter that runs, or a list of several."""
        return self._activation.active

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Make these adapters, and no others, run; their parameters become trainable unless told otherwise.

        Raises:
            AdapterError: there is no such adapter.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        self._known(names)
        self._check_together(names)
        for name in dict.fromkeys((*self._activation.names, *names)):
            self._parts.train(name, name in names and not inference_mode)
        self._activation.names = tuple(names)
        self._parts.follow()

    def _check_together(self, names: Sequence[str]) -> None:
        """Raise AdapterError if adapters cannot run at the same time."""
        for wrapper in self._parts.of(TrainableTokensWrapper):
            wrapper.token_adapter.check_disjoint(names)
        changers = [name for name in names if name in self._parts.changers()]
        if len(changers) > 1:
            raise AdapterError(
                f"{changers[0]!r} and {changers[1]!r} each go with a base weight of their own; only one "
                "of them can run at a time."
            )
        for path, part in self.wrappers.items():
            held = [name for name in names if name in part.adapters]
            if len(held) > 1 and isinstance(part, ModulesToSaveWrapper):
                raise AdapterError(
                    f"{held[0]!r} and {held[1]!r} both have a full copy of {path!r}; only one of them can "
                    "run at a time."
                )

    @property
    def adapters_enabled(self) -> bool:
        """Whether the active adapters run."""
        return self._activation.enabled

    def enable_adapter_layers(self) -> None:
        """Let the active adapters run again, merged weights included."""
        self._enable(True)

    def disable_adapter_layers(self) -> None:
        """Make the model compute what the base computes, merged weights included; nothing is lost."""
        self._enable(False)

    def _enable(self, enabled: bool) -> None:
        self._activation.enabled = enabled
        self._parts.follow()

    @contextlib.contextmanager
    def rows(self, names: Sequence[str], spans: Sequence[int] | None = None) -> Iterator[None]:
        """Within the block row i of a batch runs with the adapter names[i]; "__base__" with none.

        With `spans` the batch has one row, of which names[i] is for as many tokens as spans[i] says.

        Raises:
            AdapterError: there is no such adapter, or adapters are merged.
        """
        if isinstance(names, str) or not names:
            raise AdapterError(f"adapter_names is {names!r}; expected one name for each row of the batch.")
        self._known([name for name in names if name != BASE])
        if self.merged_adapters:
            raise AdapterError("a mixed batch needs the base's own weights; call unmerge_adapter() first.")
        for name in set(names) - {BASE}:
            if name in self._parts.biases or name in self._parts.changers():
                raise AdapterError(
                    f"adapter {name!r} goes with other biases or weights of the base, which all rows share; "
                    "it cannot be mixed."
                )
        if spans is not None and len(spans) != len(names):
            raise AdapterError(f"{len(spans)} spans for {len(names)} adapter_names; expected as many.")
        active = self._activation
        before = active.rows, active.spans
        active.rows, active.spans = tuple(names), None if spans is None else tuple(spans)
        self._parts.follow()
        try:
            yield
        finally:
            active.rows, active.spans = before
            self._parts.follow()

    # merge and unmerge

    @property
    def merged_adapters(self) -> list[str]:
        """The names of the adapters that are merged into the base weights."""
        return sorted({name for part in self._parts.mergeable().values() for name in part.merged_adapters})

    def merge_adapter(
        self,
        adapter_names: str | Sequence[str] | None = None,
        safe_merge: bool = True,
        *,
        rounding: Rounding = "nearest",
    ) -> MergeReport:
        """Merge these adapters (by default the active ones) into the base weights, beside earlier ones.

        The sum is made in fp32 from the original weights and rounded once, whatever was merged before, so
        neither order nor repetition matters. Results that are not finite are always refused; `safe_merge`
        is there for PEFT's sake. `rounding` says how a sum becomes bf16 or fp16: to the "nearest" number, up
        or down at random so that the mean is right ("stochastic"), or not at all ("float32").

        Raises:
            AdapterError: no such adapter, or a merged weight would not be finite; nothing is changed.
        """
        given = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        names = self.active_adapters if given is None else list(given)
        together = [*self.merged_adapters, *(n for n in names if n not in self.merged_adapters)]
        return self.swap_adapter(together, rounding=rounding)

    def unmerge_adapter(self) -> None:
        """Put the original weights back, bit for bit."""
        self.swap_adapter([])

    def swap_adapter(
        self, adapter_names: str | Sequence[str], *, rounding: Rounding = "nearest"
    ) -> MergeReport:
        """Make the base weights those of exactly these adapters merged, whatever is merged now.

        Raises:
            AdapterError: no such adapter, or a merged weight would not be finite; nothing is changed.
        """
        check_rounding(rounding)
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._known(names)
        parts = self._parts.mergeable().items()
        built = [(place, part, part.merged_weights(names, rounding)) for place, part in parts]
        for _, part, merged in built:
            part.install(names, merged.parameters)
        return MergeReport(
            {
                place: LayerMerge(float(merged.wanted), float(merged.missed))
                for place, _, merged in built
                if merged.wanted is not None and merged.missed is not None
            }
        )

    # inside

    def _known(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.peft_config:
                raise AdapterError(
                    f"there is no adapter {name!r}; loaded are {', '.join(self.peft_config) or 'none'}."
                    + did_you_mean(name, self.peft_config)
                )

    def _check_name(self, name: str, config: LoraConfig) -> None:
        if not isinstance(name, str) or not name or "." in name or name == BASE:
            raise ConfigError(f"adapter name {name!r}: expected a word without dots, and not '__base__'.")
        if any(hasattr(kind(), name) for kind in (nn.ModuleDict, nn.ParameterDict)):
            raise ConfigError(f"adapter name {name!r}: torch's modules have an attribute of that name.")
        if name in self.peft_config:
            raise ConfigError(
                f"there is an adapter {name!r} already; choose another name or delete it first."
            )
        others = [n for n, c in self.peft_config.items() if c.bias != "none"]
        if config.bias != "none" and others:
            raise ConfigError(
                f"bias={config.bias!r}: adapter {others[0]!r} trains the base's biases already, and there is "
                "one set of them; only one adapter of a model may."
            )
