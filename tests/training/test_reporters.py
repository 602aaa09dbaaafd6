"""Reporters: what they write can be read, going on doubles nothing, a failing one costs no run."""

import csv
import dataclasses
import json
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from loralab.errors import ConfigError
from loralab.training import reporters
from loralab.training.config import RunConfig
from loralab.training.events import Evaluated, Event, Finished, Sampled, Started, Stepped
from loralab.training.folder import RunFolder
from loralab.training.reporters import REGISTRY, Reporters, check_reporters, numbers
from loralab.training.smoothing import smooth


def course(first: int, last: int, loss: float = 5.0) -> Iterator[Event]:
    """The events of the steps behind `first` up to `last`; every second one is evaluated."""
    yield Started(first, 6, 10, 100, 1000, "rows")
    for step in range(first + 1, last + 1):
        smoothed = smooth(loss - n / 2 for n in range(1, step + 1))[-1]
        yield Stepped(step, loss - step / 2, 1e-3, 0.5, 64, 0.5, step / 3, smoothed)
        if step % 2 == 0:
            yield Evaluated(step, loss - step / 3, 30, best=True)
            yield Sampled(step, "Where?", f"here, {step}")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run's folder, without anything in it."""
    path = tmp_path / "runs" / "poet"
    path.mkdir(parents=True)
    return RunFolder(path)


@pytest.fixture
def report(folder: RunFolder) -> Callable[..., list[str]]:
    """Hand events to reporters as a run does: into the folder first."""

    def hand_on(names: str, events: Iterator[Event], *, close: bool = True) -> list[str]:
        found = Reporters(folder, RunConfig(name="poet", report_to=names))
        notes = []
        for event in events:
            folder.append(event)
            notes += found.add(event)
        return notes + (found.close() if close else [])

    return hand_on


def rows_of(folder: RunFolder) -> list[dict[str, str]]:
    with (folder.path / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_csv_has_a_row_a_step(folder: RunFolder, report: Callable[..., list[str]]) -> None:
    assert report("csv", course(0, 5)) == []
    rows = rows_of(folder)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert [float(row["loss"]) for row in rows] == [4.5, 4.0, 3.5, 3.0, 2.5]
    assert [float(row["smoothed_loss"]) for row in rows] == smooth([4.5, 4.0, 3.5, 3.0, 2.5])
    assert [row["eval_loss"] for row in rows] == ["", str(5 - 2 / 3), "", str(5 - 4 / 3), ""]


def test_csv_after_a_crash_is_that_of_an_unbroken_run(
    folder: RunFolder, report: Callable[..., list[str]]
) -> None:
    report("csv", course(0, 6))
    unbroken = (folder.path / "metrics.csv").read_bytes()
    for left in folder.path.iterdir():
        left.unlink()
    report("csv", course(0, 5), close=False)
    with (folder.path / "metrics.csv").open("a") as stream:
        stream.write("5,1.6,2.")
    report("csv", course(2, 3), close=False)
    report("csv", course(2, 6))
    assert (folder.path / "metrics.csv").read_bytes() == unbroken


def test_tensorboard_files_have_each_step_once(folder: RunFolder, report: Callable[..., list[str]]) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is in the extra 'report'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert report("tensorboard", course(0, 5)) == []
    assert report("tensorboard", course(2, 6)) == []
    found = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [(n, 5 - n / 2) for n in range(1, 7)]
    assert [e.step for e in found.Scalars("eval/loss")] == [2, 4, 6]
    wanted = {name for event in course(0, 6) for name in numbers(event)}
    assert set(found.Tags()["scalars"]) == wanted
    samples = found.Tensors("samples/Where?/text_summary")
    assert b"here, 4" in samples[1].tensor_proto.string_val[0]


def records_of(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: in blocks of 32 kB, pieces behind a checksum, a length and a type."""
    data, place, record = path.read_bytes(), 7, b""
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def losses_of(path: Path) -> dict[int, float]:
    """The losses in a .wandb file, by step."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for data in records_of(path):
        history = Record.FromString(data).history
        values = {item.key or ".".join(item.nested_key): item.value_json for item in history.item}
        if "train/loss" in values:
            found[json.loads(values["_step"])] = json.loads(values["train/loss"])
    return found


def test_wandb_writes_an_offline_run(
    folder: RunFolder, report: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is in the extra 'report'")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert report("wandb", course(0, 5)) == []
    (first,) = (folder.path / "wandb").glob("offline-run-*/*.wandb")
    assert losses_of(first) == {n: 5 - n / 2 for n in range(1, 6)}
    assert report("wandb", course(2, 6)) == []
    (second,) = {*(folder.path / "wandb").glob("offline-run-*/*.wandb")} - {first}
    assert losses_of(second) == {6: 2.0}
    assert first.name == second.name, "another id would be another run"


def test_trackio_has_each_step_once(
    folder: RunFolder,
    report: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trackio = pytest.importorskip("trackio", reason="trackio is not among the packages that tests install")
    if Version(version("trackio")) < Version("0.43"):
        pytest.skip("this trackio is older than the one that is needed")
    from trackio import sqlite_storage, utils

    for module in (utils, sqlite_storage, trackio):
        monkeypatch.setattr(module, "TRACKIO_DIR", folder.path.parent / "trackio")
    assert report("trackio", course(0, 5)) == []
    assert report("trackio", course(2, 6)) == []
    rows = sqlite_storage.SQLiteStorage.get_logs("loralab", "poet")
    assert {row["step"]: row["train/loss"] for row in rows if "train/loss" in row} == {
        n: 5 - n / 2 for n in range(1, 7)
    }
    assert len([row for row in rows if "train/loss" in row]) == 6
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", REGISTRY.names)
def test_a_reporter_has_its_parts(name: str) -> None:
    entry = REGISTRY.get(name)
    assert isinstance(entry.NEEDS, str)
    for part in ("__init__", "add", "close"):
        assert callable(getattr(entry.Reporter, part))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("tensorbord", "unknown reporter 'tensorbord'.*Did you mean 'tensorboard'"),
        ("csv, csv", "expected each reporter once"),
    ],
)
def test_a_wrong_name_is_refused(names: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_reporters(names)


def test_a_package_that_is_missing_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for needs in ("loralab-no-such-package>=2", "pytest>=1000"):
        monkeypatch.setattr(REGISTRY.get("wandb"), "NEEDS", needs)
        with pytest.raises(ConfigError, match=f"pip install '{needs}'"):
            check_reporters("csv, wandb")


@dataclasses.dataclass
class Failing:
    """A reporter whose place goes away at the third step."""

    folder: Any
    config: Any

    def add(self, event: Event) -> None:
        if event.step == 3:
            raise ConnectionError("network\n is gone")

    def close(self) -> None:
        raise AssertionError("one that failed is not closed")


def test_one_that_fails_is_reported_once_and_the_others_go_on(
    folder: RunFolder, report: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(REGISTRY.get("tensorboard"), "Reporter", Failing)
    notes = report("csv, tensorboard", course(0, 6))
    assert notes == ["tensorboard gets nothing more of this run: network is gone"]
    assert len(rows_of(folder)) == 6


def test_the_last_row_is_there_when_the_run_is_finished(folder: RunFolder) -> None:
    found = Reporters(folder, RunConfig(report_to="csv"))
    for event in (*course(0, 2), Finished(2, "adapter", 2, 3.0, 2.0, 1.0, 1)):
        folder.append(event)
        found.add(event)
    found.close()
    assert [row["step"] for row in rows_of(folder)] == ["1", "2"]
    assert reporters.numbers(Finished(2, "adapter", 2, 3.0, 2.0, 1.0, 1)) == {}
