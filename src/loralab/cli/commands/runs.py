"""``loralab runs``."""

import dataclasses
import time
from typing import TYPE_CHECKING, Any

from loralab.cli.output import Output, Screen, duration
from loralab.errors import LoralabError

if TYPE_CHECKING:
    from loralab.training.folder import RunFolder


def command(*, runs: str = "runs", output: Output = Output()) -> None:  # noqa: B008
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


def _row(run: "RunFolder") -> dict[str, Any]:
    """Return what is known of a run; one whose files are damaged is listed so, with the reason."""
    from loralab.training.folder import RunState

    try:
        config, state = run.config(), run.state()
    except LoralabError as error:
        damaged = RunState(state="damaged", note=str(error))
        return {"name": run.name, "model": "", "data": "", **dataclasses.asdict(damaged)}
    return {"name": run.name, "model": config.model, "data": config.data, **dataclasses.asdict(state)}
