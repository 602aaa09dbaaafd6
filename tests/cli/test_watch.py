"""`loralab watch` and `loralab report`, on runs that are over and on one that is not."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loralab.training.events import Evaluated, Finished, Noted, Paused, Started, Stepped
from loralab.training.folder import RunFolder, RunState


@contextmanager
def watching(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``loralab watch`` in a process of its own."""
    command = [sys.executable, "-u", "-m", "loralab.cli", "watch", *arguments]
    # It begins at once, as it needs no torch.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    """Read its lines until one has these words."""
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return
    pytest.fail(f"it ended without {words!r}")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run of ten steps that has made two."""
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(Path("runs/poet"))
    folder.path.mkdir(parents=True)
    (folder.path / "config.toml").write_text('name = "poet"\nmodel = "tiny"\ndata = "x.jsonl"\n')
    (folder.path / "plan.json").write_text('{"steps": 10}')
    folder.append(Started(0, 10, 9, 10, 100, "rows"))
    for step in (1, 2):
        folder.append(stepped(step))
    return folder


def stepped(step: int) -> Stepped:
    return Stepped(step, 3.0, 1e-3, 0.5, 64, 0.5, step / 3, 2.5)


def test_a_finished_run_is_shown_as_it_went(bench, loralab):
    result = loralab("watch", "poet", "--plain")
    assert (result.code, result.err) == (0, "")
    for words in ("step 1/4  loss ", "step 4/4  loss ", "step 4/4  eval loss "):
        assert words in result.out
    assert result.out.endswith("run 'poet' is finished at step 4/4\n")


def test_json_is_what_train_prints(bench, loralab):
    written = [json.loads(line) for line in Path("runs/poet/events.jsonl").read_text().splitlines()]
    for row in written:
        del row["time"]
    assert loralab("watch", "poet", "--json").lines == written


def test_a_running_run_is_followed_to_its_end(run: RunFolder) -> None:
    with run.hold(), watching("poet") as process:
        run.write_state(RunState(step=2, steps=10))
        wait_for(process, "step 2/10  loss 2.500")
        run.append(stepped(3))
        with (run.path / "events.jsonl").open("a") as stream:
            line = json.dumps({"time": time.time(), **Evaluated(3, 1.25, 9, best=True).to_dict()})
            stream.write(line[:40])
            stream.flush()
            time.sleep(0.5)
            stream.write(line[40:] + "\n")
        wait_for(process, "step 3/10  eval loss 1.2500 (best so far)")
        run.append(Paused(3))
        wait_for(process, "paused at step 3")
        run.append(Noted(4, "wandb is gone"))
        wait_for(process, "warning: wandb is gone")
        run.append(Finished(10, "runs/poet/adapter", 10, None, None, 1.0, 1))
        run.write_state(RunState(state="finished", step=10, steps=10))
        wait_for(process, "run 'poet' is finished at step 10/10")
        assert process.wait(10) == 0


def test_evaluations_that_a_run_has_still_to_make_are_counted(run: RunFolder, loralab) -> None:
    """Ten steps of half a second, evaluated every four: half a minute each time, as the first one took."""
    with (run.path / "config.toml").open("a") as stream:
        stream.write('eval_data = "e.jsonl"\n')
    (run.path / "plan.json").write_text('{"steps": 10, "eval_steps": 4, "sample_steps": 4}')
    (run.path / "events.jsonl").unlink()
    events = [(0.0, Started(0, 10, 9, 10, 100, "rows"))]
    events += [(0.5 * step + 30.0 * (step >= 4), stepped(step)) for step in range(1, 7)]
    lines = (json.dumps({"time": 1e9 + at, **event.to_dict()}) for at, event in events)
    (run.path / "events.jsonl").write_text("\n".join(lines) + "\n")
    run.write_state(RunState(step=6, steps=10))
    shown = loralab("watch", "poet", "--plain").out.splitlines()
    left = {line.split()[1]: line.rpartition("  ")[2] for line in shown if line.endswith(" left")}
    assert left["3/10"] == "3.5 s left", "nothing is known of an evaluation yet"
    assert left["6/10"] == "1 min 2 s left", "of four steps, and of evaluations at 8 and 10"


def test_ctrl_c_leaves_and_the_run_goes_on(run: RunFolder) -> None:
    with run.hold(), watching() as process:
        run.write_state(RunState(step=2, steps=10))
        os.utime(run.path)
        wait_for(process, "step 2/10")
        process.send_signal(signal.SIGINT)
        wait_for(process, "left; run 'poet' goes on. Stop it with: loralab stop poet")
        assert process.wait(10) == 0
        assert run.state().state == "running"
        assert not (run.path / "control.json").exists()


def test_runs_that_ended_otherwise(run: RunFolder, loralab) -> None:
    run.write_state(RunState(step=2, steps=10))
    result = loralab("watch", "poet", "--plain")
    assert "run 'poet' is interrupted at step 2/10; go on with: loralab resume poet\n" in result.out
    run.write_state(RunState(state="failed", step=2, steps=10, note="no space left"))
    result = loralab("watch", "poet", "--plain")
    assert (result.code, result.err) == (2, "loralab: run 'poet' failed: no space left\n")


def test_without_a_name_one_has_to_be_running(run: RunFolder, loralab) -> None:
    assert loralab("watch").err == "loralab: no run in runs is running.\n"
    assert "there is no run 'poem' in runs" in loralab("watch", "poem").err


def test_watch_needs_no_torch(run: RunFolder) -> None:
    code = (
        "import sys; from loralab.cli.main import main; main(['watch', 'poet']);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_report_writes_the_page(bench, loralab):
    for path in Path("runs/poet").glob("report*"):
        path.unlink()  # as where the run was killed between its last event and its report
    result = loralab("report", "poet", "--json")
    page = Path(result.json["report"])
    assert page == Path("runs/poet/report.md")
    assert "| validation data |" in page.read_text()
    assert "there is no run 'poem'" in loralab("report", "poem").err
