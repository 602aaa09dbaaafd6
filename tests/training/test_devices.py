"""A run in two processes is the run in one, to rounding; they agree on everything, and end together."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loralab.errors import ConfigError
from loralab.training.config import RunConfig
from loralab.training.control import Wishes
from loralab.training.devices import ALONE, Processes, SharedWishes, join
from loralab.training.events import Evaluated, Stepped
from loralab.training.folder import RunFolder
from loralab.training.run import Run
from loralab.training.sharding import check_shard
from loralab.training.starting import resume, start

CPU = torch.device("cpu")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
ACCELERATE += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
LORALAB = ["-m", "loralab.cli"]
LIMIT = 240
SPLIT = {"shard": True}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"sample_prompts": "prompts.txt", "sample_steps": 6},
    "accumulated": {"micro_batch_size": 1},
    "smaller batch than processes": {"batch_size": 1},
    "bfloat16": {"dtype": "bfloat16"},
    "rows": {"activation_checkpointing": True, "micro_batch_size": 2},
    "full": {"full": True, "learning_rate": 1e-3, "r": RunConfig().r},
    "split": {**SPLIT, "sample_prompts": "prompts.txt", "sample_steps": 6},
    "split, accumulated": {**SPLIT, "micro_batch_size": 1},
    "split, smaller batch": {**SPLIT, "batch_size": 1},
    "split, bfloat16": {**SPLIT, "dtype": "bfloat16"},
    "split, computed again": {**SPLIT, "activation_checkpointing": True},
    "split, DoRA": {**SPLIT, "use_dora": True},
    "split, last layer": {**SPLIT, "last_layers": 1, "target_modules": "all-linear"},
}


def name_of(kind: str) -> str:
    return re.sub(r"\W+", "-", kind)


def course_of(run: Run) -> dict[str, Any]:
    """Train a run here, and return its course as `launched.py` writes it."""
    course: dict[str, Any] = {"losses": [], "evaluations": [], "norms": []}
    for event in run.events():
        if isinstance(event, Stepped):
            course["losses"].append(event.loss)
            course["norms"].append(event.grad_norm)
        elif isinstance(event, Evaluated):
            course["evaluations"].append(event.loss)
    return course


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def launch(jobs: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Carry out jobs in two processes, and return what came of each."""
    for number, job in enumerate(jobs):
        job["out"] = str(folder / f"out{number}.json")
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf8")
    script = str(Path(__file__).with_name("launched.py"))
    done = subprocess.run(
        [*TORCHRUN, script, str(folder / "jobs.json")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(Path(job["out"]).read_text(encoding="utf8")) for job in jobs]


@pytest.fixture(scope="module")
def values(
    tmp_path_factory: pytest.TempPathFactory, tiny_dir: Path, train_file: Path, eval_file: Path
) -> Iterator[dict[str, Any]]:
    """The settings of a small run, with everything but its name, in a folder that has its prompts."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("What do bees make?\n", encoding="utf8")
    before = Path.cwd()
    os.chdir(prompts.parent)
    yield {
        "model": str(tiny_dir),
        "data": str(train_file),
        "eval_data": str(eval_file),
        "runs": str(tmp_path_factory.mktemp("two")),
        "dtype": "float32",
        "r": 4,
        "learning_rate": 1e-2,
        "batch_size": 4,
        "max_steps": 6,
        "eval_steps": 3,
        "keep_best": False,
    }
    os.chdir(before)


@pytest.fixture(scope="module")
def in_two(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The courses of all kinds of runs in two processes."""
    jobs = [{"config": {**values, **own, "name": name_of(kind)}} for kind, own in KINDS.items()]
    return dict(zip(KINDS, launch(jobs, tmp_path_factory.mktemp("jobs")), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_make_the_run_of_one(
    kind: str, in_two: dict[str, Any], values: dict[str, Any], tmp_path: Path
) -> None:
    own = {**KINDS[kind], "shard": False}
    run = start(RunConfig(**{**values, **own, "name": "one", "runs": str(tmp_path)}))
    expected, found = course_of(run), in_two[kind]
    rough = own.get("dtype") == "bfloat16"
    for what in ("losses", "evaluations"):
        assert len(found[what]) == len(expected[what]) > 0
        assert found[what] == pytest.approx(expected[what], abs=2e-2 if rough else 1e-5), what
    folder = RunFolder(Path(values["runs"]) / name_of(kind))
    result = "model" if own.get("full") else "adapter"
    one, two = (
        load_file(next((path / result).glob("*model.safetensors"))) for path in (run.folder.path, folder.path)
    )
    assert two.keys() == one.keys()
    for key, tensor in two.items():
        assert (tensor.dtype, tensor.shape) == (one[key].dtype, one[key].shape)
        difference = float((tensor.float() - one[key].float()).abs().max())
        assert difference < (5e-2 if rough else 1e-3), key
    for way in (run.folder, folder):
        samples = [event for event in way.events() if event["event"] == "sampled"]
        assert len(samples) == (2 if "sample_prompts" in own else 0)
    assert {path.name for path in folder.path.iterdir()} == {path.name for path in run.folder.path.iterdir()}


@pytest.mark.slow
def test_a_split_base_lies_on_both(in_two: dict[str, Any]) -> None:
    for kind, course in in_two.items():
        share = course["weights"]["here"] / max(1, course["weights"]["all"])
        assert (share < 0.9) if kind.startswith("split") else share in (0, 1), kind


@pytest.mark.slow
def test_an_interrupted_run_goes_on_in_two_processes_and_in_one(
    values: dict[str, Any], tmp_path: Path
) -> None:
    own = {"lora_dropout": 0.3, "runs": str(tmp_path), "seed": 3}
    config = {**values, **own}
    jobs: list[dict[str, Any]] = [
        {"config": {**config, "name": "whole"}},
        {"config": {**config, "name": "stopped"}, "stop": 4},
        {"resume": "stopped", "runs": str(tmp_path)},
        {"config": {**config, "name": "split", **SPLIT}, "stop": 2},
        {"config": {**config, "name": "dry", "lora_dropout": 0.0}, "stop": 2},
    ]
    whole, stopped, rest, _, dry = launch(jobs, tmp_path)
    # In two: to the bit.
    assert stopped["losses"] + rest["losses"] == whole["losses"]
    files = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()
    # In one: the same but for dropout's masks.
    assert RunFolder(tmp_path / "split").state().state == "interrupted"
    assert len(course_of(resume("split", str(tmp_path)))["losses"]) == 4
    here = start(RunConfig(**{**config, "name": "here", "lora_dropout": 0.0}))
    expected = course_of(here)["losses"]
    found = dry["losses"] + course_of(resume("dry", str(tmp_path)))["losses"]
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.fixture
def write_toml(values: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Return a file with the settings of a run, with what the test changes."""

    def write(**changes: Any) -> Path:
        config = RunConfig(**{**values, "name": "run", "runs": str(tmp_path / "runs"), **changes})
        (tmp_path / "run.toml").write_text(config.to_toml(), encoding="utf8")
        return tmp_path / "run.toml"

    return write


def ours(text: str) -> list[str]:
    """What loralab itself wrote: neither torchrun nor accelerate."""
    return [line for line in text.splitlines() if line.startswith("loralab: ")]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_launchers_run_the_command(launcher: list[str], write_toml: Callable[..., Path]) -> None:
    words = [*launcher, *LORALAB, "train", str(write_toml(max_steps=2)), "--plain"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines.count("processes: 2, by gloo") == 1
    assert len([line for line in lines if line.startswith("step 2/2  loss")]) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, r"bad\.jsonl:2: "),
        ({"shard": True, "compile": True}, "shard and compile do not go together"),
    ],
    ids=["bad data", "settings that clash"],
)
def test_a_mistake_is_told_once(
    changes: dict[str, Any], said: str, write_toml: Callable[..., Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 1}\n', encoding="utf8")
    toml = write_toml(**({"data": str(bad)} | changes))
    words = [*TORCHRUN, *LORALAB, "train", str(toml)]
    began = time.monotonic()
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=LIMIT)
    assert time.monotonic() - began < LIMIT / 2
    told = ours(done.stderr)
    assert len(told) == 1, done.stderr
    assert re.search(said, told[0]), told
    assert done.returncode != 0
    assert re.search(r"exitcode +: 2 ", done.stderr), done.stderr
    assert not (tmp_path / "runs" / "run").exists()


@pytest.fixture
def going(write_toml: Callable[..., Path]) -> Iterator[Callable[..., "Going"]]:
    """Return what starts a long run in two processes; it is killed in the end."""
    begun: list[Going] = []

    def begin(**changes: Any) -> Going:
        begun.append(Going(write_toml(max_steps=100_000, save_steps=50, eval_steps=50_000, **changes)))
        return begun[-1]

    yield begin
    for run in begun:
        run.end()


class Going:
    """A long run in two processes."""

    def __init__(self, toml: Path) -> None:
        self.folder = RunFolder(toml.parent / "runs" / "run")
        words = [*TORCHRUN, *LORALAB, "train", str(toml)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(words, env=environment(), text=True, start_new_session=True, **pipes)

    def wait_for(self, steps: int) -> None:
        """Wait until so many steps are made."""
        deadline = time.monotonic() + LIMIT
        while sum(event["event"] == "stepped" for event in self.folder.events()) < steps:
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def workers(self) -> list[int]:
        """The processes that train, the first one first."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        numbers = {}
        for child in children:
            facts = Path(f"/proc/{child}/environ").read_text().split("\0")
            numbers.update({int(f[5:]): int(child) for f in facts if f.startswith("RANK=")})
        return [numbers[number] for number in sorted(numbers)]

    def end(self) -> None:
        """Kill what is left of it."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize(("killed", "changes"), [(0, {}), (1, SPLIT)])
def test_a_process_that_is_killed_ends_the_other(
    killed: int, changes: dict[str, Any], going: Callable[..., Going]
) -> None:
    run = going(**changes)
    run.wait_for(60)
    workers = run.workers()
    os.kill(workers[killed], signal.SIGKILL)
    _, errors = run.process.communicate(timeout=90)
    assert run.process.returncode != 0
    assert not Path(f"/proc/{workers[1 - killed]}").exists()
    if killed:
        assert len(ours(errors)) == 1, errors
        assert "another process of this run has ended" in ours(errors)[0]
    assert run.folder.state().state in ("failed", "interrupted")
    assert resume("run", str(run.folder.path.parent)).checkpoint is not None


@pytest.mark.slow
@pytest.mark.parametrize(("how", "changes"), [("Ctrl-C", SPLIT), ("wish", {})])
def test_a_stop_ends_both_at_one_step(how: str, changes: dict[str, Any], going: Callable[..., Going]) -> None:
    run = going(**changes)
    run.wait_for(20)
    if how == "Ctrl-C":
        os.killpg(run.process.pid, signal.SIGINT)
    else:
        (run.folder.path / "control.json").write_text('{"stop": true}', encoding="utf8")
    output, errors = run.process.communicate(timeout=90)
    assert output.count("stopped and saved. Go on with: loralab resume run") == 1, errors
    assert 'Traceback (most recent call last):\n  File "' not in "".join(ours(errors))
    assert run.folder.state().state == "interrupted"
    last = [event["step"] for event in run.folder.events() if event["event"] == "stepped"][-1]
    assert (run.folder.checkpoint(last) / "training.json").is_file()


# without other processes


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("in_step", [False, True])
def test_every_example_is_in_one_pass_of_one_process(count: int, in_step: bool) -> None:
    sizes = [9, 1, 1, 5, 3, 2, 7]
    each = [
        Processes(number, count, in_step=in_step).passes(sizes, lambda size: size, 2)
        for number in range(count)
    ]
    parts = [part for passes in each for part, counts in passes if counts]
    assert sorted(size for part in parts for size in part) == sorted(sizes)
    assert max(map(len, parts)) <= 2
    fillers = [part for passes in each for part, counts in passes if not counts]
    if in_step:
        assert len({len(passes) for passes in each}) == 1
    else:
        assert not fillers
    loads = [sum(sum(part) for part, counts in passes if counts) for passes in each]
    assert max(loads) <= max(9, sum(sizes) / count + min(sizes))


def test_alone_the_batch_is_cut_in_its_order() -> None:
    assert ALONE.passes([3, 1, 2], lambda size: size, 2) == [([3, 1], True), ([2], True)]
    assert join(CPU) is ALONE
    assert ALONE.total([1.5]) == [1.5]


def test_no_wish_is_lost_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    wishes = Wishes(pause=True, saves=3, stop_at_loss=0.25)
    assert {field.name for field in fields(Wishes)} == {"stop", "pause", "saves", "stop_at_loss"}
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, src: None)
    shared = SharedWishes(Processes(0, 2), lambda: wishes)
    assert shared() == wishes
    shared.dismiss()
    assert shared().stop


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed is not used: set shard = true"),
        ("ACCELERATE_USE_FSDP", "true", "set shard = true"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "dtype, a setting of the run"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "set compile = true"),
    ],
)
def test_what_accelerate_is_not_to_do_is_refused(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        join(CPU)


@pytest.mark.parametrize(
    "changes", [{"full": True}, {"quantize": "nf4"}, {"compile": True}, {"init": "pissa"}]
)
def test_what_does_not_go_with_a_split_base_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"shard and {next(iter(changes))} do not go together"):
        check_shard(RunConfig(shard=True, **changes))


def test_one_process_cannot_split(settings: Callable[..., RunConfig]) -> None:
    with pytest.raises(ConfigError, match="there is one: start it with torchrun"):
        start(settings(shard=True))
