"""Adapter folders: what is written, what is refused and how, and what a failure leaves behind."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from loralab.adapters import PeftModel, get_peft_model, read_adapter, write_adapter
from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig
from loralab.errors import AdapterError, CheckpointError, ConfigError, LoralabError
from loralab.files import new_folder

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def net(width: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3))


def adapted(**settings: Any) -> PeftModel:
    settings = {"r": 2, "target_modules": ["0", "2"], "init_lora_weights": False, **settings}
    return get_peft_model(net(), LoraConfig(**settings)).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a good adapter in it."""
    adapted(base_model_name_or_path="the/base").save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def refused(folder: Path, message: str, **arguments: Any) -> str:
    """The message with which reading fails; a model that was to take the adapter must be untouched."""
    model = net()
    with pytest.raises(AdapterError, match=message) as caught:
        PeftModel.from_pretrained(model, folder, **arguments)
    assert [type(module) for module in model] == [nn.Linear, nn.Tanh, nn.Linear]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_written_and_read_again_is_the_same_adapter(folder: Path) -> None:
    x = torch.randn(5, 4)
    again = PeftModel.from_pretrained(net(), folder)
    assert torch.equal(again(x), adapted()(x))
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert again.peft_config["default"].base_model_name_or_path == "the/base"
    one, two = read_adapter(folder), adapted(base_model_name_or_path="the/base").base_model.adapter("default")
    assert one.digest() == two.digest()
    trained = PeftModel.from_pretrained(net(), folder, is_trainable=True)
    assert trained.training
    assert trained.get_nb_trainable_parameters()[0] == one.parameters == 2 * (4 + 4) + 2 * (4 + 3)


def test_the_same_adapter_always_gives_the_same_bytes(tmp_path: Path) -> None:
    def files(folder: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}

    adapted(target_modules=["0", "2"]).save_pretrained(tmp_path / "one")
    adapted(target_modules={"2", "0"}).save_pretrained(tmp_path / "two")
    adapter = read_adapter(tmp_path / "one")
    backwards = dict(reversed(list(adapter.tensors.items())))
    write_adapter(Adapter(adapter.config, backwards), tmp_path / "three")
    assert files("one").keys() == {CONFIG, WEIGHTS, "README.md"}
    assert files("one") == files("two") == files("three") | {"README.md": files("one")["README.md"]}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_file_keeps_its_precision(folder: Path, dtype: torch.dtype) -> None:
    adapter = read_adapter(folder)
    write_adapter(Adapter(adapter.config, {k: t.to(dtype) for k, t in adapter.tensors.items()}), folder)
    assert {tensor.dtype for tensor in read_adapter(folder).tensors.values()} == {dtype}
    parameters = PeftModel.from_pretrained(net(), folder).named_parameters()
    assert {parameter.dtype for _, parameter in parameters} == {torch.float32}


def test_tensors_that_are_views_are_written_by_themselves(tmp_path: Path) -> None:
    big = torch.randn(100, 4)
    tensors = {"0.lora_A.weight": big[:2], "0.lora_B.weight": big[2:6, :2]}
    write_adapter(Adapter(LoraConfig(r=2, target_modules=["0"]), tensors), tmp_path)
    assert (tmp_path / WEIGHTS).stat().st_size < 500
    assert torch.equal(read_adapter(tmp_path).tensors["0.lora_B.weight"], big[2:6, :2])


def test_tensors_that_share_memory_are_all_written(tmp_path: Path) -> None:
    one = torch.randn(4)
    write_adapter(Adapter(LoraConfig(), {"a.bias": one, "b.bias": one}), tmp_path)
    assert all(torch.equal(tensor, one) for tensor in read_adapter(tmp_path).tensors.values())


@pytest.mark.parametrize("keep", [0, 4, 8, 40, 200, -1])
def test_a_truncated_file(folder: Path, keep: int) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:keep])
    refused(folder, rf"{WEIGHTS}: not a complete safetensors file .*truncated")


@pytest.mark.parametrize("data", [b"\xff" * 500, b"PK\x03\x04" + b"0" * 300, b"<!DOCTYPE html>" * 20])
def test_a_file_that_is_something_else(folder: Path, data: bytes) -> None:
    (folder / WEIGHTS).write_bytes(data)
    refused(folder, f"{WEIGHTS}: not a complete safetensors file")


def break_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / CONFIG).read_text())
    change(values)
    (folder / CONFIG).write_text(json.dumps(values))


def test_parts_that_are_missing(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere: no such folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, f"no {CONFIG}")
    refused(folder / WEIGHTS, "no such folder")
    shutil.copy(folder / CONFIG, empty)
    refused(empty, f"no {WEIGHTS}")
    save_file({}, empty / WEIGHTS)
    refused(empty, "no tensors")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{\n "r": 8,\n "lora_alpha" 16\n}', rf"{CONFIG}:3: not valid JSON"),
        (b"", rf"{CONFIG}:1: not valid JSON"),
        (b"[1, 2]", "expected a JSON object"),
        (b'{"r": 8}', "'peft_type'"),
        (b'{"peft_type": "\xff"}', "UTF-8"),
        (b'{"peft_type": "LOHA"}', "'LOHA'"),
    ],
)
def test_a_broken_config(folder: Path, text: bytes, message: str) -> None:
    (folder / CONFIG).write_bytes(text)
    refused(folder, message)


def test_an_adapter_of_another_base(folder: Path) -> None:
    model = net(6)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(AdapterError) as caught:
        PeftModel.from_pretrained(model, folder, adapter_name="poet")
    for part in ("'poet'", "0.lora_A.weight is [2, 4]", "needs [2, 6]", "the/base", "Sequential"):
        assert part in str(caught.value)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_an_adapter_that_fits_half(folder: Path) -> None:
    break_config(folder, lambda values: values.update(target_modules=["0"]))
    refused(folder, r"2\.lora_A\.weight has no place in the model")
    break_config(folder, lambda values: values.update(target_modules=["0", "2"]))
    tensors = load_file(folder / WEIGHTS)
    del tensors["base_model.model.2.lora_B.weight"]
    save_file(tensors, folder / WEIGHTS)
    refused(folder, r"2\.lora_B\.weight is missing from the adapter")
    break_config(folder, lambda values: values.update(r=3))
    refused(folder, r"is \[2, 4\], the model needs \[3, 4\]")


def test_a_second_adapter_that_does_not_fit_leaves_the_first(folder: Path) -> None:
    model, x = adapted(), torch.randn(5, 4)
    before, names = model(x), list(model.state_dict())
    break_config(folder, lambda values: values.update(r=3))
    for name in ("other", "default"):
        with pytest.raises(AdapterError, match="does not fit"):
            model.load_adapter(folder, name)
    assert list(model.state_dict()) == names
    assert torch.equal(model(x), before)


def test_loading_over_an_adapter_takes_its_settings_too(folder: Path) -> None:
    model, x = adapted(lora_alpha=16), torch.randn(5, 4)
    identity = id(model.get_base_model()[0].lora_A["default"].weight)
    model.load_adapter(folder, "default")
    assert torch.equal(model(x), adapted()(x))
    assert model.peft_config["default"].lora_alpha == adapted().peft_config["default"].lora_alpha
    assert id(model.get_base_model()[0].lora_A["default"].weight) == identity


@pytest.mark.parametrize("template", ["base_model.model.{}.{}.default.weight", "{}.{}.weight"])
def test_keys_written_by_hand(folder: Path, template: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    parts = {key: key.removeprefix("base_model.model.").split(".") for key in tensors}
    save_file({template.format(*parts[key][:2]): tensor for key, tensor in tensors.items()}, folder / WEIGHTS)
    x = torch.randn(5, 4)
    assert torch.equal(PeftModel.from_pretrained(net(), folder)(x), adapted()(x))


def test_several_adapters_lie_in_folders_of_their_names(tmp_path: Path) -> None:
    model, x = adapted(), torch.randn(5, 4)
    model.add_adapter("poet", LoraConfig(r=3, target_modules=["0"], init_lora_weights=False))
    model.save_pretrained(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")} == {
        *(CONFIG, WEIGHTS, f"poet/{CONFIG}", f"poet/{WEIGHTS}", "README.md")
    }
    again = PeftModel.from_pretrained(net(), tmp_path)
    again.load_adapter(tmp_path / "poet", "poet")
    for name in ("default", "poet"):
        model.set_adapter(name)
        again.set_adapter(name)
        assert torch.equal(again(x), model(x))
    model.save_pretrained(tmp_path / "only", selected_adapters=["poet"])
    assert {path.name for path in (tmp_path / "only").iterdir()} == {"poet", "README.md"}
    with pytest.raises(AdapterError, match=r"no adapter 'pote'.*Did you mean 'poet'"):
        model.save_pretrained(tmp_path / "none", selected_adapters=["pote"])


def test_a_pickle_is_refused_and_none_is_written(folder: Path, assets: Path) -> None:
    with pytest.raises(ConfigError, match="safetensors only"):
        adapted().save_pretrained(folder, safe_serialization=False)
    copy = folder.parent / "bloom"
    shutil.copytree(assets / "adapters" / "peft_bloom560m_r8_bin", copy)
    for path in (copy, *copy.iterdir()):
        path.chmod(0o755)
    break_config(copy, lambda values: values.pop("enable_lora"))
    refused(copy, "adapter_model.bin: a pickle.*allow_pickle=True")
    adapter = read_adapter(copy, allow_pickle=True)
    assert len(adapter.tensors) == 48
    first = adapter.tensors["transformer.h.0.self_attention.query_key_value.lora_A.weight"]
    assert (first.shape, first.device.type) == ((16, 1024), "cpu")


class Program:
    """What a pickle can do: run any function when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("was_here"),)


def test_a_pickle_with_a_program_does_not_run_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / WEIGHTS).unlink()
    torch.save({"a": Program()}, folder / "adapter_model.bin")
    refused(folder, r"adapter_model\.bin", allow_pickle=True)
    assert not (folder / "was_here").exists()
    (folder / "adapter_model.bin").write_bytes(b"no pickle at all")
    refused(folder, r"adapter_model\.bin", allow_pickle=True)


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from loralab.adapters import write_adapter
from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig
from loralab.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
tensors = {"0.lora_A.weight": torch.zeros(100, 100)}
try:
    write_adapter(Adapter(LoraConfig(), tensors), Path(sys.argv[1]))
except CheckpointError as error:
    print(error)
"""


def test_a_write_that_fails_leaves_the_old_files(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    command = [sys.executable, "-c", FULL_DISK, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert str(folder / WEIGHTS) in done.stdout
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_full_disk_is_said_to_be_full(folder: Path) -> None:
    disk = folder.parent / "small"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        shutil.copytree(folder, disk / "adapter")
        before = {path.name: path.read_bytes() for path in (disk / "adapter").iterdir()}
        big = Adapter(LoraConfig(), {"0.lora_A.weight": torch.zeros(100, 100)})
        with pytest.raises(CheckpointError, match="no space left"):
            write_adapter(big, disk / "adapter")
        assert {path.name: path.read_bytes() for path in (disk / "adapter").iterdir()} == before
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        adapted().save_pretrained(tmp_path / "file" / "adapter")
    with pytest.raises(LoralabError, match="file"):
        adapted().save_pretrained(tmp_path / "file")


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    """The library that writes the weights gives them to their owner alone."""
    before = os.umask(0o022)
    try:
        get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(target_modules=["0"])).save_pretrained(
            tmp_path
        )
        with new_folder(tmp_path / "new") as folder:
            (folder / "file").touch(mode=0o600)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()} == {0o644}
