"""Numbers that are not finite: every tool says in one line which tensor holds them, and writes nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from loralab.adapters import write_adapter
from loralab.cli.main import main
from loralab.core.adapter import Adapter
from loralab.core.describe import describe
from loralab.core.finite import check_finite
from loralab.core.svd import Cut
from loralab.errors import AdapterError
from loralab.tools.combine import combine
from loralab.tools.extract import extract
from loralab.tools.parts import parts_of
from loralab.tools.resize import resize

MakeAdapter = Callable[..., Adapter]
QUERY = "model.layers.0.self_attn.q_proj"
COMMANDS = {
    "show": "show bad",
    "resize": "resize bad --r 2 --out x",
    "compare": "compare good bad",
    "compare, first": "compare bad good",
    "combine": "combine good bad --out x",
    "combine, factors": "combine good bad --method factors --out x",
    "combine, ties": "combine good bad --method ties --density 0.5 --out x",
    "convert": "convert bad --to kohya --component transformer --out x.safetensors",
    "convert a file": "convert bad/adapter_model.safetensors --lora-alpha 6 --out x",
    "export merged": "export merged --model base --adapter bad --out x",
    "export gguf": "export gguf --model base --adapter bad --out x.gguf",
    "export vllm": "export vllm --model base --adapter bad",
    "merge": "merge --model base --adapter bad --out x",
}


def write_base(folder: Path) -> None:
    """A small base model, as its files alone."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4)).save_pretrained(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_names_the_tensor(
    command: str,
    value: float,
    make_adapter: MakeAdapter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "gguf" in command:
        pytest.importorskip("gguf", reason="writing GGUF needs the package gguf")
    monkeypatch.chdir(tmp_path)
    good = make_adapter({QUERY: (24, 24)}, base_model_name_or_path="base")
    write_adapter(good, "good")
    good.tensors[f"{QUERY}.lora_B.weight"][3, 1] = value
    write_adapter(good, "bad")
    if "base" in command:
        write_base(Path("base"))
    capsys.readouterr()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match="2"):
        main(command.split())
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert f"1 of 96 numbers of {QUERY}.lora_B.weight are not finite" in printed.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_any_tensor_counts_in_any_dtype(make_adapter: MakeAdapter, dtype: torch.dtype) -> None:
    rest = {"head.weight": torch.ones(4, 4).to(dtype), "head.mask": torch.ones(2, dtype=torch.int64)}
    adapter = make_adapter(rest=rest, modules_to_save=["head"])
    check_finite(adapter, "use it")
    for key in ("head.weight", "layers.0.q_proj.lora_A.weight"):
        adapter.tensors[key].view(-1)[:3] = float("nan")
    with pytest.raises(AdapterError, match=r"use it: 3 of 40 .*q_proj\.lora_A.*some of 1 other tensors"):
        check_finite(adapter, "use it")
    with pytest.raises(AdapterError, match="are not finite"):
        describe(adapter)


def test_numbers_that_grow_too_large_are_not_written(make_adapter: MakeAdapter) -> None:
    small = make_adapter(dtype=torch.float16, lora_alpha=1e16)
    with pytest.raises(
        AdapterError, match=r"result at 'layers\.0\.q_proj' has numbers too large for float16"
    ):
        resize(small, r=2)
    with pytest.raises(AdapterError, match="too large for float32"):
        combine({"one": make_adapter(), "two": make_adapter(seed=1)}, [1e90, 1])
    with pytest.raises(AdapterError, match=r"delta of 'layers\.0\.q_proj' is too large"):
        parts_of(make_adapter(dtype=torch.float64, lora_alpha=1.7e308), "use it")


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_extract_names_the_checkpoint_and_the_tensor(tmp_path: Path, side: str) -> None:
    for name in ("base", "tuned"):
        write_base(tmp_path / name)
    file = tmp_path / side / "model.safetensors"
    tensors = load_file(file)
    tensors[f"{QUERY}.weight"][5, 7] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=rf"{side}: {QUERY}\.weight has numbers that are not finite"):
        extract(tmp_path / "base", tmp_path / "tuned", Cut(2))


def test_a_mask_of_infinities_in_both_is_no_change(tmp_path: Path) -> None:
    mask = torch.full((4, 4), float("-inf")).triu(1)
    for name, weight in (("base", torch.zeros(6, 4)), ("tuned", torch.ones(6, 4))):
        (tmp_path / name).mkdir()
        save_file({"h.q.weight": weight, "h.mask": mask}, tmp_path / name / "model.safetensors")
    found = extract(tmp_path / "base", tmp_path / "tuned", Cut(1))
    assert found.same == 1
    assert [layer.module for layer in found.layers] == ["h.q"]


def test_a_tensor_saved_in_full_is_looked_at_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = {"h.q.weight": torch.zeros(6, 4)}
    tuned = {"h.q.weight": torch.ones(6, 4), "n.weight": torch.full((4,), float("nan"))}
    for name, tensors in (("base", base), ("tuned", tuned)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({}))
        save_file(tensors, tmp_path / name / "model.safetensors")
    with pytest.raises(AdapterError, match=r"4 of 4 numbers of n\.weight are not finite"):
        extract(tmp_path / "base", tmp_path / "tuned", Cut(1), save_rest=True)
