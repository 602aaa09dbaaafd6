"""``loralab runs``."""

import dataclasses
import time

from loralab.cli.output import Output, Screen, duration


def command(*, runs: str = "runs", output: Output = Output()) -> None:  # noqa: B008
    """List the runs and what they are doing.

    Parameters
    ----------
    runs
        Folder that holds the runs.
    """
    from loralab.training.folder import list_runs

    screen = Screen(output)
    found = [(run, run.state(), run.config()) for run in list_runs(runs)]
    screen.data(
        [
            {"name": run.name, "model": config.model, "data": config.data, **dataclasses.asdict(state)}
            for run, state, config in found
        ]
    )
    if not found:
        screen.say(f"no runs in {runs}. Start one with: loralab train --model demo --data FILE")
        return
    rows = []
    for run, state, config in found:
        loss = "" if state.loss is None else f"{state.loss:.4f}"
        ago = f"{duration(max(0.0, time.time() - state.heartbeat))} ago" if state.heartbeat else ""
        rows.append((run.name, state.state, f"{state.step}/{state.steps}", loss, config.model, ago))
    screen.table(("name", "state", "steps", "loss", "base", "last sign"), rows)
