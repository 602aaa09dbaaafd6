"""`loralab runs diff`: settings that differ, losses at common steps, curves over each other."""

from pathlib import Path

import pytest

from loralab.training.config import RunConfig
from loralab.training.events import Evaluated, Started, Stepped
from loralab.training.folder import RunFolder


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a, b and c; a and b are evaluated at two common steps, c at none."""
    monkeypatch.chdir(tmp_path)
    for name, r, every, lowest in (("a", 4, 2, 1.0), ("b", 8, 1, 0.5), ("c", 8, 9, 0.0)):
        folder = RunFolder(Path("runs") / name)
        folder.path.mkdir(parents=True)
        config = RunConfig(name=name, model="tiny", data="x.jsonl", r=r, eval_data="y.jsonl")
        (folder.path / "config.toml").write_text(config.to_toml())
        folder.append(Started(0, 4, 9, 10, 100, "rows"))
        for step in range(1, 5):
            folder.append(Stepped(step, 3 / step, 1e-3, 0.5, 64, 0.5, step / 3))
            if step % every == 0:
                folder.append(Evaluated(step, lowest + 1 / step, 9, best=True))


def test_a_table_of_what_differs(three, loralab):
    result = loralab("runs", "diff", "a", "b", "--plain")
    assert (result.code, result.err) == (0, "")
    assert result.out == (
        "setting\ta\tb\nr\t4\t8\n\neval loss at step\ta\tb\n2\t1.5000\t1.0000\n4\t1.2500\t0.7500\n"
    )


def test_the_same_as_json(three, loralab):
    assert loralab("runs", "diff", "a", "b", "--json").json == {
        "settings": {"r": {"a": 4, "b": 8}},
        "eval_loss": {"2": {"a": 1.5, "b": 1.0}, "4": {"a": 1.25, "b": 0.75}},
    }


def test_nothing_that_differs_or_is_common_is_said(three, loralab):
    result = loralab("runs", "diff", "b", "c", "--plain")
    assert (
        result.out == "the settings are the same.\n\nthere is no step at which all of them were evaluated.\n"
    )


def test_curves_of_three_runs(three, loralab):
    pytest.importorskip("matplotlib", reason="drawing needs matplotlib, which is in the extra 'plot'")
    result = loralab("runs", "diff", "a", "b", "c", "--plot", "curves.svg", "--plain")
    assert result.code == 0, result.err
    assert "picture: curves.svg\n" in result.out
    drawn = Path("curves.svg").read_bytes()
    loralab("runs", "diff", "a", "b", "c", "--plot", "curves.svg")
    assert Path("curves.svg").read_bytes() == drawn


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a", "a"), "a, a: a run is named twice."),
        (("a", "bb"), "there is no run 'bb' in runs; runs there: a, b, c."),
        (("a", "b", "--plot", "x.gif"), "must end in .png, .svg or .pdf"),
        (("a",), "b|second|SECOND"),
    ],
)
def test_mistakes(three, loralab, arguments: tuple[str, ...], words: str):
    result = loralab("runs", "diff", *arguments)
    assert result.code == 2
    assert any(word in result.err for word in words.split("|"))


def test_runs_still_lists(three, loralab):
    assert [row["name"] for row in loralab("runs", "--json").json] == ["a", "b", "c"]
