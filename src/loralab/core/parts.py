"""The parts of one model that adapters have changed: LoRA layers, modules in full, tokens, biases."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from loralab.core import targets
from loralab.core.adapter import Adapter
from loralab.core.biases import Biases, biases_of
from loralab.core.config import LoraConfig
from loralab.core.fit import check_fit, check_tied, without_copies
from loralab.core.layers import Activation, LoraLayer
from loralab.core.layers.linear import LinearLike
from loralab.core.layers.mergeable import Mergeable
from loralab.core.layers.together import find_together
from loralab.core.plan import Plan, Planner
from loralab.core.replicate import Replication, replicate
from loralab.core.saved import AuxiliaryTrainingWrapper
from loralab.core.tokens import TOKEN_ROWS, TrainableTokensWrapper
from loralab.core.tying import embedding_path
from loralab.errors import ConfigError

__all__ = ["Parts"]

_Wrapper = TypeVar("_Wrapper", bound=AuxiliaryTrainingWrapper)


class Parts:
    """What stands in the place of the base's own modules, and how to put it there and take it out again."""

    def __init__(self, model: nn.Module, activation: Activation) -> None:
        self.model = model
        self.activation = activation
        self.layers: dict[str, LoraLayer] = {}
        """By their place in files."""
        self.wrappers: dict[str, AuxiliaryTrainingWrapper] = {}
        self.biases = Biases()
        self._shared: list[tuple[nn.Module, str, nn.Module]] = []
        self._replication: Replication | None = None
        self._fast_paths: list[tuple[nn.Module, str, Any]] = []

    # in

    def attach(self, name: str, config: LoraConfig, adapter: Adapter | None, *, first: bool) -> LoraConfig:
        """Attach an adapter, with the tensors of `adapter` or freshly initialised; return the config to save.

        The `first` one freezes the base. Nothing is changed when an error is raised, see `LoraModel.attach`.
        """
        replication = self._replicated(config, first)
        try:
            return self._attach(name, config, adapter, first)
        except BaseException:
            if replication is not None:
                replication.undo()
                self._replication = None
            raise

    def _attach(self, name: str, config: LoraConfig, adapter: Adapter | None, first: bool) -> LoraConfig:
        if adapter is not None:
            adapter = without_copies(adapter, self.model)
            config = adapter.config
        plan = self._plan(config, fresh=adapter is None)
        biases = self._biases_of(config, plan)
        if adapter is not None:
            adapter = _translated(adapter, plan)
            check_fit(name, adapter, _expected(plan, biases), type(self.model).__name__)
            check_tied(adapter, plan)
        try:
            self._add_parts(name, plan, adapter)
        except BaseException:  # whatever it was, the base stays as it is
            for part in plan.parts.values():
                part.delete_adapter(name)
            raise
        if first:
            self.model.requires_grad_(False)
        self._put_in_place(plan)
        self.biases.start(name, biases)
        if adapter is not None:
            self._copy_full_tensors(name, adapter)
        return plan.config

    def _plan(self, config: LoraConfig, *, fresh: bool) -> Plan:
        planner = Planner(self.model, config, fresh, self.activation, self.layers, self.wrappers)
        return planner.plan()

    def _add_parts(self, name: str, plan: Plan, adapter: Adapter | None) -> None:
        """Give the parts their tensors, which get no gradients until the adapter is made active."""
        config = plan.config
        for place, layer in plan.layers.items():
            tensors = None
            if adapter is not None:
                expected = layer.expected(layer.path, config)
                tensors = {key: adapter.tensors[f"{place}.{key}"] for key in expected}
            layer.add_adapter(name, layer.path, config, tensors)
            layer.train_adapter(name, False)
        for path, wrapper in plan.saved.items():
            source = plan.saved[plan.source] if plan.source is not None and path in plan.tied else None
            wrapper.add_adapter(name, None if source is None else source.modules_to_save[name])
        for path, tokens in plan.indices.items():
            plan.tokens[path].token_adapter.update_layer(name, tokens)
            plan.tokens[path].train_adapter(name, False)

    def _put_in_place(self, plan: Plan) -> None:
        """Let the parts of the plan that are new take the places of the modules they stand for."""
        known = {id(part) for part in (*self.layers.values(), *self.wrappers.values())}
        swaps = {}
        # The outermost of several layers over one module comes last, as files name it by the shortest path.
        for path in sorted(plan.parts, key=len, reverse=True):
            part = plan.parts[path]
            if id(part) not in known:
                swaps[id(targets.original(part))] = part
        for path, module in plan.shared.items():
            parent, _, name = path.rpartition(".")
            self._shared.append((self.model.get_submodule(parent), name, module))
            swaps[id(module)] = plan.layers[plan.source or ""]
        if swaps:
            targets.replace(self.model, swaps)
        self.layers |= plan.layers
        self.wrappers |= {**plan.saved, **plan.tokens}
        if swaps:
            self._leave_fast_paths()
            self._bring_together()

    def _bring_together(self) -> None:
        """Let layers that read the same input know each other."""
        linear = {layer.path: layer for layer in self.layers.values() if isinstance(layer, LinearLike)}
        for group in find_together(linear):
            for layer in group.layers:
                layer.together = group

    def _leave_fast_paths(self) -> None:
        """Make torch's own encoders call modules whose weights alone they would read, on whole tensors."""
        switches = {
            nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
            nn.TransformerEncoder: ("use_nested_tensor", False),
        }
        for module in self.model.modules():
            for kind, (key, off) in switches.items():
                if isinstance(module, kind) and getattr(module, key, None):
                    self._fast_paths.append((module, key, getattr(module, key)))
                    setattr(module, key, off)

    def _replicated(self, config: LoraConfig, first: bool) -> Replication | None:
        """Stack the base's layers as the config asks, unless they are already; return what was done."""
        wanted = tuple((first, end) for first, end in config.layer_replication or ())
        has = self._replication.ranges if self._replication else ()
        if not wanted or wanted == has:
            return None
        if has or not first:
            raise ConfigError(
                f"layer_replication is {[list(pair) for pair in wanted]}; the layers of this model stand as "
                f"{[list(pair) for pair in has] or 'the base has them'} for another adapter."
            )
        self._replication = replicate(self.model, wanted)
        return self._replication

    def copy(self, name: str, adapter: Adapter) -> None:
        """Copy the values of `adapter` into the attached adapter `name`.

        Raises:
            AdapterError: the tensors do not fit; nothing has been changed.
        """
        adapter = without_copies(adapter, self.model)
        config = dataclasses.replace(adapter.config, inference_mode=False)
        plan = self._plan(config, fresh=False)
        adapter = _translated(adapter, plan)
        kind = type(self.model).__name__
        check_fit(name, adapter, _expected(plan, self._biases_of(config, plan)), kind)
        held = {key: tuple(tensor.shape) for key, tensor in self.tensors(name).items()}
        check_fit(name, adapter, held, kind)
        check_tied(adapter, plan)
        for place, layer in self.layers.items():
            if name in layer.adapters:
                tensors = {key: adapter.tensors[f"{place}.{key}"] for key in layer.tensors(name)}
                layer.copy_values(name, tensors)
                layer.scale_adapter(name, layer.path, config)
        self._copy_full_tensors(name, adapter)

    # out

    def detach(self, name: str) -> None:
        """Forget an adapter; the parts stay, doing what the base does."""
        self.biases.forget(name)
        for part in self.all():
            part.delete_adapter(name)

    def take_out(self, shown: Mapping[int, nn.Module]) -> None:
        """Put the base's modules back; in the place of a part in `shown` goes that module."""
        swaps = {id(part): shown.get(id(part), targets.original(part)) for part in self.all()}
        targets.replace(self.model, swaps)
        for parent, name, module in self._shared:
            setattr(parent, name, module)
        self._shared = []
        for module, key, fast in self._fast_paths:
            setattr(module, key, fast)
        self.layers, self.wrappers, self._fast_paths, self._replication = {}, {}, [], None

    def settle_replication(self) -> None:
        """Give layers that an adapter stacked twice tensors of their own."""
        if self._replication is not None:
            self._replication.settle()

    def undo_replication(self) -> None:
        """Put the base's own stack of layers back, where an adapter replaced it."""
        if self._replication is not None:
            self._replication.undo()

    # what there is

    def all(self) -> list[LoraLayer | AuxiliaryTrainingWrapper]:
        """Return all parts but the biases."""
        return [*self.layers.values(), *self.wrappers.values()]

    def mergeable(self) -> dict[str, Mergeable]:
        """Return the parts that adapters can be merged into, by path."""
        tokens = {
            p: w.token_adapter for p, w in self.wrappers.items() if isinstance(w, TrainableTokensWrapper)
        }
        return {**self.layers, **tokens}

    def of(self, kind: type[_Wrapper]) -> list[_Wrapper]:
        """Return the wrappers of one kind."""
        return [wrapper for wrapper in self.wrappers.values() if isinstance(wrapper, kind)]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return an adapter's tensors by their names in a file; they are the model's own, not copies."""
        factors = {
            f"{path}.{key}": tensor
            for path, layer in self.layers.items()
            if name in layer.adapters
            for key, tensor in layer.tensors(name).items()
        }
        return factors | self._full_tensors(name)

    def train(self, name: str, trains: bool) -> None:
        """Set whether an adapter's tensors get gradients."""
        for part in self.all():
            part.train_adapter(name, trains)
        self.biases.train(name, trains)

    def follow(self) -> None:
        """Put in place what goes with the running adapters: biases, base weights, what is merged."""
        self.biases.show(self.activation.running)
        for part in self.mergeable().values():
            part.follow()

    def changers(self) -> set[str]:
        """Return the names of the adapters that go with base weights of their own."""
        return {name for layer in self.layers.values() for name in layer.changers}

    def untied(self) -> bool:
        """Return whether a merge gave modules that shared the embedding's weight different ones."""
        source = embedding_path(self.model, modules := self._originals())
        if source is None:
            return False
        parts = [part for part in self.mergeable().values() if part.merged]
        held = {id(part.holder): part.original_weight for part in parts}
        first = held.get(id(modules[source]), getattr(modules[source], "weight", None))
        sharing = {
            id(module.weight)
            for module in modules.values()
            if first is not None and held.get(id(module), getattr(module, "weight", None)) is first
        }
        return len(sharing) > 1

    def _originals(self) -> dict[str, nn.Module]:
        return dict(targets.walk(self.model))

    def _biases_of(self, config: LoraConfig, plan: Plan) -> dict[str, nn.Parameter]:
        return biases_of(config, plan.layers, self._originals, {**self.wrappers, **plan.saved})

    def _full_tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of an adapter that are trained in full: modules, tokens and biases."""
        saved = {
            f"{path}.{key}": tensor
            for path, wrapper in self.wrappers.items()
            for key, tensor in wrapper.tensors(name).items()
        }
        return saved | self.biases.tensors(name)

    def _copy_full_tensors(self, name: str, adapter: Adapter) -> None:
        with torch.no_grad():
            for key, tensor in self._full_tensors(name).items():
                tensor.copy_(adapter.tensors[key])


def _translated(adapter: Adapter, plan: Plan) -> Adapter:
    """Return the adapter with the factors of older files as today's have them."""
    tensors = dict(adapter.tensors)
    for place, layer in plan.layers.items():
        keys = [key for key in layer.expected(layer.path, adapter.config) if f"{place}.{key}" in tensors]
        own = {key: tensors[f"{place}.{key}"] for key in keys}
        tensors |= {f"{place}.{key}": tensor for key, tensor in layer.translated(own, adapter.config).items()}
    return Adapter(adapter.config, tensors)


def _expected(plan: Plan, biases: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors that an adapter with this plan has."""
    expected: dict[str, tuple[int, ...]] = {}
    for place, layer in plan.layers.items():
        shapes = layer.expected(layer.path, plan.config)
        expected |= {f"{place}.{key}": shape for key, shape in shapes.items()}
    for path, wrapper in plan.saved.items():
        full = wrapper.original_module.state_dict()
        expected |= {f"{path}.{key}": tuple(tensor.shape) for key, tensor in full.items()}
    for path, tokens in plan.indices.items():
        width = plan.tokens[path].token_adapter.original_weight.shape[1]
        expected[f"{path}.{TOKEN_ROWS}"] = (len(tokens), width)
    return expected | {key: tuple(bias.shape) for key, bias in biases.items()}
