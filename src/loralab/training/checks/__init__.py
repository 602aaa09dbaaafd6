"""Settings that defeat themselves: one file a family, and the folder is the registry.

An entry has `CODES`, what it can find, and ``check(given)``, which yields findings.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from loralab.core.registry import Registry
from loralab.data.findings import Code, Finding, sort
from loralab.training.config import RunConfig

__all__ = ["REGISTRY", "Given", "check_settings", "codes"]

REGISTRY = Registry(__name__, list(__path__), "check")


@dataclass(frozen=True, kw_only=True)
class Given:
    """A run as it is planned."""

    config: RunConfig
    steps: int
    """Optimizer steps."""
    examples: int
    """Training examples."""
    eval_steps: int | None = None
    """The steps from one evaluation to the next; None where there is no validation data."""
    save_steps: int | None = None
    """The steps from one checkpoint to the next."""
    narrowest: tuple[str, int] | None = None
    """Of the weights to be adapted, the one with the smallest dimension, and that."""
    width: int | None = None
    """The base's hidden size."""

    @property
    def epochs(self) -> float:
        """Passes over the data."""
        return self.steps / max(1, -(-self.examples // self.config.batch_size))


def check_settings(given: Given) -> list[Finding]:
    """Return what in the settings stands against the rest of them or the data, the worst first."""
    found: Iterator[Finding] = chain.from_iterable(REGISTRY.get(name).check(given) for name in REGISTRY.names)
    return sort(found)


def codes() -> list[Code]:
    """Return all that the checks can find, by code."""
    found = chain.from_iterable(REGISTRY.get(name).CODES for name in REGISTRY.names)
    return sorted(found, key=lambda code: code.code)
