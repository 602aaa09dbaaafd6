"""What an adapter of some config takes hold of in a model: layers, modules trained in full, single tokens."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from loralab.core import targets
from loralab.core.config import LoraConfig
from loralab.core.layers import Activation, LoraLayer, wrap
from loralab.core.layers.parameter import Layer as ParameterLayer
from loralab.core.saved import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from loralab.core.targets import original
from loralab.core.tokens import TrainableTokensWrapper
from loralab.core.tying import TiedLayer, embedding_path, tied_paths
from loralab.core.unmatched import check_unmatched
from loralab.errors import ConfigError, TargetError, did_you_mean

__all__ = ["Plan", "Planner"]


@dataclass
class Plan:
    """The parts of a model that an adapter changes, new ones not yet in their place."""

    config: LoraConfig
    """The config as it is saved: presets and defaults replaced by the names they stood for."""
    layers: dict[str, LoraLayer] = field(default_factory=dict)
    """By their place in files."""
    saved: dict[str, ModulesToSaveWrapper] = field(default_factory=dict)
    tokens: dict[str, TrainableTokensWrapper] = field(default_factory=dict)
    indices: dict[str, list[int]] = field(default_factory=dict)
    """The trained tokens of each of `tokens` that has rows of its own."""
    source: str | None = None
    """The embedding whose full copy the other tied modules in `saved` share."""
    tied: tuple[str, ...] = ()
    shared: dict[str, nn.Module] = field(default_factory=dict)
    """Other embeddings that the layer at `source` stands for as well, as in encoder-decoder models."""

    @property
    def parts(self) -> dict[str, LoraLayer | AuxiliaryTrainingWrapper]:
        """All of them."""
        return {**self.layers, **self.saved, **self.tokens}


@dataclass
class Planner:
    """Makes the plan for one config, over what other adapters of the model hold already."""

    model: nn.Module
    config: LoraConfig
    fresh: bool
    """A new adapter: names that match nothing are faults. (A stored one has to match its file.)"""
    activation: Activation
    layers: Mapping[str, LoraLayer]
    wrappers: Mapping[str, AuxiliaryTrainingWrapper]

    def plan(self) -> Plan:
        """Return the plan.

        Raises:
            TargetError: nothing matches, or a module cannot be adapted as asked.
            ConfigError: settings contradict each other.
        """
        self.modules = dict(targets.walk(self.model))
        found = targets.find_targets(self.model, self.config, self.modules)
        if self.fresh and found.unmatched:
            raise TargetError(
                f"target_modules: {', '.join(map(repr, found.unmatched))} matches no module of this model."
                + did_you_mean(found.unmatched[0].rpartition(".")[2], self._leaves())
            )
        self.tokens = self._token_lists()
        self.source, self.tied = self._ties(found.paths)
        plan = Plan(self.config, source=self.source, tied=self.tied)
        self._add_layers(plan, found.paths)
        self._add_parameters(plan)
        self._add_saved(plan)
        self._add_tokens(plan)
        if self.fresh:
            check_unmatched(self.config, self.modules, [layer.path for layer in plan.layers.values()])
        plan.config = self._resolved(plan, found.paths)
        return plan

    def _leaves(self) -> list[str]:
        return sorted({path.rpartition(".")[2] for path in self.modules})

    def _named(self, name: str) -> list[str]:
        return [path for path in self.modules if targets.named(path, {name})]

    # tying

    def _ties(self, paths: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
        """Return the embedding and the modules that are to follow it, as `ensure_weight_tying` asks."""
        if not self.config.ensure_weight_tying:
            return None, ()
        source = embedding_path(self.model, self.modules)
        tied = () if source is None else tuple(tied_paths(self.modules, source))
        if not tied or source is None:
            if self.fresh:
                raise TargetError(
                    "ensure_weight_tying: no module of this model shares the input embedding's weight; "
                    "leave it out."
                )
            return None, ()
        touched = {*paths, *self._saved_paths(), *self.tokens}
        if self.fresh and not touched & {source, *tied}:
            raise TargetError(
                f"ensure_weight_tying: the adapter leaves {source!r} and {', '.join(tied)} alone; "
                "target them, or leave it out."
            )
        return source, tied

    # factors

    def _add_layers(self, plan: Plan, paths: Sequence[str]) -> None:
        held = {id(layer.holder): place for place, layer in self.layers.items()}
        chosen = list(paths)
        follows = self.tied if any(path in chosen for path in (self.source, *self.tied)) else ()
        if follows and self.source is not None:
            chosen = [self.source, *(path for path in chosen if path not in (self.source, *follows))]
        attentions = {p for p in chosen if isinstance(self.modules[p], nn.MultiheadAttention)}
        for path in chosen:
            if path.rpartition(".")[0] in attentions:
                continue  # its output projection goes with it
            module = self.modules[path]
            layer = self.layers.get(path)
            inner = original(module.out_proj) if path in attentions else None  # type: ignore[arg-type]
            other = held.get(id(module), held.get(id(inner)))
            if layer is None and other is not None:
                raise TargetError(
                    f"{path!r} cannot be targeted: another adapter has {other!r} already, which is a part "
                    "of it or has it as a part; target the same module."
                )
            if isinstance(layer, TiedLayer):
                raise TargetError(
                    f"{path!r} follows the embedding for another adapter; it cannot have one of its own."
                )
            if isinstance(layer, ParameterLayer):
                raise TargetError(
                    f"{path!r} has target_parameters of another adapter; it cannot be a target too."
                )
            plan.layers |= (layer or wrap(module, path, self.activation)).parts(path)
        for path in follows:
            if isinstance(self.modules[path], nn.Embedding):
                plan.shared[path] = self._alike(path)
                continue
            existing = self.layers.get(path)
            if existing is not None and not isinstance(existing, TiedLayer):
                raise TargetError(
                    f"{path!r} has an adapter of its own already; it cannot follow the embedding."
                )
            source = plan.layers[self.source or ""]
            plan.layers[path] = existing or TiedLayer(self.modules[path], self.activation, source)

    def _alike(self, path: str) -> nn.Module:
        """Return the embedding at `path`, which does what the input embedding does and can give way to it."""
        module, source = self.modules[path], self.modules[self.source or ""]
        scales = [float(getattr(m, "embed_scale", None) or 1.0) for m in (module, source)]
        if scales[0] != scales[1]:
            raise TargetError(
                f"ensure_weight_tying: {path!r} scales its output by {scales[0]:g} and {self.source!r} by "
                f"{scales[1]:g}; they cannot have one adapter. Leave it out, and name the embedding in use."
            )
        return module

    def _add_parameters(self, plan: Plan) -> None:
        for path, names in targets.find_parameters(self.model, self.config).items():
            module = id(self.modules[path])
            if any(id(layer.holder) == module for layer in plan.layers.values()):
                raise TargetError(
                    f"{path!r} is in target_modules and has target_parameters; leave one of them out."
                )
            other = next((p for p, layer in self.layers.items() if id(layer.holder) == module), None)
            if other is not None and path not in self.layers:
                raise TargetError(
                    f"target_parameters: {path!r} is adapted as a part of {other!r} by another adapter."
                )
            layers = self._nested(path, names)
            for depth, layer in enumerate(reversed(layers)):
                plan.layers[path + ".base_layer" * depth] = layer

    def _nested(self, path: str, names: Sequence[str]) -> list[ParameterLayer]:
        """Return the layers over the parameters of one module, the innermost first."""
        outer = self.layers.get(path)
        if outer is None:
            layers: list[ParameterLayer] = []
            module = self.modules[path]
            for name in names:
                module = ParameterLayer(module, self.activation, name)
                module.path = f"{path}.{name}"
                layers.append(module)
            return layers
        existing: list[ParameterLayer] = []
        inner: nn.Module = outer
        while isinstance(inner, ParameterLayer):
            existing.insert(0, inner)
            inner = inner.base_layer
        if [layer.weight_name for layer in existing] != list(names):
            theirs = ", ".join(layer.weight_name for layer in existing) or "the module itself"
            raise TargetError(
                f"target_parameters: adapters of one model adapt the same parameters of a module; another "
                f"has {theirs} of {path!r}."
            )
        return existing

    # in full

    def _saved_paths(self) -> list[str]:
        found: list[str] = []
        for name in dict.fromkeys((*(self.config.modules_to_save or ()), *self.config.heads)):
            # By the end of the path, as PEFT does: "norm" is every module whose name ends so.
            paths = [p for p in self.modules if p.endswith(name) and not any(_inside(p, f) for f in found)]
            if not paths and self.fresh and name not in self.config.heads:
                raise TargetError(
                    f"modules_to_save: {name!r} matches no module.{did_you_mean(name, self._leaves())}"
                )
            found += paths
        return found

    def _add_saved(self, plan: Plan) -> None:
        paths = self._saved_paths()
        if self.source is not None and any(path in (self.source, *self.tied) for path in paths):
            paths = [self.source, *(p for p in paths if p != self.source and p not in self.tied), *self.tied]
        for path in paths:
            wrapper = self.wrappers.get(path) or ModulesToSaveWrapper(self.modules[path], self.activation)
            if not isinstance(wrapper, ModulesToSaveWrapper) or path in plan.layers:
                raise TargetError(f"modules_to_save: {path!r} is adapted otherwise; it cannot be both.")
            plan.saved[path] = wrapper

    # single tokens

    def _token_lists(self) -> dict[str, list[int]]:
        """Return the trained tokens by module path."""
        wanted = self.config.trainable_token_indices
        if not wanted:
            return {}
        if isinstance(wanted, list):
            source = embedding_path(self.model, self.modules)
            if source is None:
                raise TargetError(
                    "trainable_token_indices: the model does not say which module is its input embedding; "
                    "give a dictionary, {'name of the embedding': [ids]}."
                )
            return {source: wanted}
        found: dict[str, list[int]] = {}
        for name, tokens in wanted.items():
            paths = self._named(name)
            if not paths:
                near = did_you_mean(name, self._leaves())
                raise TargetError(f"trainable_token_indices: {name!r} matches no module.{near}")
            found |= dict.fromkeys(paths, tokens)
        return found

    def _add_tokens(self, plan: Plan) -> None:
        source = embedding_path(self.model, self.modules) if self.tokens else None
        tied = tied_paths(self.modules, source) if source in self.tokens and source is not None else []
        apart = [
            path for path in tied if path in self.tokens and self.tokens[path] != self.tokens[source or ""]
        ]
        if apart and self.config.ensure_weight_tying:
            raise ConfigError(
                f"trainable_token_indices: {apart[0]!r} shares the weight of {source!r} and has others; "
                "with ensure_weight_tying they must be the same."
            )
        follows = [] if apart else tied
        for path, tokens in self.tokens.items():
            if path not in follows:
                plan.tokens[path] = self._token_wrapper(path, plan, None)
                plan.indices[path] = list(tokens)
        for path in follows:
            plan.tokens[path] = self._token_wrapper(path, plan, plan.tokens[source or ""])

    def _token_wrapper(
        self, path: str, plan: Plan, tied: TrainableTokensWrapper | None
    ) -> TrainableTokensWrapper:
        wrapper = self.wrappers.get(path)
        if (
            path in plan.layers
            or path in plan.saved
            or path in self.layers
            or (wrapper is not None and not isinstance(wrapper, TrainableTokensWrapper))
        ):
            raise TargetError(
                f"trainable_token_indices: {path!r} is adapted or trained in full too; choose one of them."
            )
        adapter = None if tied is None else tied.token_adapter
        if wrapper is not None and wrapper.token_adapter.tied_adapter is not adapter:
            raise TargetError(
                f"trainable_token_indices: for one adapter {path!r} has the embedding's tokens, for another "
                "tokens of its own; one model cannot have both."
            )
        return wrapper or TrainableTokensWrapper(self.modules[path], self.activation, adapter)

    # the config

    def _resolved(self, plan: Plan, paths: Sequence[str]) -> LoraConfig:
        config, modules = self.config, self.modules
        wanted = config.target_modules
        if wanted is None or (isinstance(wanted, str) and wanted in targets.PRESETS):
            wanted = targets.shorten(paths, modules)
        if self.source in plan.layers and isinstance(wanted, set):
            followed = {n for n in wanted if any(targets.named(p, {n}) for p in self.tied)}
            wanted = (wanted - followed) | {self.source}  # as PEFT writes it
        # PEFT's own readers want this flag to say how the weight lies.
        transposed = bool(paths) and all(type(modules[path]).__name__ == "Conv1D" for path in paths)
        heads = [name for name in config.heads if any(path.endswith(name) for path in plan.saved)]
        saved = list(dict.fromkeys((*(config.modules_to_save or ()), *heads)))
        if self.source in plan.saved and self.source is not None:
            followed = {n for n in saved if any(targets.named(p, {n}) for p in self.tied)}
            saved = list(dict.fromkeys((*(n for n in saved if n not in followed), self.source)))
        layers = config.layers_to_transform if wanted == config.target_modules else None
        return dataclasses.replace(
            config,
            target_modules=wanted,
            modules_to_save=saved or None,
            fan_in_fan_out=transposed,
            layers_to_transform=layers,
            layers_pattern=config.layers_pattern if layers is not None else None,
        )


def _inside(path: str, outer: str) -> bool:
    return path == outer or path.startswith(f"{outer}.")
