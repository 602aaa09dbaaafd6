"""What the commands say to a run that another process trains."""

from loralab.cli.output import Screen
from loralab.errors import ConfigError
from loralab.training.control import Control, Wishes
from loralab.training.folder import RunFolder, find_run
from loralab.training.history import read_history
from loralab.training.smoothing import SETTLED

__all__ = ["ask", "asked", "smoothed"]


def asked(name: str, runs: str) -> Wishes:
    """Return what has been asked of a run. Raises as `ask`."""
    return Control(_running(name, runs).path).read()


def smoothed(name: str, runs: str, goal: float) -> str:
    """Return what a run's smoothed loss is, and when the run ends where that is the goal. Raises as `ask`."""
    steps = read_history(_running(name, runs).events()).steps
    if not steps:
        return ""
    last = steps[-1]
    now = f"; it is {last.smoothed:.3f} now"
    if last.smoothed > goal:
        return now
    left = SETTLED - last.step
    return f"{now}, so the run ends with {f'step {SETTLED}' if left > 1 else 'the next step'}"


def ask(name: str, runs: str, screen: Screen, what: str, **wishes: object) -> None:
    """Ask something of a running run, and say what it will do.

    Raises:
        ConfigError: there is no such run, or it is not running.
    """
    folder = _running(name, runs)
    Control(folder.path).ask(**wishes)
    screen.data({"run": name, **wishes})
    screen.say(f"run {name!r} {what}.")


def _running(name: str, runs: str) -> RunFolder:
    folder = find_run(runs, name)
    state = folder.state()
    if not state.alive and not state.started:
        raise ConfigError(f"run {name!r} has not begun yet: it is still loading, or was stopped before.")
    if not state.alive:
        raise ConfigError(f"run {name!r} is not running: it is {state.state}.")
    return folder
