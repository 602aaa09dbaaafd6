"""The commands of the adapter algebra, as a person types them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from loralab.adapters import read_adapter, write_adapter
from loralab.adapters.habits import Habits, read_habits, write_habits
from loralab.cli.main import main
from loralab.core.adapter import Adapter

MakeAdapter = Callable[..., Adapter]
Run = Callable[..., str]
QUERY = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in an empty folder; return what it printed, or what it refused."""
    monkeypatch.chdir(tmp_path)

    def loralab(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(words)
        printed = capsys.readouterr()
        assert (end.value.code or 0) == code, printed.err
        return printed.err if code else printed.out

    return loralab


@pytest.fixture
def folders(tmp_path: Path, make_adapter: MakeAdapter) -> None:
    """Two adapters for a small base, "one" and "two"; the first was trained in a template."""
    shapes = {QUERY: (24, 24), "model.layers.1.mlp.up_proj": (36, 24)}
    for seed, name in enumerate(("one", "two")):
        settings = {"base_model_name_or_path": "base", "target_modules": sorted(shapes)}
        adapter = make_adapter(shapes, seed=seed, task_type="CAUSAL_LM", **settings)
        write_adapter(adapter, tmp_path / name)
    write_habits(tmp_path / "one", Habits("alpaca", "alpaca"))
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4)).save_pretrained(tmp_path / "base")


@pytest.mark.usefixtures("folders")
def test_show_resize_and_compare(run: Run) -> None:
    shown = json.loads(run("show", "one", "--plot", "s.png", "--json"))
    assert shown["modules"][0]["in"] == 24
    assert len(shown["modules"][0]["spectrum"]) == 4
    assert Path("s.png").read_bytes().startswith(b"\x89PNG")
    assert "must end in .png, .svg or .pdf" in run("show", "no such adapter", "--plot", "s.jpg", code=2)
    assert "of random" not in run("resize", "one", "--r", "2", "--out", "small")
    assert read_adapter("small").config.r == 2
    assert read_habits(Path("small")) == Habits("alpaca", "alpaca")
    assert "small exists already" in run("resize", "one", "--r", "2", "--out", "small", code=2)
    run("resize", "one", "--energy", "0.5", "--out", "small", "--overwrite")
    assert "give exactly one of r, energy" in run("resize", "one", "--out", "new", code=2)
    compared = json.loads(run("compare", "one", "small", "--plot", "c.svg", "--json"))
    assert "<svg" in Path("c.svg").read_text()
    assert compared["layers"][0]["columns"]["overlap"] == pytest.approx(1)
    assert "cosine: +" in run("compare", "one", "small")


@pytest.mark.usefixtures("folders")
def test_a_picture_without_matplotlib_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loralab.cli.writing.importlib.util.find_spec", lambda name: None)
    told = run("show", "one", "--plot", "s.png", code=2)
    assert "pip install 'loralab[plot]'" in told
    assert told.count("\n") == 1
    assert "module\tr" in run("show", "one")


@pytest.mark.parametrize("command", ["show one", "show no-such-adapter", "compare one two"])
@pytest.mark.usefixtures("folders")
def test_a_picture_goes_into_a_folder_that_is_there(run: Run, command: str) -> None:
    told = run(*command.split(), "--plot", "none/deep/s.png", code=2)
    assert "--plot none/deep/s.png: there is no folder none/deep; make it first." in told
    assert told.count("\n") == 1
    assert not Path("none").exists()


@pytest.mark.usefixtures("folders")
def test_dora_is_shown_resized_and_exported(run: Run, make_adapter: MakeAdapter) -> None:
    magnitudes = {f"{QUERY}.lora_magnitude_vector": torch.rand(24) + 1}
    settings = {
        "use_dora": True,
        "target_modules": [QUERY],
        "base_model_name_or_path": "base",
        "task_type": "CAUSAL_LM",
    }
    write_adapter(make_adapter({QUERY: (24, 24)}, rest=magnitudes, **settings), "dora")
    out = run("show", "dora")
    assert "magnitudes |m| on 1 of 1 modules" in out
    assert "entropy\t|m|" in out
    run("resize", "dora", "--r", "2", "--out", "small")
    assert "magnitudes differ by 0 at most" in run("compare", "dora", "small")
    exported = run("export", "merged", "--model", "base", "--adapter", "dora", "--out", "merged")
    assert "logits differ from the live adapter's by" in exported
    told = run("combine", "dora", "small", "--out", "x", code=2)
    assert "has a DoRA magnitude" in told
    assert "loralab export merged" in told


@pytest.mark.usefixtures("folders")
def test_combine(run: Run) -> None:
    out = run("combine", "one", "two", "--weights", "0.7", "0.3", "--out", "both")
    assert "both = 0.7 x one + 0.3 x two, exact" in out
    deltas = [read_adapter(name).modules()[QUERY].product() for name in ("one", "two", "both")]
    torch.testing.assert_close(deltas[2], 0.7 * deltas[0] + 0.3 * deltas[1], atol=1e-5, rtol=1e-5)
    mixed = json.loads(
        run("combine", "one", "two", "--method", "ties", "--density", "0.5", "--out", "ties", "--json")
    )
    assert mixed["weights"] == [0.5, 0.5]
    assert mixed["modules"][0]["error"] > 0
    assert "two or more different" in run("combine", "one", "one", "--out", "x", code=2)
    assert "2 adapters and 3 weights" in run(
        "combine", "one", "two", "--weights", "1", "1", "1", "--out", "x", code=2
    )


@pytest.mark.usefixtures("folders")
def test_export_and_extract_are_each_others_inverse(run: Run) -> None:
    assert "logits differ from the live adapter's by" in run(
        "export", "merged", "--model", "base", "--adapter", "one", "--out", "merged"
    )
    out: dict[str, Any] = json.loads(
        run("extract", "--base", "base", "--tuned", "merged", "--r", "4", "--out", "again", "--json")
    )
    assert {layer["module"] for layer in out["modules"]} == set(read_adapter("one").modules())
    one, again = (read_adapter(name) for name in ("one", "again"))
    assert again.config.base_model_name_or_path == "base"
    for path, factors in one.modules().items():
        torch.testing.assert_close(again.modules()[path].product(), factors.product(), atol=1e-5, rtol=1e-4)
    assert "no matrix of base differs" in run(
        "extract", "--base", "base", "--tuned", "base", "--r", "4", "--out", "x", code=2
    )
    assert run("export", "vllm", "--model", "base", "--adapter", "one").startswith(
        "vllm serve base --enable-lora"
    )
    assert "--out is missing" in run("export", "merged", "--model", "base", "--adapter", "one", code=2)
    assert "vllm writes nothing" in run(
        "export", "vllm", "--model", "base", "--adapter", "one", "--out", "x", code=2
    )


def test_a_peft_adapter_of_gpt2_keeps_its_paths(run: Run, make_adapter: MakeAdapter) -> None:
    path = "transformer.h.0.attn.c_attn"
    write_adapter(make_adapter({path: (12, 4)}), "gpt2")
    run("convert", "gpt2", "--out", "same")
    run("convert", "gpt2/adapter_model.safetensors", "--lora-alpha", "6", "--out", "file")
    assert [list(read_adapter(name).modules()) for name in ("same", "file")] == [[path], [path]]
    run("convert", "gpt2", "--component", "transformer", "--out", "part")
    assert list(read_adapter("part").modules()) == ["h.0.attn.c_attn"]


@pytest.mark.usefixtures("folders")
def test_convert(run: Run) -> None:
    run("convert", "one", "--to", "kohya", "--component", "transformer", "--out", "k.safetensors")
    assert "2 modules from kohya to peft" in run(
        "convert", "k.safetensors", "--base", "base", "--out", "back"
    )
    one, back = (read_adapter(name).modules() for name in ("one", "back"))
    assert one.keys() == back.keys()
    assert all(torch.equal(one[path].product(), back[path].product()) for path in one)
    assert "need to know the component" in run(
        "convert", "one", "--to", "kohya", "--out", "x.safetensors", code=2
    )
    assert "lora_alpha=16" not in run("convert", "one", "--to", "loralib", "--out", "l.bin")
    assert "--allow-pickle" in run("convert", "l.bin", "--out", "x", code=2)
    run("convert", "l.bin", "--allow-pickle", "--lora-alpha", "6", "--out", "back2")
    assert torch.equal(read_adapter("back2").modules()[QUERY].product(), one[QUERY].product())
