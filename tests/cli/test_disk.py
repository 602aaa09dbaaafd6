"""A disk that is full: the run keeps what it has, and goes on when there is room."""

import os
import re
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loralab.training.checkpoint import complete
from loralab.training.folder import RunFolder

WEIGHTS = "adapter_model.safetensors"
TRAIN = (
    *(
        "train",
        "--model",
        "tiny",
        "--data",
        "train.jsonl",
        "--r",
        "4",
        "--max-steps",
        "6",
        "--save-steps",
        "1",
    ),
    *("--batch-size", "4", "--keep-checkpoints", "6", "--dtype", "float32"),
)
MERGE = ("merge", "--model", "tiny", "--adapter", "poet")
FULL = (
    r"no space left on the disk \(\d+\.\d MB free\); nothing was written there\. Free some space and run the"
)
LIMITED = r"the file would be larger than is allowed \(\d+\.\d MB free\); nothing was written there\."


@pytest.fixture
def disk(bench: Path) -> Iterator[Path]:
    """A file system of 256 kB in memory, which is room for four checkpoints."""
    folder = bench / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(mount("size=256k", folder), capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only, and not here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def mount(options: str, folder: Path) -> list[str]:
    return ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Within the block no file of this process may grow past `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def left_behind(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*") if path.name != ".lock"]


def check_stopped(result, folder: Path, words: str) -> RunFolder:
    """Assert that a run stopped in one line with its checkpoints whole; return it."""
    assert result.code == 2
    assert re.fullmatch(rf"loralab: \S*runs/full/\S+: {words}[^\n]*\n", result.err), result.err
    run = RunFolder(folder / "runs/full")
    assert not run.adapter.exists()
    assert left_behind(folder) == []
    numbered = sorted(run.checkpoints.glob("0*")) if run.checkpoints.exists() else []
    assert complete(run.checkpoints) == numbered
    return run


def test_a_full_disk_stops_a_run_which_goes_on_when_there_is_room(bench, disk, loralab):
    result = loralab(*TRAIN, "--name", "full", "--runs", disk / "runs")
    run = check_stopped(result, disk, FULL)
    assert run.state().state == "failed"
    assert re.search(FULL, run.state().note)
    assert 1 <= len(complete(run.checkpoints)) <= 5
    subprocess.run(mount("remount,size=4m", disk), check=True)
    assert loralab("resume", "full", "--runs", disk / "runs").code == 0
    assert loralab(*TRAIN, "--name", "whole").code == 0
    assert (run.adapter / WEIGHTS).read_bytes() == Path("runs/whole/adapter", WEIGHTS).read_bytes()


def test_a_run_that_finds_the_disk_full_leaves_nothing(disk, loralab):
    (disk / "ballast").write_bytes(b"x" * (256 * 1024 - 4096))
    (disk / "more").touch()
    result = loralab(*TRAIN, "--name", "full", "--runs", disk / "runs")
    assert result.code == 2
    assert re.fullmatch(rf"loralab: \S+: {FULL}[^\n]*\n", result.err), result.err
    assert not (disk / "runs/full").exists()
    assert left_behind(disk) == []


def test_merging_onto_a_full_disk_leaves_nothing(disk, loralab):
    (disk / "ballast").write_bytes(b"x" * (200 * 1024))
    result = loralab(*MERGE, "--out", disk / "merged")
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(rf"loralab: {disk}/merged: {FULL}[^\n]*\n", result.err), result.err
    assert [path.name for path in disk.iterdir()] == ["ballast"]


def test_overwriting_on_a_full_disk_keeps_the_old_model(disk, loralab):
    assert loralab(*MERGE, "--out", disk / "merged").code == 0
    before = {path.name: path.read_bytes() for path in (disk / "merged").iterdir()}
    (disk / "ballast").write_bytes(b"x" * (130 * 1024))
    assert loralab(*MERGE, "--out", disk / "merged", "--overwrite").code == 2
    assert {path.name: path.read_bytes() for path in (disk / "merged").iterdir()} == before


def test_a_limit_on_the_size_of_files(bench, loralab):
    with largest_file(20_000):
        result = loralab(*TRAIN, "--name", "full")
    run = check_stopped(result, bench, LIMITED)
    assert run.state().state == "failed"
    assert complete(run.checkpoints) == []
    assert loralab("resume", "full").code == 0


def test_a_limit_on_the_size_of_files_while_merging(bench, loralab):
    with largest_file(20_000):
        result = loralab(*MERGE, "--out", "merged")
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(rf"loralab: merged: {LIMITED}[^\n]*\n", result.err), result.err
    assert left_behind(bench) == []
    assert not Path("merged").exists()
