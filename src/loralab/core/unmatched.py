"""Settings of a new adapter that name modules of which there are none: a misspelt word is no setting."""

from collections.abc import Collection, Iterable

from loralab.core.config import LoraConfig, pattern_matches
from loralab.core.targets import named
from loralab.errors import TargetError, did_you_mean

__all__ = ["check_unmatched"]


def check_unmatched(config: LoraConfig, modules: Collection[str], adapted: Collection[str]) -> None:
    """Raise TargetError unless every pattern, exclusion and layer number of `config` has an effect.

    `modules` are the paths of the model's modules, `adapted` those that the adapter takes.
    """
    for field in ("rank_pattern", "alpha_pattern"):
        for key in getattr(config, field):
            if not any(pattern_matches(key, path) for path in adapted):
                raise TargetError(f"{field}: {key!r} matches no adapted module.{_near(key, adapted)}")
    excluded = config.exclude_modules or ()
    for name in [] if isinstance(excluded, str) else sorted(excluded):
        if not any(named(path, {name}) for path in modules):
            raise TargetError(f"exclude_modules: {name!r} matches no module.{_near(name, modules)}")
    layers = config.layers_to_transform
    numbers = [] if layers is None else [layers] if isinstance(layers, int) else layers
    there = {int(part) for path in adapted for part in path.split(".") if part.isdigit()}
    for number in numbers:
        if number not in there:
            raise TargetError(
                f"layers_to_transform: no module of layer {number} is adapted; those adapted are of layers "
                f"{', '.join(map(str, sorted(there))) or '(none)'}."
            )


def _near(word: str, paths: Iterable[str]) -> str:
    return did_you_mean(word.rpartition(".")[2], sorted({path.rpartition(".")[2] for path in paths}))
