"""How answers are scored: one file a metric, and the folder is the registry.

A metric is a module with `PACKAGE` (the library that it needs, or "") and
``score(answers, references) -> {column: value}``, where `references[i]` are the right answers to what
`answers[i]` answers, one or more. Both come without white space at their ends.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TypeAlias

from loralab.core.registry import Registry
from loralab.errors import ConfigError

__all__ = ["REGISTRY", "Score", "load_metrics"]

REGISTRY = Registry(__name__, list(__path__), "metric")

Score: TypeAlias = Callable[[Sequence[str], Sequence[Sequence[str]]], dict[str, float]]


def load_metrics(names: Sequence[str]) -> Mapping[str, Score]:
    """Return the metrics of these names.

    Raises:
        ConfigError: there is no such metric, or the library that it needs is not installed.
    """
    found: dict[str, Score] = {}
    for name in names:
        module = REGISTRY.get(name)
        if module.PACKAGE and find_spec(module.PACKAGE) is None:
            raise ConfigError(
                f"metric {name} needs the package {module.PACKAGE}: pip install 'loralab[metrics]'."
            )
        found[name] = module.score
    return found
