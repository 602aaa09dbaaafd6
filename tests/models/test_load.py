"""Base models from a folder, by name, in a precision; and what is refused."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from loralab.errors import ConfigError, ModelError
from loralab.models import choose_device, choose_dtype, load_base, load_tokenizer
from loralab.models.load import load_config
from loralab.models.positions import choose_cutoff, max_positions
from loralab.models.quiet import quiet

CPU = torch.device("cpu")


@pytest.fixture
def copy(tiny_dir: Path, tmp_path: Path) -> Path:
    """A model folder to damage."""
    return Path(shutil.copytree(tiny_dir, tmp_path / "base"))


def refusal(name: object, **settings: object) -> str:
    with pytest.raises(ModelError) as caught:
        load_base(str(name), **settings)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, OSError)
    return str(caught.value)


def test_a_folder_gives_its_own_weights_on_the_device(tiny, tiny_dir):
    base = load_base(str(tiny_dir), "float32")
    expected = load_file(tiny_dir / "model.safetensors")
    found = base.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key].cpu(), expected[key]) for key in expected)
    assert (base.name, base.dtype, base.device) == (str(tiny_dir), torch.float32, choose_device())
    assert not base.model.training
    assert max_positions(base.model.config) == tiny.POSITIONS
    assert base.model.config.name_or_path == str(tiny_dir)
    assert base.tokenizer("the dog")["input_ids"] == tiny.make_tokenizer()("the dog")["input_ids"]


def test_an_empty_folder_is_told_as_such(tmp_path):
    for load in (load_base, load_tokenizer, load_config):
        with pytest.raises(ModelError) as caught:
            load(str(tmp_path))
        said = f"{tmp_path}: the folder is empty; --model takes the one with config.json in it."
        assert str(caught.value) == said


def test_only_a_like_name_is_offered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("stories", "data"):
        (tmp_path / name).mkdir()
    assert refusal("storis").endswith("Did you mean 'stories'?")
    assert "Did you mean" not in refusal("dinner"), "neither demo nor data"


def test_a_relative_folder(tiny_dir, monkeypatch):
    monkeypatch.chdir(tiny_dir.parent)
    assert load_base(tiny_dir.name, "float32").name == tiny_dir.name
    assert load_base(f"./{tiny_dir.name}", "float32").name == f"./{tiny_dir.name}"


def test_the_demo_base_goes_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = load_base("demo", "float32")
    assert base.name == "demo"
    assert base.tokenizer.chat_template


def test_a_model_in_the_hub_s_cache_needs_no_network(tiny_dir, tmp_path, monkeypatch):
    """The cache's own layout, as a download leaves it."""
    repo = tmp_path / "hub" / "models--some--tiny"
    shutil.copytree(tiny_dir, repo / "snapshots" / "abc123")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    base = load_base("some/tiny", "float32")
    assert base.name == base.model.config.name_or_path == "some/tiny"


# precision


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_dtype_by_name(tiny_dir, dtype):
    base = load_base(str(tiny_dir), dtype)
    assert base.dtype == getattr(torch, dtype)
    assert {parameter.dtype for parameter in base.model.parameters()} == {base.dtype}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_is_the_dtype_of_the_files(tiny, tmp_path, dtype):
    tiny.make_model().to(dtype).save_pretrained(tmp_path)
    tiny.make_tokenizer().save_pretrained(tmp_path)
    assert load_base(str(tmp_path), "stored").dtype == dtype


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("avx512", [True, False])
@pytest.mark.parametrize("width", [64, 511, 512, 4096])
def test_auto_is_bfloat16_where_the_processor_has_it_and_the_model_gains_from_it(
    monkeypatch, amx, avx512, width
):
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512)
    expected = torch.bfloat16 if (amx or avx512) and width >= 512 else torch.float32
    assert choose_dtype("auto", CPU, width) == expected
    assert choose_dtype("float32", CPU, width) == torch.float32
    assert choose_dtype("float16", CPU, width) == torch.float16


def test_auto_on_a_gpu_asks_the_gpu(monkeypatch):
    for has_it, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation, has_it=has_it: has_it)
        assert choose_dtype("auto", torch.device("cuda"), 64) == expected


def test_a_small_model_is_float32_by_itself(tiny_dir):
    if choose_device().type == "cpu":
        assert load_base(str(tiny_dir)).dtype == torch.float32


def test_an_unknown_dtype_names_the_known_ones(tiny_dir):
    with pytest.raises(ConfigError, match=r"dtype is 'int8'; expected auto, float32, bfloat16, float16\."):
        load_base(str(tiny_dir), "int8")


# refused


@pytest.mark.parametrize(
    "name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c", "../up", "sp ace", "x/" * 200]
)
def test_what_can_only_be_a_folder_and_is_none(name):
    assert refusal(name) == (
        f"{name}: no such folder; --model takes a folder, a hub id like 'org/name', or 'demo'."
    )


@pytest.mark.parametrize("name", ["nobody", "nobody/nothing"])
def test_what_is_neither_here_nor_can_be_fetched(name):
    said = refusal(name)
    assert said == f"{name}: neither a folder here nor a model on the hub (the hub could not be reached)."


def test_a_name_that_is_too_long_for_either():
    assert refusal("x" * 300) == f"{'x' * 300}: neither a folder here nor a model on the hub."


def test_no_name(tmp_path):
    assert "no base model was named; give --model" in refusal("")


def test_a_file_is_no_model(tiny_dir):
    assert refusal(tiny_dir / "config.json").endswith(
        "is a file; --model takes the folder with config.json in it."
    )


def test_a_folder_without_a_config(copy):
    (copy / "config.json").unlink()
    assert refusal(copy) == f"{copy}: no config.json there, so it is no base model."
    (copy / "adapter_config.json").write_text("{}")
    assert "It holds an adapter: name that with --adapter" in refusal(copy)


@pytest.mark.parametrize("content", ["", "{", '{"model_type": "no such kind"}', "{}"])
def test_a_damaged_config(copy, content):
    (copy / "config.json").write_text(content)
    assert refusal(copy).startswith(f"{copy}: cannot be loaded: ")


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_truncated_weights(copy, share):
    weights = copy / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: int(len(content) * share)])
    said = refusal(copy, dtype="float32")
    assert said.startswith(f"{copy}: the weights are damaged or truncated (")
    assert said.endswith("); copy them again.")


def test_no_weights(copy):
    (copy / "model.safetensors").unlink()
    assert "cannot be loaded: " in refusal(copy)
    assert "model.safetensors" in refusal(copy)


def test_a_shard_is_missing(tiny, copy):
    (copy / "model.safetensors").unlink()
    tiny.make_model().save_pretrained(copy, max_shard_size="20kB")
    shards = sorted(copy.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[-1].unlink()
    assert shards[-1].name in refusal(copy)


def test_weights_that_lack_a_tensor_are_not_filled_with_random_numbers(copy):
    tensors = load_file(copy / "model.safetensors")
    for key in ("model.layers.0.mlp.up_proj.weight", "lm_head.weight"):
        del tensors[key]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    said = refusal(copy)
    assert "2 of its weights are not as its config.json says: lm_head.weight is missing." in said


def test_weights_of_another_shape(tiny, copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    assert "6 of its weights" in refusal(copy)
    assert "mlp.down_proj.weight is [16, 32], config.json says [16, 48]" in refusal(copy)


def test_a_tied_head_is_not_missed(tiny, tmp_path):
    model = tiny.make_model()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    tiny.make_tokenizer().save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    base = load_base(str(tmp_path), "float32").model
    assert base.lm_head.weight is base.model.embed_tokens.weight


class Grenade:
    """What unpickles into a call."""

    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_is_refused_unread_unless_asked_for(copy, monkeypatch):
    monkeypatch.chdir(copy)
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(tensors, copy / "pytorch_model.bin")
    said = refusal(copy)
    assert "its weights are a pickle file, which can run any program" in said
    assert said.endswith("ask for it by name: --allow-pickle.")
    base = load_base(str(copy), "float32", allow_pickle=True)
    assert all(torch.equal(base.model.state_dict()[key], tensor) for key, tensor in tensors.items())
    torch.save(tensors | {"lm_head.weight": Grenade()}, copy / "pytorch_model.bin")
    refusal(copy)
    assert "damaged, or holds more than tensors" in refusal(copy, allow_pickle=True)
    assert not (copy / "exploded").exists()


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_truncated_pickle(copy, share):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    content = (copy / "pytorch_model.bin").read_bytes()
    (copy / "pytorch_model.bin").write_bytes(content[: int(len(content) * share)])
    assert refusal(copy, allow_pickle=True).startswith(f"{copy}: ")


def test_safetensors_go_before_a_pickle_beside_them(copy):
    (copy / "pytorch_model.bin").write_bytes(b"no pickle at all")
    for allow in (False, True):
        assert load_base(str(copy), allow_pickle=allow).model.config.hidden_size == 16


# tokenizers


def test_a_missing_tokenizer(copy):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    assert "tokenizer" in refusal(copy).removeprefix(str(copy))


@pytest.mark.parametrize("content", ["", "{", "{}"])
def test_a_damaged_tokenizer(copy, content):
    (copy / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError) as caught:
        load_tokenizer(str(copy))
    assert str(caught.value).startswith(f"{copy}: ")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_padding_gets_one_from_what_it_has(tiny, tmp_path):
    tokenizer = tiny.make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "end")
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "none")
    shutil.copy(tmp_path / "end" / "tokenizer.json", tmp_path)
    for name, expected in (("end", "<|end|>"), ("none", "<|pad|>")):
        (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
        assert load_tokenizer(str(tmp_path / name)).pad_token == expected


# small things


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"n_positions": 32}, 32),
        ({"max_position_embeddings": None, "max_seq_len": 16}, 16),
        ({}, None),
    ],
)
def test_positions(values, expected):
    config = type("Config", (), values)()
    assert max_positions(config) == expected
    assert choose_cutoff(None, config, "m") == min(512, expected or 512)
    assert choose_cutoff(8, config, "m") == 8
    if expected:
        with pytest.raises(ConfigError, match=f"cutoff_length is 999, but m has {expected} positions"):
            choose_cutoff(999, config, "m")


def test_a_config_without_its_weights(copy):
    (copy / "model.safetensors").unlink()
    assert load_config(str(copy)).hidden_size == 16


def test_transformers_is_quiet_within_and_as_before_after():
    transformers_logging.set_verbosity_info()

    def fail() -> None:
        with quiet():
            assert transformers_logging.get_verbosity() == logging.ERROR
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert transformers_logging.get_verbosity() == logging.INFO
    transformers_logging.set_verbosity_warning()
    assert transformers_logging.is_progress_bar_enabled()


def test_a_hub_that_does_not_answer_is_one_line_at_once(tmp_path):
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hub")}
    command = [sys.executable, "-m", "loralab.cli", "generate", "hi", "--model", "demmo"]
    result = subprocess.run(
        command, env=os.environ | nowhere, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 2
    assert result.stderr == (
        "loralab: demmo: neither a folder here nor a model on the hub (the hub could not be reached). "
        "Did you mean 'demo'?\n"
    )
