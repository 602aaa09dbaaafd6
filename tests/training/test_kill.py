"""Whatever ends a process: `loralab resume` goes on to the very bytes of a run that never stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loralab.training.checkpoint import latest
from loralab.training.folder import RunFolder

WEIGHTS = "adapter_model.safetensors"
STEPS = 9
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
# Evaluations at 3, 6 and 9, checkpoints at 4 and 8 and wherever the evaluation is the best so far: at each.
EVENTS = [
    *(
        "started",
        "stepped",
        "stepped",
        "stepped",
        "evaluated",
        "saved",
        "stepped",
        "saved",
        "stepped",
        "stepped",
    ),
    *("evaluated", "saved", "stepped", "stepped", "saved", "stepped", "evaluated", "saved", "finished"),
]

Act = dict[str, Any]


def at(event: str, pattern: str, count: int = 1, signals: tuple[int, ...] = (signal.SIGKILL,)) -> Act:
    """Send signals when the interpreter announces `event` with matching arguments."""
    return {"event": event, "pattern": pattern, "count": count, "signals": list(signals)}


def before_event(number: int, *signals: int) -> Act:
    """Send signals as the run is about to write the event of that number, counted from 0."""
    return at("open", r"events\.jsonl", number + 1, signals or (signal.SIGKILL,))


MOMENTS = {
    "before the first step is told": before_event(1),
    "before the first checkpoint": before_event(3),
    "between checkpoints": before_event(9),
    "in the middle of a step": at("call", "^accumulate$", 5),
    "while run.json is written": at("os.rename", r"/run\.json -1"),
    "with a checkpoint half written": at("os.rename", r"\.000004\.\S+\.tmp/adapter_config\.json"),
    "with a checkpoint written but not in place": at("os.rename", r"checkpoints/000004 "),
    "right after a checkpoint appeared": before_event(7),
    "while an old checkpoint is deleted": at("os.remove", r"^(adapter|training)\S+ [1-9]", 2),
    "after the last step": before_event(15),
    "with the adapter half written": at("os.rename", r"/\.adapter\.\S+\.tmp/loralab\.json"),
    "with the adapter written but not in place": at("os.rename", r"/adapter -1"),
    "with the adapter in place but the end not told": before_event(18),
}


ACTIVITIES = {
    "a step": ("call", "^(accumulate|backward|clip_grad_norm_|set_rate|zero_grad)$"),
    "an evaluation": ("call", "^_?evaluate$"),
    "a save": ("open", r"checkpoints/\.\d+\."),
    # How often run.json is written depends on the clock.
    "a rename": ("os.rename", r"/runs/(?!\S*run\.json)"),
    "an answer": ("call", "^(_answers|answer|at)$"),
    "an end of old files": ("os.remove", "."),
    "a line of events": ("open", r"events\.jsonl"),
    "anything in training": ("call", "^(loss|losses|forward|size|weight|save|add|read|write_\\w+)$"),
}


@dataclass
class Bench:
    """Runs commands in forked processes, on one set of data."""

    process: subprocess.Popen[str]
    folder: Path
    files: dict[str, str]

    def command(self, *arguments: str, acts: tuple[Act, ...] = (), tally: bool = False) -> tuple[int, str]:
        """Return the exit code and the output of a command line; its last line is the `tally` of the acts."""
        self.ask(*arguments, acts=acts, tally=tally)
        assert self.process.stdout
        return int(self.process.stdout.readline()), (self.folder / "output.txt").read_text()

    def ask(self, *arguments: str, acts: tuple[Act, ...] = (), tally: bool = False) -> None:
        """Hand a command line over."""
        output = str(self.folder / "output.txt")
        job = {"arguments": arguments, "acts": acts, "output": output, "tally": tally}
        assert self.process.stdin
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()

    def train(self, name: str, *acts: Act, tally: bool = False, **changes: str) -> tuple[int, str]:
        """Train a run with dropout, micro-batches, evaluation and the best checkpoint."""
        settings = {
            **self.files,
            "name": name,
            "r": "4",
            "lora-dropout": "0.1",
            "learning-rate": "0.01",
            "batch-size": "4",
            "micro-batch-size": "2",
            "max-steps": str(STEPS),
            "eval-steps": "3",
            "save-steps": "4",
            "seed": "3",
            "dtype": "float32",
            **{key.replace("_", "-"): value for key, value in changes.items()},
        }
        flags = [word for key, value in settings.items() if value for word in (f"--{key}", value)]
        return self.command("train", *flags, acts=acts, tally=tally)

    def resume(self, name: str, *acts: Act) -> tuple[int, str]:
        """Go on with a run."""
        return self.command("resume", name, "--runs", self.files["runs"], acts=acts)

    def run(self, name: str) -> RunFolder:
        """The folder of a run."""
        return RunFolder(Path(self.files["runs"]) / name)


@pytest.fixture(scope="module")
def bench(
    tmp_path_factory: pytest.TempPathFactory, tiny_dir: Path, train_file: Path, eval_file: Path
) -> Iterator[Bench]:
    """The process to fork from, and an unbroken run called "whole"."""
    folder = tmp_path_factory.mktemp("kill")
    files = {
        "model": str(tiny_dir),
        "data": str(train_file),
        "eval-data": str(eval_file),
        "runs": str(folder / "runs"),
    }
    command = [sys.executable, str(Path(__file__).with_name("forked.py"))]
    pipe = subprocess.PIPE
    # A process that has computed on several threads cannot be forked.
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=ONE_THREAD) as process:
        made = Bench(process, folder, files)
        flags = [f"--{key}={value}" for key, value in files.items()]
        made.ask("train", *flags, "--name", "warm-up", "--max-steps", "1")
        code, output = made.train("whole")
        assert code == 0, output
        yield made


def check_same(bench: Bench, name: str, other: str = "whole") -> None:
    """Assert that a run has become the unbroken one: adapter, optimizer, random numbers and all."""
    run, whole = bench.run(name), bench.run(other)
    assert (run.adapter / WEIGHTS).read_bytes() == (whole.adapter / WEIGHTS).read_bytes()
    kept = sorted(path.name for path in whole.checkpoints.iterdir())
    assert sorted(path.name for path in run.checkpoints.iterdir()) == kept
    for file in (WEIGHTS, "training.safetensors"):
        theirs = whole.checkpoint(STEPS) / file
        assert (run.checkpoint(STEPS) / file).read_bytes() == theirs.read_bytes()
    assert run.state().state == "finished"
    before, after = (
        {event["step"]: event["loss"] for event in folder.events() if event["event"] == "stepped"}
        for folder in (whole, run)
    )
    assert after == before, "each step's loss, the last time it was told"
    text = (run.path / "events.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == list(run.events())


def test_the_moments_below_are_what_they_say(bench):
    assert [event["event"] for event in bench.run("whole").events()] == EVENTS


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at_any_moment_goes_on_to_the_same_bytes(bench, moment):
    name = f"moment-{list(MOMENTS).index(moment)}"
    code, _ = bench.train(name, MOMENTS[moment])
    assert code == -signal.SIGKILL, "it was not killed"
    run = bench.run(name)
    assert run.state().state == "interrupted"
    if "half" in moment or "not in place" in moment:
        assert [path.name for path in run.path.rglob(".*") if path.suffix == ".tmp"]
    code, output = bench.resume(name)
    assert code == 0, output
    check_same(bench, name)


def test_a_run_killed_again_and_again(bench):
    assert bench.train("often", before_event(9))[0] == -signal.SIGKILL
    for act in (before_event(1), at("os.rename", "checkpoints/000006 "), before_event(7)):
        assert bench.resume("often", act)[0] == -signal.SIGKILL
    code, output = bench.resume("often")
    assert code == 0, output
    check_same(bench, "often")


@pytest.mark.slow
def test_runs_killed_at_random_moments(bench, tmp_path):
    """Twenty of them, over all that a run does; its validation data is split off, and it answers prompts."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the little dog\na red\n")
    settings = {
        "eval_data": "",
        "eval_split": "0.3",
        "sample_prompts": str(prompts),
        "sample_steps": "4",
        "keep_checkpoints": "3",
    }
    nothing = [at(*act, count=10**9) for act in ACTIVITIES.values()]
    code, output = bench.train("whole-split", *nothing, tally=True, **settings)
    assert code == 0, output
    happened = dict(zip(ACTIVITIES, json.loads(output.splitlines()[-1]), strict=True))
    assert all(happened.values()), happened
    chance = random.Random(20)
    for number in range(20):
        activity = list(ACTIVITIES)[number % len(ACTIVITIES)]
        count = chance.randint(1, happened[activity])
        name = f"chance-{number:02d}"
        code, output = bench.train(name, at(*ACTIVITIES[activity], count=count), **settings)
        where = f"{activity}, time {count} of {happened[activity]}"
        assert code == -signal.SIGKILL, where
        if not bench.run(name).path.exists():
            code, output = bench.train(name, **settings)
        elif bench.run(name).state().state != "finished":
            code, output = bench.resume(name)
        assert code in (0, -signal.SIGKILL), f"{where}: {output}"
        check_same(bench, name, "whole-split")


def test_a_start_that_is_killed_leaves_no_run_and_is_simply_tried_again(bench):
    assert bench.train("early", at("os.rename", "/early -1"))[0] == -signal.SIGKILL
    assert not bench.run("early").path.exists()
    assert "early" not in bench.command("runs", "--runs", bench.files["runs"])[1]
    code, output = bench.train("early")
    assert code == 0, output
    check_same(bench, "early")


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name
)
def test_a_first_signal_finishes_the_step_and_saves(bench, number):
    name = number.name
    code, output = bench.train(name, before_event(8, number))
    assert code == 130
    assert f"stopped and saved. Go on with: loralab resume {name} --runs" in output
    assert "Traceback" not in output
    run = bench.run(name)
    assert (run.state().state, run.state().step) == ("interrupted", 5)
    assert latest(run.checkpoints) == run.checkpoint(5)
    assert [event["step"] for event in run.events()][-1] == 5
    code, output = bench.resume(name)
    assert code == 0, output
    assert "going on from step 5" in output
    check_same(bench, name)


@pytest.mark.parametrize(
    "acts",
    [
        (at("call", "^accumulate$", 5, (signal.SIGINT, signal.SIGINT)),),
        (before_event(8, signal.SIGINT), at("os.rename", "checkpoints/000005 ", 1, (signal.SIGINT,))),
    ],
    ids=["in the middle of a step", "while saving"],
)
def test_a_second_ctrl_c_stops_at_once(bench, acts):
    name = f"twice-{len(acts)}"
    code, output = bench.train(name, *acts)
    assert code == 130
    assert "stopped and saved" not in output
    assert "Traceback" not in output
    run = bench.run(name)
    assert run.state().state == "interrupted"
    assert latest(run.checkpoints) == run.checkpoint(4)
    assert bench.resume(name)[0] == 0
    check_same(bench, name)


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_kill_9_from_outside(bench):
    """As a person would: a process of its own, killed in the middle of its steps."""
    common = [
        "--r",
        "4",
        "--lora-dropout",
        "0.1",
        "--batch-size",
        "4",
        "--save-steps",
        "50",
        "--dtype",
        "float32",
    ]
    flags = [word for key, value in bench.files.items() if key != "eval-data" for word in (f"--{key}", value)]
    flags += [*common, "--max-steps", "150"]
    assert bench.command("train", *flags, "--name", "long-whole")[0] == 0
    command = [sys.executable, "-m", "loralab.cli", "train", *flags, "--name", "long"]
    run = bench.run("long")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True, env=ONE_THREAD) as process:
        wait_for(lambda: any(event["step"] > 53 for event in run.events()), process)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert run.state().state == "interrupted"
    assert latest(run.checkpoints) == run.checkpoint(50)
    code, output = bench.resume("long")
    assert code == 0, output
    expected = (bench.run("long-whole").adapter / WEIGHTS).read_bytes()
    assert (run.adapter / WEIGHTS).read_bytes() == expected
