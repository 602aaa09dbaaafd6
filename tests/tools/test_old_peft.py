"""PEFT's first releases: adapters of parts of a fused layer become plain ones that compute the same."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import BloomConfig, BloomForCausalLM

from loralab.adapters import PeftModel, read_adapter
from loralab.cli.main import main
from loralab.core.adapter import Adapter
from loralab.errors import AdapterError
from loralab.tools.convert import read_any

MakeAdapter = Callable[..., Adapter]
PATH = "transformer.h.0.self_attention.query_key_value"


def live_delta(x_BTI: Tensor, a: Tensor, b: Tensor, enabled: Sequence[bool], groups: int) -> Tensor:
    """What such a layer adds to its output, before scaling, step by step as its forward pass does it."""
    hidden_BRT = functional.linear(x_BTI, a).transpose(-2, -1)
    adapted = functional.conv1d(hidden_BRT, b, groups=groups).transpose(-2, -1)
    out = adapted.shape[-1] // sum(enabled) * len(enabled)
    chosen = torch.zeros(out, dtype=torch.bool).view(len(enabled), -1)
    chosen[list(enabled), :] = True
    padded = x_BTI.new_zeros(*adapted.shape[:-1], out).view(-1, out)
    padded[:, chosen.view(-1)] = adapted.reshape(padded.shape[0], -1)
    return padded.view(*adapted.shape[:-1], out)


def write_old(folder: Path, tensors: dict[str, Tensor], **changes: Any) -> Path:
    """A folder as PEFT 0.2 wrote it, but for the format of the tensors."""
    config = {
        "base_model_name_or_path": "bloom",
        "bias": "none",
        "enable_lora": [True, False, True],
        "fan_in_fan_out": True,
        "inference_mode": True,
        "lora_alpha": 6,
        "lora_dropout": 0.05,
        "merge_weights": True,
        "peft_type": "LORA",
        "r": 4,
        "target_modules": ["query_key_value"],
        "task_type": "CAUSAL_LM",
    } | changes
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    keyed = {f"base_model.model.{key}": tensor.contiguous() for key, tensor in tensors.items()}
    save_file(keyed, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("enabled", "groups"),
    [
        ([True, False, True], 2),
        ([True, True, False], 2),
        ([False, True, False], 1),
        ([True, True, True], 3),
        ([True, True, True], 2),  # PEFT had two groups, however many parts
        ([False, True, False], 2),
        ([True, False, True, True, False, True], 4),
    ],
)
def test_the_delta_is_that_of_the_grouped_convolution(
    tmp_path: Path, enabled: list[bool], groups: int
) -> None:
    torch.manual_seed(0)
    rank, height = 4 * sum(enabled), 6
    a = torch.randn(rank, 10, dtype=torch.float64)
    b = torch.randn(height * sum(enabled), rank // groups, 1, dtype=torch.float64)
    tensors = {f"{PATH}.lora_A.weight": a, f"{PATH}.lora_B.weight": b}
    adapter = read_any(write_old(tmp_path / "old", tensors, enable_lora=enabled)).adapter
    factors = adapter.modules()[PATH]
    assert (factors.rank, factors.scaling) == (rank, 6 / 4)
    assert torch.equal(factors.a_RI, a)
    x_BTI = torch.randn(2, 5, 10, dtype=torch.float64)
    wanted = live_delta(x_BTI, a, b, enabled, groups) * 6 / 4
    torch.testing.assert_close(x_BTI @ factors.product().t(), wanted, rtol=1e-12, atol=1e-12)
    rows = torch.tensor(enabled).repeat_interleave(height)
    assert torch.equal(factors.product().any(dim=1), rows)


def test_a_real_adapter_of_bloom(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = assets / "adapters" / "peft_bloom560m_r8_bin"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["convert", str(folder), "--out", "new"])
    assert "ask for it by name: --allow-pickle" in capsys.readouterr().err
    main_and_exit("convert", str(folder), "--out", "new", "--allow-pickle")
    main_and_exit("show", "new")
    assert "rank: 16, alpha 32" in capsys.readouterr().out
    stored = torch.load(folder / "adapter_model.bin", map_location="cpu", weights_only=True)
    adapter = read_adapter("new")
    assert len(adapter.modules()) == 24
    assert adapter.config.task_type == "CAUSAL_LM"
    torch.manual_seed(0)
    x_BTI = torch.randn(1, 3, 1024)
    for path, factors in adapter.modules().items():
        a, b = (stored[f"base_model.model.{path}.lora_{side}.weight"] for side in "AB")
        wanted = live_delta(x_BTI, a, b, [True, False, True], 2) * 16 / 8
        torch.testing.assert_close(x_BTI @ factors.product().t(), wanted, rtol=1e-4, atol=1e-5)
        assert wanted.abs().max() > 0.01
    torch.manual_seed(0)
    base = BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=1024, n_layer=24, n_head=16)).eval()
    fused: nn.Linear = base.transformer.h[3].self_attention.query_key_value
    plain = fused(x_BTI).detach()
    PeftModel.from_pretrained(base, "new").eval()
    a, b = (
        stored[f"base_model.model.transformer.h.3.self_attention.query_key_value.lora_{s}.weight"]
        for s in "AB"
    )
    adapted = base.transformer.h[3].self_attention.query_key_value(x_BTI).detach()
    torch.testing.assert_close(
        adapted - plain, 2 * live_delta(x_BTI, a, b, [True, False, True], 2), rtol=1e-4, atol=1e-5
    )


def main_and_exit(*words: str) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(words)


@pytest.mark.parametrize(
    "command",
    [
        "show old",
        "resize old --r 2 --out x",
        "compare old old",
        "combine old other --out x",
        "export vllm --model base --adapter old",
        "merge --model base --adapter old --out x",
    ],
)
def test_other_commands_say_what_makes_it_readable(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("old", "other"):
        write_old(tmp_path / name, {f"{PATH}.lora_A.weight": torch.ones(8, 10)})
    with pytest.raises(SystemExit, match="2"):
        main(command.split())
    told = capsys.readouterr().err
    assert "loralab convert old --out FOLDER." in told
    assert told.count("\n") == 1
    Path("old/adapter_model.safetensors").rename("old/adapter_model.bin")
    with pytest.raises(SystemExit, match="2"):
        main(command.split())
    assert "loralab convert old --out FOLDER --allow-pickle." in capsys.readouterr().err


def test_biases_get_the_names_of_today(tmp_path: Path) -> None:
    tensors = {
        f"{PATH}.lora_A.weight": torch.ones(8, 10),
        f"{PATH}.lora_B.weight": torch.ones(12, 4, 1),
        f"{PATH}.bias": torch.ones(18),
        "transformer.ln_f.bias": torch.ones(10),
    }
    found = read_any(write_old(tmp_path / "old", tensors, bias="all")).adapter.tensors
    assert {f"{PATH}.base_layer.bias", "transformer.ln_f.bias"} <= found.keys()
    assert f"{PATH}.bias" not in found


@pytest.mark.parametrize(
    ("shapes", "changes", "fault"),
    [
        (
            {"A": (8, 10), "B": (12, 4, 1)},
            {"r": 8},
            r"with r = 8 and 2 parts adapted, expected A \[16, inputs\]",
        ),
        ({"A": (8, 10), "B": (12, 8)}, {}, r"has A \[8, 10\] and B \[12, 8\]"),
        ({"A": (8, 10), "B": (13, 4, 1)}, {}, r"B \[13, 4, 1\]"),
        ({"A": (8, 10), "B": (12, 3, 1)}, {}, r"B \[12, 3, 1\]"),
        ({"A": (8, 10)}, {}, r"lora_A\.weight is there without .*lora_B\.weight"),
        ({"B": (12, 4, 1)}, {}, r"no tensor ends in \.lora_A\.weight"),
        (
            {"A": (8, 10), "B": (12, 4, 1)},
            {"enable_lora": [False]},
            r"enable_lora is \[False\]; expected true",
        ),
        ({"A": (8, 10), "B": (12, 4, 1)}, {"enable_lora": "yes"}, "enable_lora is 'yes'; expected true or"),
        ({"A": (8, 10), "B": (12, 4, 1)}, {"lora_magic": 3}, "unknown setting 'lora_magic' = 3"),
    ],
)
def test_what_does_not_add_up_is_named(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], changes: dict[str, Any], fault: str
) -> None:
    tensors = {f"{PATH}.lora_{side}.weight": torch.ones(shape) for side, shape in shapes.items()}
    with pytest.raises(AdapterError, match=fault) as caught:
        read_any(write_old(tmp_path / "old", tensors, **changes))
    assert "\n" not in str(caught.value)
