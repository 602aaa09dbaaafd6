"""Run by torchrun in each of its processes: trains the runs that a file lists, one behind the other.

A job has the "config" of a new run, or the name to "resume"; "stop", the step at which its first process
closes the run's events; and "out", the file for what came of it.
"""

import json
import sys
from pathlib import Path
from typing import Any

from torch.distributed.tensor import DTensor

from loralab.training.config import check
from loralab.training.events import Evaluated, Stepped
from loralab.training.run import Run
from loralab.training.starting import resume, start


def weights(run: Run) -> dict[str, int]:
    """The numbers of the base's weights: all, and those that lie in this process."""
    frozen = [parameter for parameter in run.model.parameters() if not parameter.requires_grad]
    here = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in frozen)
    return {"all": sum(parameter.numel() for parameter in frozen), "here": here}


def carry_out(job: dict[str, Any]) -> None:
    """Train a run, and write down its course."""
    run = resume(job["resume"], job["runs"]) if "resume" in job else start(check(job["config"]))
    course: dict[str, Any] = {"losses": [], "evaluations": [], "norms": [], "weights": weights(run)}
    events = run.events()
    for event in events:
        if isinstance(event, Stepped):
            course["losses"].append(event.loss)
            course["norms"].append(event.grad_norm)
        elif isinstance(event, Evaluated):
            course["evaluations"].append(event.loss)
        if isinstance(event, Stepped) and event.step == job.get("stop") and run.processes.first:
            events.close()
    if run.processes.first:
        Path(job["out"]).write_text(json.dumps(course), encoding="utf8")


if __name__ == "__main__":
    for listed in json.loads(Path(sys.argv[1]).read_text(encoding="utf8")):
        carry_out(listed)
