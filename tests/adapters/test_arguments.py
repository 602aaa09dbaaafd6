"""What scripts pass: forms that say the same are accepted, the rest is refused in one line."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from loralab import LoraConfig, PeftModel, get_peft_model, read_adapter
from loralab.adapters.functional import inject_adapter_in_model
from loralab.errors import AdapterError, ConfigError, LoralabError

X = torch.linspace(-1, 1, 12).view(3, 4)
IDS = torch.tensor([[1, 5, 9, 3], [2, 2, 7, 11], [8, 1, 1, 4]])
SETTINGS: dict[str, Any] = {"r": 2, "target_modules": ["0", "2"], "init_lora_weights": False}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def adapted(**settings: Any) -> PeftModel:
    torch.manual_seed(1)
    return get_peft_model(net(), LoraConfig(**(SETTINGS | settings)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    adapted().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture(scope="module")
def llama() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=16, num_attention_heads=2, pad_token_id=0, **sizes))
    config = LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(base, config, "a").eval()
    model.add_adapter("b", config)
    return model


# keywords


@pytest.mark.parametrize("place", ["cpu", "auto", "balanced", {"": "cpu"}, {"": torch.device("cpu")}, None])
def test_a_device_map_of_one_device_changes_nothing(folder: Path, place: Any) -> None:
    wanted = PeftModel.from_pretrained(net(), folder)(X)
    model = PeftModel.from_pretrained(net(), folder, device_map=place)
    assert torch.equal(model(X), wanted)
    model.load_adapter(folder, "other", device_map=place)
    model.set_adapter("other")
    assert torch.equal(model(X), wanted)


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        ({"0": "cpu", "2": "disk"}, "offloads, which is not supported"),
        ("disk", "offloads, which is not supported"),
        ({"0": "cpu", "2": "cuda:0"}, "names several devices; give it to the base"),
        ("atuo", "'atuo' names no device. Did you mean 'auto'"),
    ],
)
def test_other_device_maps_are_refused_by_name(folder: Path, place: Any, fault: str) -> None:
    for where, call in (
        ("from_pretrained", lambda: PeftModel.from_pretrained(net(), folder, device_map=place)),
        ("load_adapter", lambda: adapted().load_adapter(folder, "other", device_map=place)),
    ):
        with pytest.raises(ConfigError, match=f"^{where}: device_map=.*{fault}"):
            call()


def test_a_base_that_is_offloaded_itself_is_refused(folder: Path) -> None:
    base = net()
    base.hf_device_map = {"0": "cpu", "2": "disk"}  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="offloads"):
        PeftModel.from_pretrained(base, folder, device_map="auto")


def test_keywords_of_saving_that_change_nothing_for_one_file(folder: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {"max_shard_size": "1GB", "save_function": torch.save, "push_to_hub": False}
    adapted().save_pretrained(tmp_path / "more", **more, variant=None, token=None, save_peft_format=True)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "more" / file).read_bytes() == (folder / file).read_bytes()
    adapted().save_pretrained(tmp_path / "one", selected_adapters="default")
    assert read_adapter(tmp_path / "one").tensors.keys() == read_adapter(folder).tensors.keys()


@pytest.mark.parametrize(
    ("keyword", "value", "hint"),
    [
        ("push_to_hub", True, r"model\.push_to_hub"),
        ("token", "x", r"model\.push_to_hub"),
        ("variant", "fp16", "no effect"),
        ("save_peft_format", False, "no effect"),
        ("selected_adapter", "default", "Did you mean 'selected_adapters'"),
    ],
)
def test_other_keywords_of_saving_are_refused(tmp_path: Path, keyword: str, value: Any, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"^save_pretrained: {keyword}=.*{hint}"):
        adapted().save_pretrained(tmp_path / "x", **{keyword: value})
    assert not (tmp_path / "x").exists()


def test_a_mixed_model_of_lora_alone_is_the_same_model() -> None:
    settings = {"r": 2, "target_modules": ["0", "2"]}
    ours = get_peft_model(net(), LoraConfig(**settings), mixed=True)
    theirs = peft.get_peft_model(net(), peft.LoraConfig(**settings), mixed=True)
    ours.add_adapter("other", LoraConfig(r=3, target_modules=["0"]))
    theirs.add_adapter("other", peft.LoraConfig(r=3, target_modules=["0"]))
    names = {name for name, _ in theirs.named_parameters()}
    assert {name for name, _ in ours.named_parameters()} == names
    torch.manual_seed(5)
    values = {name: torch.randn_like(p) for name, p in theirs.named_parameters() if "lora_" in name}
    for model in (ours, theirs):
        model.load_state_dict(values, strict=False)
        model.set_adapter(["default", "other"])
    torch.testing.assert_close(ours(X), theirs(X))
    with ours.disable_adapter(), theirs.disable_adapter():
        torch.testing.assert_close(ours(X), theirs(X))
    torch.testing.assert_close(ours.merge_and_unload()(X), theirs.merge_and_unload()(X))


# configs, models, names


def test_a_config_of_the_peft_package_is_taken() -> None:
    more: dict[str, Any] = {"task_type": peft.TaskType.CAUSAL_LM, "exclude_modules": ["1"], "lora_alpha": 4}
    theirs = peft.LoraConfig(**SETTINGS, **more)
    wanted = LoraConfig(**SETTINGS, **(more | {"task_type": "CAUSAL_LM"}))
    torch.manual_seed(1)
    model = get_peft_model(net(), theirs)  # type: ignore[arg-type]
    assert type(model.peft_config["default"]) is LoraConfig
    expected = get_peft_model(net(), wanted).peft_config["default"]
    assert model.peft_config["default"] == expected
    assert type(model).__name__ == "PeftModelForCausalLM"
    model.add_adapter("other", theirs)  # type: ignore[arg-type]
    assert model.peft_config["other"] == expected
    inject_adapter_in_model(theirs, net())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"r": 3}, r"the config is a dict; expected a LoraConfig. Try LoraConfig\(\*\*\{'r': 3\}\)"),
        (None, "the config is a NoneType"),
        (peft.IA3Config(), "a IA3Config is of another method"),
        (peft.LoraConfig(megatron_config={"a": 1}), "megatron_config = .* is not supported"),
    ],
)
def test_what_is_no_config_is_refused(config: Any, fault: str) -> None:
    calls = {
        "get_peft_model": lambda: get_peft_model(net(), config),
        "inject_adapter_in_model": lambda: inject_adapter_in_model(config, net()),
        "an adapted model": lambda: adapted().add_adapter("other", config),
    }
    for where, call in calls.items():
        with pytest.raises(LoralabError, match=f"^{where}: .*{fault}") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_what_is_no_model_or_place_is_refused(folder: Path) -> None:
    for call in (
        lambda: get_peft_model(None, LoraConfig()),  # type: ignore[arg-type]
        lambda: PeftModel.from_pretrained(None, folder),  # type: ignore[arg-type]
        lambda: inject_adapter_in_model(LoraConfig(), None),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError, match=r"the model is a NoneType; expected a torch\.nn\.Module"):
            call()
    for place in (None, "", 3):
        with pytest.raises(ConfigError, match=r"the adapter is .*; expected a folder, or a hub id"):
            adapted().load_adapter(place, "x")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"the adapter is .*; expected a folder, or a hub id"):
            PeftModel.from_pretrained(net(), place)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["keys", "training", "items", "forward", "pop", "type", "", "a.b", None, 3])
def test_names_that_torch_has_itself_are_refused(folder: Path, name: Any) -> None:
    model = adapted()
    before = [key for key, _ in model.named_parameters()]
    for call in (
        lambda: model.add_adapter(name, LoraConfig(**SETTINGS)),
        lambda: model.load_adapter(folder, name),
        lambda: get_peft_model(net(), LoraConfig(**SETTINGS), name),
    ):
        with pytest.raises(ConfigError, match=f"adapter name {name!r}: "):
            call()
    assert [key for key, _ in model.named_parameters()] == before


def test_one_name_may_be_merged_by_itself() -> None:
    model = adapted()
    wanted = model(X)
    model.merge_adapter("default")
    assert model.merged_adapters == ["default"]
    torch.testing.assert_close(model(X), wanted)
    torch.testing.assert_close(adapted().merge_and_unload(adapter_names="default")(X), wanted)


# one name for each row


@pytest.mark.parametrize("names", [["b"], ["a", "b"], ["a", "b", "a", "b"], ["a"] * 6, []])
def test_a_batch_needs_one_name_for_each_row(llama: Any, names: list[str]) -> None:
    fault = f"adapter_names has {len(names)} entries for a batch of 3 rows; expected one name for each row"
    embeds = llama.get_input_embeddings()(IDS)
    inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((IDS,), {}),
        ((), {"input_ids": IDS}),
        ((), {"attention_mask": torch.ones(3, 4), "inputs_embeds": embeds}),
    ]
    for args, keywords in inputs:
        with pytest.raises(AdapterError, match=fault):
            llama(*args, **keywords, adapter_names=names)
        with pytest.raises(AdapterError, match=fault):
            llama.generate(*args, **keywords, adapter_names=names, max_new_tokens=2)
    with pytest.raises(AdapterError, match=fault):
        llama.generate(inputs=IDS, adapter_names=names, max_new_tokens=2, num_beams=2)
    plain = adapted()
    with pytest.raises(AdapterError, match=fault):
        plain(X, adapter_names=["default" for _ in names])
    if not names:
        with pytest.raises(AdapterError, match="one name for each row"), llama.base_model.rows(names):
            pass


@pytest.mark.parametrize("names", ["a", {"a": 1}])
def test_a_name_is_no_list_of_names(llama: Any, names: Any) -> None:
    with pytest.raises(
        AdapterError, match=r"adapter_names is .*; expected one name for each row of the batch"
    ):
        llama(IDS, adapter_names=names)
    with pytest.raises(
        AdapterError, match=r"adapter_names is .*; expected one name for each row of the batch"
    ):
        llama.generate(IDS, adapter_names=names)


def test_beams_and_several_sequences_follow_their_row(llama: Any) -> None:
    names = ["b", "__base__", "a"]
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "num_beams": 4}
    options["num_return_sequences"] = 2
    together = llama.generate(IDS, adapter_names=names, **options)
    for row, name in enumerate(names):
        alone = llama.generate(IDS[row : row + 1], adapter_names=[name], **options)
        width = min(alone.shape[1], together.shape[1])
        assert torch.equal(together[2 * row : 2 * row + 2, :width], alone[:, :width])
    begun = llama.generate(adapter_names=["a"], bos_token_id=1, max_new_tokens=2, do_sample=False)
    assert begun.shape[0] == 1
