"""Where else the course of a run goes: one file a reporter, and the folder is the registry.

A reporter is a module with `NEEDS`, what pip installs for it ("" for nothing), and a class `Reporter` with
three methods: ``__init__(folder, config)`` opens it, `add(event)` takes in what happened, `close()` ends it.
The module imports its package where it is used, so that it can be asked for `NEEDS` without it.

A run that goes on from a checkpoint makes some steps again, as they were. They do not come to a reporter
again, unless its module sets `AGAIN`: it writes everything anew, from the run's folder.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from packaging.requirements import Requirement

from loralab.core.registry import Registry
from loralab.errors import ConfigError
from loralab.training.config import RunConfig
from loralab.training.events import Evaluated, Event, Sampled, Started, Stepped
from loralab.training.folder import RunFolder

__all__ = ["REGISTRY", "Reporter", "Reporters", "check_reporters", "numbers"]

REGISTRY = Registry(__name__, __path__, "reporter")


class Reporter(Protocol):
    """One place that the course of a run goes to."""

    def __init__(self, folder: RunFolder, config: RunConfig) -> None: ...

    def add(self, event: Event) -> None:
        """Take in what happened."""

    def close(self) -> None:
        """Send or write what is left."""


def check_reporters(report_to: str) -> list[str]:
    """Return the names in the setting `report_to`.

    Raises:
        ConfigError: there is no reporter of that name, one is named twice, or its package is not installed.
    """
    names = [name for name in (word.strip() for word in report_to.split(",")) if name]
    for name in names:
        needs = REGISTRY.get(name).NEEDS
        if needs and not _is_installed(Requirement(needs)):
            raise ConfigError(f"report_to {name!r} needs a package; install it: pip install '{needs}'")
    if len(set(names)) < len(names):
        raise ConfigError(f"report_to is {report_to!r}: expected each reporter once.")
    return names


class Reporters:
    """All the reporters of a run. One that fails is left out from then on, and the run goes on.

    They open with the run's first event.
    """

    def __init__(self, folder: RunFolder, config: RunConfig) -> None:
        self._folder, self._config = folder, config
        self._open: dict[str, Reporter] = {}
        self._sent: dict[type[Event], int] = {}

    def add(self, event: Event) -> list[str]:
        """Hand on what is in the run's folder already. Return a line for each reporter that failed."""
        if isinstance(event, Started):
            return self._begin(event)
        again = event.step <= self._sent.get(type(event), -1)
        names = [name for name in self._open if not again or hasattr(REGISTRY.get(name), "AGAIN")]
        return [note for name in names for note in self._hand_on(name, event)]

    def close(self) -> list[str]:
        """Close all of them. Return a line for each one that failed."""
        notes = []
        for name, reporter in self._open.items():
            try:
                reporter.close()
            except Exception as error:
                notes.append(_failure(name, error))
        self._open = {}
        return notes

    def _begin(self, event: Started) -> list[str]:
        notes = self.close()
        if event.step:
            kinds = {kind.__name__.lower(): kind for kind in (Stepped, Evaluated, Sampled)}
            for row in self._folder.events():
                if row.get("event") in kinds:
                    kind = kinds[row["event"]]
                    self._sent[kind] = max(row["step"], self._sent.get(kind, -1))
        for name in check_reporters(self._config.report_to):
            try:
                self._open[name] = REGISTRY.get(name).Reporter(self._folder, self._config)
            except Exception as error:
                notes.append(_failure(name, error))
        return notes + [note for name in list(self._open) for note in self._hand_on(name, event)]

    def _hand_on(self, name: str, event: Event) -> list[str]:
        try:
            self._open[name].add(event)
        except Exception as error:
            # What the libraries behind it raise has no common kind, and none of it is worth a run.
            del self._open[name]
            return [_failure(name, error)]
        return []


def numbers(event: Event) -> dict[str, float]:
    """Return what an event adds to the curves, by the names that they have in all reporters."""
    if isinstance(event, Stepped):
        return {
            "train/loss": event.loss,
            "train/smoothed_loss": event.smoothed,
            "train/learning_rate": event.learning_rate,
            "train/grad_norm": event.grad_norm,
            "train/tokens_per_second": event.tokens / max(event.seconds, 1e-9),
            "train/epoch": event.epoch,
        }
    if isinstance(event, Evaluated):
        return {"eval/loss": event.loss}
    return {}


def _is_installed(needed: Requirement) -> bool:
    try:
        return needed.specifier.contains(version(needed.name), prereleases=True)
    except PackageNotFoundError:
        return False


def _failure(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{name} gets nothing more of this run: {reason}"
