"""`LoraModel`: a base model with adapters attached: attach and detach, switch, merge and unmerge."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loralab.core import targets
from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig
from loralab.core.layers import BASE, Activation, LoraLayer, wrap
from loralab.core.saved import ModulesToSaveWrapper
from loralab.errors import AdapterError, ConfigError, LoralabError, TargetError, did_you_mean

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
        self.lora_layers: dict[str, LoraLayer] = {}
        self.saved_modules: dict[str, ModulesToSaveWrapper] = {}
        self._activation = Activation()
        self._other_biases: dict[str, Tensor] = {}
        """The base's own values of biases that an adapter trains; while disabled, the adapter's."""
        self.attach(adapter_name, config, adapter)
        self.set_adapter(adapter_name, inference_mode=config.inference_mode)

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
        found = targets.find_targets(self.model, config)
        if adapter is None:
            _check_unmatched(self.model, found.unmatched)
        modules = dict(targets.walk(self.model))
        layers = {p: self.lora_layers.get(p) or wrap(modules[p], p, self._activation) for p in found.paths}
        saved = self._modules_to_save(config, modules, fresh=adapter is None)
        if adapter is not None:
            adapter = self._without_copies_of_the_base(adapter)
            self._check_fit(name, adapter, layers, saved, config)
        try:
            for path, layer in layers.items():
                tensors = None
                if adapter is not None:
                    tensors = {key: adapter.tensors[f"{path}.{key}"] for key in layer.expected(path, config)}
                layer.add_adapter(name, path, config, tensors)
        except LoralabError:
            for layer in layers.values():
                layer.delete_adapter(name)
            raise
        for wrapper in saved.values():
            wrapper.add_adapter(name, trains=not config.inference_mode)
        new: dict[str, LoraLayer | ModulesToSaveWrapper] = {**layers, **saved}
        if not self.peft_config:
            self.model.requires_grad_(False)
            for module in new.values():
                module.train_adapter(name, not config.inference_mode)
        _replace(self.model, {id(modules[path]): module for path, module in new.items()})
        self.lora_layers |= layers
        self.saved_modules |= saved
        self.peft_config[name] = _resolved(config, found.paths, modules)
        self._other_biases |= {key: bias.detach().clone() for key, bias in self._biases(name).items()}
        if adapter is not None:
            self._copy_full_tensors(name, adapter)

    def detach(self, name: str) -> None:
        """Forget an adapter. When none is left the LoRA layers stay, doing what the base does; see `unload`.

        Raises:
            AdapterError: there is no such adapter.
        """
        self._known([name])
        self._restore_biases(name)
        for module in self._adapted_modules():
            module.delete_adapter(name)
        del self.peft_config[name]
        self._activation.names = tuple(other for other in self._activation.names if other != name)

    def load(self, name: str, adapter: Adapter) -> None:
        """Attach `adapter` under `name`, or copy its values into the adapter that has that name already.

        Raises:
            AdapterError: the tensors do not fit the model; nothing has been changed.
        """
        if name not in self.peft_config:
            self.attach(name, adapter.config, adapter)
            return
        adapter = self._without_copies_of_the_base(adapter)
        config = adapter.config
        layers = {path: layer for path, layer in self.lora_layers.items() if name in layer.adapters}
        saved = {path: w for path, w in self.saved_modules.items() if name in w.modules_to_save}
        self._check_fit(name, adapter, layers, saved, config)
        with torch.no_grad():
            for path, layer in layers.items():
                for key, tensor in layer.tensors(name).items():
                    tensor.copy_(adapter.tensors[f"{path}.{key}"])
                layer.scale_adapter(name, path, config)
        scale = {field: getattr(config, field) for field in _SCALE_FIELDS}
        self.peft_config[name] = dataclasses.replace(self.peft_config[name], **scale)
        self._copy_full_tensors(name, adapter)

    def adapter(self, name: str) -> Adapter:
        """Return the adapter `name` as it is now; its tensors are the model's own, not copies.

        Raises:
            AdapterError: there is no such adapter.
        """
        self._known([name])
        tensors = {
            f"{path}.{key}": tensor
            for path, layer in self.lora_layers.items()
            if name in layer.adapters
            for key, tensor in layer.tensors(name).items()
        }
        return Adapter(self.peft_config[name], tensors | self._full_tensors(name))

    def unload(self) -> nn.Module:
        """Return the base model as it was before the first adapter, merged weights undone."""
        self.unmerge_adapter()
        for name in self.peft_config:
            self._restore_biases(name)
        return self._unwrap({id(w): w.original_module for w in self.saved_modules.values()})

    def merge_and_unload(
        self, safe_merge: bool = True, adapter_names: Sequence[str] | None = None
    ) -> nn.Module:
        """Return the base model with the adapters (by default the active ones) merged into its weights.

        Raises:
            AdapterError: a merged weight would not be finite; nothing has been changed.
        """
        self.merge_adapter(adapter_names, safe_merge)
        merged = [layer for layer in self.lora_layers.values() if layer.merged]
        untied = _any_tied(self.model, merged)
        model = self._unwrap({id(w): w.shown for w in self.saved_modules.values()})
        config = getattr(model, "config", None)
        if untied and getattr(config, "tie_word_embeddings", False):
            model.config.tie_word_embeddings = False  # type: ignore[union-attr]
        return model

    def _unwrap(self, saved: Mapping[int, nn.Module]) -> nn.Module:
        _replace(self.model, {id(x): x.base_layer for x in self.lora_layers.values()} | dict(saved))
        self.lora_layers, self.saved_modules, self.peft_config = {}, {}, {}
        return self.model

    # switch

    @property
    def active_adapters(self) -> list[str]:
        """The names of the adapters that run."""
        return list(self._activation.names)

    @property
    def active_adapter(self) -> str | list[str]:
        """The name of the adapter that runs, or a list of several."""
        names = self.active_adapters
        return names[0] if len(names) == 1 else names

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Make these adapters, and no others, run; their parameters become trainable unless told otherwise.

        Raises:
            AdapterError: there is no such adapter.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        self._known(names)
        self._activation.names = tuple(names)
        for module in self._adapted_modules():
            for name in self.peft_config:
                module.train_adapter(name, name in names and not inference_mode)
        for name in self.peft_config:
            for bias in self._biases(name).values():
                bias.requires_grad_(name in names and not inference_mode)

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
        if enabled != self._activation.enabled:
            for name in self.peft_config:
                self._swap_biases(name)
        self._activation.enabled = enabled
        for layer in self.lora_layers.values():
            layer.show_merged(enabled)

    @contextlib.contextmanager
    def rows(self, names: Sequence[str]) -> Iterator[None]:
        """Within the block row i of a batch runs with the adapter names[i]; "__base__" with none.

        Raises:
            AdapterError: there is no such adapter, or adapters are merged.
        """
        self._known([name for name in names if name != BASE])
        if self.merged_adapters:
            raise AdapterError("a mixed batch needs the base's own weights; call unmerge_adapter() first.")
        for name in set(names) - {BASE}:
            if any(name in wrapper.modules_to_save for wrapper in self.saved_modules.values()):
                raise AdapterError(
                    f"adapter {name!r} has modules_to_save, which run for a whole batch; it cannot be mixed."
                )
        before = self._activation.rows
        self._activation.rows = tuple(names)
        try:
            yield
        finally:
            self._activation.rows = before

    # merge and unmerge

    @property
    def merged_adapters(self) -> list[str]:
        """The names of the adapters that are merged into the base weights."""
        return sorted({name for layer in self.lora_layers.values() for name in layer.merged_adapters})

    def merge_adapter(self, adapter_names: Sequence[str] | None = None, safe_merge: bool = True) -> None:
        """Merge these adapters (by default the active ones) into the base weights, beside earlier ones.

        The sum is made in fp32 from the original weights and rounded once, whatever was merged before, so
        neither order nor repetition matters. Results that are not finite are always refused; `safe_merge`
        is there for PEFT's sake.

        Raises:
            AdapterError: no such adapter, or a merged weight would not be finite; nothing is changed.
        """
        names = self.active_adapters if adapter_names is None else list(adapter_names)
        self.swap_adapter([*self.merged_adapters, *(n for n in names if n not in self.merged_adapters)])

    def unmerge_adapter(self) -> None:
        """Put the original weights back, bit for bit."""
        self.swap_adapter([])

    def swap_adapter(self, adapter_names: str | Sequence[str]) -> None:
        """Make the base weights those of exactly these adapters merged, whatever is merged now.

        Raises:
            AdapterError: no such adapter, or a merged weight would not be finite; nothing is changed.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._known(names)
        built = [(layer, layer.merged_weights(names)) for layer in self.lora_layers.values()]
        for layer, merged in built:
            layer.install(names, merged)

    # inside

    def _adapted_modules(self) -> list[LoraLayer | ModulesToSaveWrapper]:
        return [*self.lora_layers.values(), *self.saved_modules.values()]

    def _known(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.peft_config:
                raise AdapterError(
                    f"there is no adapter {name!r}; loaded are {', '.join(self.peft_config) or 'none'}."
                    + did_you_mean(name, self.peft_config)
                )

    def _check_name(self, name: str, config: LoraConfig) -> None:
        if not name or "." in name or name == "__base__":
            raise ConfigError(f"adapter name {name!r}: expected a word without dots, and not '__base__'.")
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

    def _modules_to_save(
        self, config: LoraConfig, modules: Mapping[str, nn.Module], *, fresh: bool
    ) -> dict[str, ModulesToSaveWrapper]:
        saved = {}
        for name in dict.fromkeys((*(config.modules_to_save or ()), *config.heads)):
            paths = [p for p in modules if p == name or p.endswith(f".{name}")]
            if not paths and fresh and name not in config.heads:
                leaves = sorted({path.rpartition(".")[2] for path in modules})
                raise TargetError(f"modules_to_save: {name!r} matches no module.{did_you_mean(name, leaves)}")
            for path in paths:
                saved[path] = self.saved_modules.get(path) or ModulesToSaveWrapper(
                    modules[path], self._activation
                )
        return saved

    def _without_copies_of_the_base(self, adapter: Adapter) -> Adapter:
        """Drop tensors that repeat the base's weights: PEFT writes embeddings beside their adapters.

        One that differs stays, and then has no place in the model.
        """
        repeated = set()
        for path, module in targets.walk(self.model):
            layer, key = self.lora_layers.get(path), f"{path}.base_layer.weight"
            if key in adapter.tensors:
                weight: Tensor = layer.original_weight if layer else module.weight  # type: ignore[assignment]
                copy = adapter.tensors[key].to(weight.device, weight.dtype)
                if torch.equal(copy, weight):
                    repeated.add(key)
        tensors = {key: tensor for key, tensor in adapter.tensors.items() if key not in repeated}
        return Adapter(adapter.config, tensors)

    def _check_fit(
        self,
        name: str,
        adapter: Adapter,
        layers: Mapping[str, LoraLayer],
        saved: Mapping[str, ModulesToSaveWrapper],
        config: LoraConfig,
    ) -> None:
        expected: dict[str, tuple[int, ...]] = {}
        for path, layer in layers.items():
            expected |= {f"{path}.{key}": shape for key, shape in layer.expected(path, config).items()}
        for path, wrapper in saved.items():
            for key, tensor in wrapper.original_module.state_dict().items():
                expected[f"{path}.{key}"] = tuple(tensor.shape)
        for key, bias in self._biases_of(config, layers).items():
            expected[key] = tuple(bias.shape)
        _compare(name, adapter, expected, type(self.model).__name__)

    def _biases_of(self, config: LoraConfig, layers: Mapping[str, LoraLayer]) -> dict[str, nn.Parameter]:
        if config.bias == "none":
            return {}
        only = {f"{path}.base_layer.bias": x.bias for path, x in layers.items() if x.bias is not None}
        if config.bias == "lora_only":
            return only
        others = {
            f"{path}.{key}": parameter
            for path, module in targets.walk(self.model)
            if path not in layers and path not in self.saved_modules
            for key, parameter in module.named_parameters(recurse=False)
            if "bias" in key
        }
        return only | others

    def _biases(self, name: str) -> dict[str, nn.Parameter]:
        layers = {path: layer for path, layer in self.lora_layers.items() if name in layer.adapters}
        return self._biases_of(self.peft_config[name], layers)

    def _swap_biases(self, name: str) -> None:
        swapped: dict[int, Tensor] = {}  # one tensor may stand under several names
        for key, bias in self._biases(name).items():
            if id(bias) not in swapped:
                bias.data, swapped[id(bias)] = self._other_biases[key].to(bias), bias.data
            self._other_biases[key] = swapped[id(bias)]

    def _restore_biases(self, name: str) -> None:
        """Give the base its own biases back, frozen."""
        if self._activation.enabled:
            self._swap_biases(name)
        for key, bias in self._biases(name).items():
            bias.requires_grad_(False)
            del self._other_biases[key]

    def _full_tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of an adapter that are trained in full: `modules_to_save` and biases."""
        saved = {
            f"{path}.{key}": tensor
            for path, wrapper in self.saved_modules.items()
            for key, tensor in wrapper.tensors(name).items()
        }
        biases = self._biases(name)
        if self._activation.enabled:
            return saved | dict(biases)
        return saved | {key: self._other_biases[key] for key in biases}

    def _copy_full_tensors(self, name: str, adapter: Adapter) -> None:
        with torch.no_grad():
            for key, tensor in self._full_tensors(name).items():
                tensor.copy_(adapter.tensors[key])


def _check_unmatched(model: nn.Module, unmatched: Sequence[str]) -> None:
    if unmatched:
        leaves = sorted({path.rpartition(".")[2] for path, _ in targets.walk(model)})
        raise TargetError(
            f"target_modules: {', '.join(map(repr, unmatched))} matches no module of this model."
            + did_you_mean(unmatched[0].rpartition(".")[2], leaves)
        )


def _resolved(config: LoraConfig, paths: Sequence[str], modules: Mapping[str, nn.Module]) -> LoraConfig:
    """Return the config as it is saved: presets and defaults replaced by the names they stood for."""
    wanted = config.target_modules
    if wanted is None or (isinstance(wanted, str) and wanted in targets.PRESETS):
        wanted = targets.shorten(paths, modules)
    # PEFT's own readers want this flag to say how the weight lies.
    transposed = all(type(modules[path]).__name__ == "Conv1D" for path in paths)
    heads = [name for name in config.heads if any(p == name or p.endswith(f".{name}") for p in modules)]
    layers = config.layers_to_transform if wanted == config.target_modules else None
    pattern = config.layers_pattern if layers is not None else None
    return dataclasses.replace(
        config,
        target_modules=wanted,
        modules_to_save=list(dict.fromkeys((*(config.modules_to_save or ()), *heads))) or None,
        fan_in_fan_out=transposed,
        layers_to_transform=layers,
        layers_pattern=pattern,
    )


def _replace(model: nn.Module, swaps: Mapping[int, nn.Module]) -> None:
    """Replace child modules by identity, wherever they stand."""
    for parent in list(model.modules()):
        if isinstance(parent, LoraLayer | ModulesToSaveWrapper):
            continue
        # Not named_children(), which passes over a module that stands twice in one parent.
        for name, child in list(parent._modules.items()):
            if id(child) in swaps:
                setattr(parent, name, swaps[id(child)])


def _any_tied(model: nn.Module, layers: Sequence[LoraLayer]) -> bool:
    originals = {id(layer.original_weight) for layer in layers}
    return any(id(p) in originals for _, p in model.named_parameters(remove_duplicate=False))


def _compare(name: str, adapter: Adapter, expected: Mapping[str, tuple[int, ...]], model: str) -> None:
    """Raise AdapterError unless the adapter has exactly the expected keys and shapes."""
    differing = [
        f"{key} is {list(adapter.tensors[key].shape)}, the model needs {list(shape)}"
        for key, shape in expected.items()
        if key in adapter.tensors and tuple(adapter.tensors[key].shape) != shape
    ]
    missing = [f"{key} is missing from the adapter" for key in expected if key not in adapter.tensors]
    extra = [f"{key} has no place in the model" for key in adapter.tensors if key not in expected]
    faults = differing + missing + extra
    if faults:
        base = adapter.config.base_model_name_or_path
        says = f" It says: {base}." if base else ""
        raise AdapterError(
            f"adapter {name!r} does not fit this {model}: {len(faults)} of {len(expected)} tensors differ. "
            f"{faults[0]}. Was it trained on another base?{says}"
        )
