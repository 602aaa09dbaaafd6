"""vLLM's command, and its limits."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from loralab.adapters import write_adapter
from loralab.adapters.habits import Habits, write_habits
from loralab.cli.main import main
from loralab.core.adapter import Adapter
from loralab.errors import AdapterError, ConfigError
from loralab.tools.checkpoint import Checkpoint
from loralab.tools.vllm import Served, check_base, check_served, serving_command, serving_notes

MakeAdapter = Callable[..., Adapter]
QUERY = "model.layers.0.self_attn.q_proj"
TOKENS = "model.embed_tokens.token_adapter.trainable_tokens_delta"


def served(name: str, rank: int = 8, base: str = "", template: str = "auto") -> Served:
    return Served(name, Path("/adapters") / name, rank, base, template)


def option(line: str, name: str) -> str:
    words = shlex.split(line)
    return words[words.index(name) + 1]


@pytest.mark.parametrize(("r", "allowed"), [(1, 1), (5, 8), (8, 8), (33, 64), (300, 320), (512, 512)])
def test_the_command_for_one(make_adapter: MakeAdapter, tmp_path: Path, r: int, allowed: int) -> None:
    one = check_served(make_adapter(r=r), tmp_path / "a b", "poet")
    line = serving_command("org/base", [one])
    assert shlex.split(line)[:4] == ["vllm", "serve", "org/base", "--enable-lora"]
    assert option(line, "--max-lora-rank") == str(allowed)
    assert option(line, "--max-loras") == option(line, "--max-cpu-loras") == "1"
    assert option(line, "--lora-modules") == f"poet={tmp_path / 'a b'}"
    notes = serving_notes("org/base", [one])
    assert bool(notes) is (r != allowed)
    assert all(f"padded to rank {allowed} (theirs: {r})" in note for note in notes)


def test_the_command_for_many() -> None:
    adapters = [served(f"a{i}", rank) for i, rank in enumerate((4, 64, 16, 16))]
    line = serving_command("base", adapters, slots=3)
    assert option(line, "--max-lora-rank") == "64"
    assert (option(line, "--max-loras"), option(line, "--max-cpu-loras")) == ("3", "4")
    words = shlex.split(line)
    assert words[words.index("--lora-modules") + 1 :] == [f"a{i}=/adapters/a{i}" for i in range(4)]
    assert "3 of 4 adapters are padded to rank 64 (theirs: 4, 16)" in serving_notes("base", adapters)[0]
    assert option(serving_command("base", adapters), "--max-loras") == "4"


@pytest.mark.parametrize("name", ["a,b", "a=b"])
def test_a_path_with_a_mark_of_vllms_is_written_as_json(name: str) -> None:
    words = shlex.split(serving_command("base", [served(name)]))
    assert json.loads(words[-1]) == {"name": name, "path": f"/adapters/{name}"}


def test_the_highest_rank_counts_also_where_only_the_config_has_it(make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(r=16, lora_alpha=16, rank_pattern={"q_proj": 2, "v_proj": 2},
                           alpha_pattern={"q_proj": 2, "v_proj": 2})  # fmt: skip
    assert check_served(adapter, Path("x"), "x").rank == 16


def test_all_limits_are_named_at_once(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    rest = {
        "q.lora_magnitude_vector": torch.ones(1),
        "e.lora_embedding_A": torch.ones(1, 1),
        TOKENS: torch.ones(2, 2),
    }
    adapter = make_adapter(
        rest=rest, r=600, modules_to_save=["head"], bias="lora_only", alpha_pattern={"v_proj": 1}
    )
    with pytest.raises(AdapterError) as caught:
        check_served(adapter, tmp_path, "x")
    for fault in (
        "rank 600 is above 512; 'loralab resize'",
        "modules_to_save (head) are not served; 'loralab export merged'",
        "trained tokens",
        "biases",
        "DoRA",
        "embedding",
        "v_proj is scaled",
    ):
        assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "rest", "said"),
    [
        ({"use_dora": True}, {}, "DoRA"),
        ({"trainable_token_indices": [1, 2]}, {}, "trained tokens"),
        ({"lora_bias": True}, {"layers.0.q_proj.lora_B.bias": torch.ones(12)}, "trained biases"),
    ],
)
def test_each_limit_by_itself(
    make_adapter: MakeAdapter, settings: dict[str, Any], rest: dict[str, torch.Tensor], said: str
) -> None:
    with pytest.raises(
        AdapterError, match=f"vLLM cannot serve this adapter: {said}[^;]*; (merge|'loralab)[^;]*$"
    ):
        check_served(make_adapter(rest=rest, **settings), Path("x"), "x")
    assert check_served(make_adapter(use_rslora=True), Path("x"), "x").rank == 4


def test_names_and_bases_must_go_together() -> None:
    with pytest.raises(ConfigError, match="two adapters are called 'a'"):
        serving_command("base", [served("a"), served("a")])
    with pytest.raises(ConfigError, match="the name 'base' is the base's"):
        serving_command("base", [served("base")])
    for slots, adapters in ((0, [served("a")]), (1, [])):
        with pytest.raises(ConfigError, match="at least"):
            serving_command("base", adapters, slots)
    with pytest.raises(AdapterError, match=r"'a' says it was trained on org/one, and 'b' on org/two: .*make"):
        serving_command("base", [served("a", base="org/one"), served("b", base="org/two")])
    same = [served("a", base="/here/One/"), served("b", base="org/one"), served("c")]
    assert serving_command("base", same)
    assert "trained on /here/One/; see that base is the same" in serving_notes("base", same)[0]
    assert serving_notes("copies/one", same) == []


def test_a_template_that_vllm_does_not_write_is_told(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    write_habits(tmp_path, Habits("alpaca", "alpaca"))
    one = check_served(make_adapter(r=8), tmp_path, "x")
    assert "x was trained in the template 'alpaca'" in serving_notes("base", [one])[0]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small Llama whose head is its embedding."""
    sizes = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, tie_word_embeddings=True))
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_base_that_is_here_is_looked_into(make_adapter: MakeAdapter, base: Path) -> None:
    checkpoint = Checkpoint(base)
    for fits in ({QUERY: (24, 24)}, {"lm_head": (40, 24)}, {"model.layers.0.mlp.up_proj": (36, 24)}):
        check_base(make_adapter(fits), Path("x"), checkpoint)
    with pytest.raises(AdapterError, match=r"has no model\.layers\.1.*another base"):
        check_base(make_adapter({QUERY.replace("0", "1"): (24, 24)}), Path("x"), checkpoint)
    with pytest.raises(AdapterError, match=r"it is made for \[24, 32\].*has \[24, 24\]"):
        check_base(make_adapter({QUERY: (24, 32)}), Path("x"), checkpoint)


@pytest.fixture
def loralab(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run ``loralab export vllm`` in an empty folder; return its exit code and what it printed where."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["export", *words])
        return int(end.value.code or 0), *capsys.readouterr()

    return run


@pytest.mark.usefixtures("base")
def test_the_command_line(loralab: Any, make_adapter: MakeAdapter) -> None:
    for seed, place in enumerate(("here/one", "here/two", "runs/poet/adapter", "runs/half/checkpoints/1")):
        settings = {"base_model_name_or_path": "base", "task_type": "CAUSAL_LM"}
        write_adapter(make_adapter({QUERY: (24, 24)}, seed=seed, **settings), place)
    code, out, told = loralab("vllm", "--model", "base", "--adapter", "here", "poet")
    assert code == 0
    names = [word.partition("=")[0] for word in shlex.split(out)[-3:]]
    assert names == ["one", "two", "poet"]
    assert out.count("\n") == 1, "what is printed can be run as it stands"
    assert told == (
        "loralab: note: 3 of 3 adapters are padded to rank 8 (theirs: 4), and take its memory and time.\n"
    )
    code, out, _ = loralab("vllm", "--model", "base", "--adapter", "runs", "--slots", "1", "--json")
    assert json.loads(out)["adapters"] == ["poet"]
    assert (
        option(loralab("vllm", "--model", "base", "--adapter", "poet", "--name", "x")[1], "--lora-modules")[
            :2
        ]
        == "x="
    )
    for words, said in (
        (("vllm", "--model", "base", "--adapter", "here", "--name", "x"), "--name names one adapter"),
        (("vllm", "--model", "base", "--adapter", "poet", "--slots", "0"), "at least"),
        (
            ("vllm", "--model", "base", "--adapter", "poet", "--dtype", "float16"),
            "--dtype has no effect here",
        ),
        (("gguf", "--model", "base", "--adapter", "poet", "--out", "x", "--slots", "2"), "--slots has no"),
        (("gguf", "--model", "base", "--adapter", "poet", "here/one", "--out", "x"), "takes one adapter"),
        (("vllm", "--model", "base", "--adapter", "base"), "no adapter_config.json there"),
    ):
        code, out, told = loralab(*words)
        assert (code, out) == (2, "")
        assert said in told
        assert told.count("\n") == 1
    demo = loralab("vllm", "--model", "demo", "--adapter", "poet")
    assert demo[0] == 2
    assert "Was it trained on another base?" in demo[2]
