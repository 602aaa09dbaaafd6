"""``loralab runs``, and ``loralab runs diff``."""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from loralab.cli.output import Output, Screen, duration
from loralab.cli.writing import check_picture
from loralab.errors import ConfigError, LoralabError

if TYPE_CHECKING:
    from loralab.training.folder import RunFolder

command = App(help="List the runs and what they are doing, or compare some of them.")


@command.default
def show(*, runs: str = "runs", output: Output = Output()) -> None:  # noqa: B008
    """List the runs and what they are doing.

    Parameters
    ----------
    runs
        Folder that holds the runs.
    """
    from loralab.training.folder import list_runs

    screen = Screen(output)
    found = [_row(run) for run in list_runs(runs)]
    screen.data(found)
    if not found:
        screen.say(f"no runs in {runs}. Start one with: loralab train --model demo --data FILE")
        return
    screen.table(
        ("name", "state", "steps", "loss", "base", "last sign"),
        [
            (
                row["name"],
                row["state"],
                f"{row['step']}/{row['steps']}",
                "" if row["loss"] is None else f"{row['loss']:.4f}",
                row["model"],
                f"{duration(max(0.0, time.time() - row['heartbeat']))} ago" if row["heartbeat"] else "",
            )
            for row in found
        ],
    )
    for row in found:
        if row["note"]:
            screen.say(f"{row['name']}: {row['note']}")


@command.command
def diff(
    first: str,
    second: str,
    /,
    *more: str,
    plot: Path | None = None,
    runs: str = "runs",
    output: Output = Output(),  # noqa: B008
) -> None:
    """Compare runs: the settings that differ, and the validation losses at the steps that they share.

    Parameters
    ----------
    first
        Name of a run.
    second
        Name of another one.
    more
        Names of more runs.
    plot
        Draw their curves over each other into this file (.png, .svg or .pdf).
    runs
        Folder that holds the runs.
    """
    from loralab.training.folder import find_run
    from loralab.training.history import read_history
    from loralab.training.report.compare import common_losses, differing_settings

    screen = Screen(output)
    check_picture(plot)
    names = (first, second, *more)
    if len(set(names)) < len(names):
        raise ConfigError(f"{', '.join(names)}: a run is named twice.")
    folders = {name: find_run(runs, name) for name in names}
    settings = differing_settings({name: folder.config() for name, folder in folders.items()})
    histories = {name: read_history(folder.events()) for name, folder in folders.items()}
    losses = common_losses(histories)
    screen.data({"settings": settings, "eval_loss": losses})
    if not settings:
        screen.say("the settings are the same.")
    else:
        screen.table(("setting", *names), [(key, *map(_cell, v.values())) for key, v in settings.items()])
    screen.say()
    if losses:
        rows = [(step, *(f"{v:.4f}" for v in values.values())) for step, values in losses.items()]
        screen.table(("eval loss at step", *names), rows)
    else:
        screen.say("there is no step at which all of them were evaluated.")
    if plot:
        from loralab.pictures import save
        from loralab.training.report.curves import overlay_figure

        save(overlay_figure(histories, ", ".join(names)), plot)
        screen.fact("picture", str(plot))


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def _row(run: "RunFolder") -> dict[str, Any]:
    """Return what is known of a run; one whose files are damaged is listed so, with the reason."""
    from loralab.training.folder import RunState

    try:
        config, state = run.config(), run.state()
    except LoralabError as error:
        damaged = RunState(state="damaged", note=str(error))
        return {"name": run.name, "model": "", "data": "", **dataclasses.asdict(damaged)}
    return {"name": run.name, "model": config.model, "data": config.data, **dataclasses.asdict(state)}
