"""``loralab change``."""

from typing import Annotated

from cyclopts import Parameter

from loralab.cli.output import Output, Screen
from loralab.errors import ConfigError


def command(
    name: str,
    /,
    *,
    save: Annotated[bool, Parameter(negative=())] = False,
    stop_at_loss: float | None = None,
    runs: str = "runs",
    output: Output = Output(),  # noqa: B008
) -> None:
    """Change what may change in a running run: save a checkpoint now, or end it at another loss.

    Parameters
    ----------
    name
        Name of the run.
    save
        Save a checkpoint after this step.
    stop_at_loss
        End once the smoothed loss of the steps is no higher.
    runs
        Folder that holds the runs.
    """
    from loralab.cli.asking import ask, asked, smoothed

    if not save and stop_at_loss is None:
        raise ConfigError("nothing to change was named; give --save or --stop-at-loss.")
    if stop_at_loss is not None and not stop_at_loss > 0:
        raise ConfigError(f"stop_at_loss is {stop_at_loss}; expected a loss above 0.")
    wishes: dict[str, object] = {}
    said = []
    if save:
        wishes["saves"] = asked(name, runs).saves + 1
        said.append("saves after this step")
    if stop_at_loss is not None:
        wishes["stop_at_loss"] = stop_at_loss
        said.append(f"ends at a smoothed loss of {stop_at_loss:g}{smoothed(name, runs, stop_at_loss)}")
    ask(name, runs, Screen(output), " and ".join(said), **wishes)
