"""How a `PeftModel` is loaded and saved: hub, subfolders, dtypes, keys, embeddings, changed bases."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from loralab import LoraConfig, PeftModel, get_peft_model, read_adapter
from loralab.adapters.auto import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
)
from loralab.adapters.functional import PeftWarning
from loralab.adapters.store import find_adapter
from loralab.core.peft_config import PeftConfig
from loralab.errors import AdapterError, ConfigError
from loralab.hub import HubOptions, find_folder

X = torch.linspace(-1, 1, 12).view(3, 4)
IDS = torch.tensor([[1, 5, 9, 3]])
SIZES: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def net(width: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, width))


def llama(vocab_size: int = 16, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocab_size, tie_word_embeddings=tied, pad_token_id=0, **SIZES)
    )


def adapted(**settings: Any) -> PeftModel:
    config = {"r": 2, "target_modules": ["0", "2"], "init_lora_weights": False} | settings
    return get_peft_model(net(), LoraConfig(**config))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    adapted().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def cached(folder: Path, cache: Path, name: str, inside: str = "") -> None:
    """Put an adapter into a hub cache as if it had been downloaded."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, place / "snapshots" / ("0" * 40) / inside)


def test_an_adapter_from_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cached(folder, tmp_path / "hub", "poets/sea")
    cached(folder, tmp_path / "hub", "poets/land", "second/best")
    wanted = PeftModel.from_pretrained(net(), folder)(X)
    where: dict[str, Any] = {"cache_dir": tmp_path / "hub", "local_files_only": True}
    assert torch.equal(PeftModel.from_pretrained(net(), "poets/sea", **where)(X), wanted)
    model = PeftModel.from_pretrained(net(), "poets/land", subfolder="second/best", token=False, **where)
    assert torch.equal(model(X), wanted)
    model.load_adapter("poets/sea", "sea", **where)
    model.set_adapter("sea")
    assert torch.equal(model(X), wanted)
    assert PeftConfig.from_pretrained("poets/sea", **where) == read_adapter(folder).config
    with pytest.raises(AdapterError, match="poets/air: no adapter there: not a folder, not in the cache"):
        PeftModel.from_pretrained(net(), "poets/air", **where)
    with pytest.raises(AdapterError, match="no such folder"):
        PeftModel.from_pretrained(net(), "./poets/air", **where)


def test_a_name_on_the_command_line_may_be_a_hub_id(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(folder, tmp_path / "hub", "poets/sea")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert read_adapter(find_adapter("poets/sea", tmp_path)).digest() == read_adapter(folder).digest()


def test_a_subfolder_of_a_folder(folder: Path) -> None:
    model = adapted()
    model.add_adapter("poet", LoraConfig(r=1, target_modules=["0"]))
    model.save_pretrained(folder.parent)
    loaded = PeftModel.from_pretrained(net(), folder.parent, subfolder="poet", revision="main")
    assert loaded.peft_config["default"].r == 1
    assert find_folder(folder.parent, [], HubOptions(subfolder="poet")) == folder.parent / "poet"


@pytest.mark.parametrize("keyword", ["max_memory", "offload_folder", "ephemeral_gpu_offload", "subfoldr"])
def test_keywords_that_would_do_nothing_are_refused(folder: Path, keyword: str) -> None:
    with pytest.raises(ConfigError, match=f"from_pretrained: {keyword}"):
        PeftModel.from_pretrained(net(), folder, **{keyword: "auto"})
    with pytest.raises(ConfigError, match=f"load_adapter: {keyword}"):
        adapted().load_adapter(folder, "other", **{keyword: "auto"})
    PeftModel.from_pretrained(net(), folder, torch_device="cpu", low_cpu_mem_usage=True, cache_dir=None)


def test_the_config_given_by_hand_takes_the_place_of_the_file(folder: Path) -> None:
    config = LoraConfig(r=2, lora_alpha=64, target_modules=["0", "2"])
    model = PeftModel.from_pretrained(net(), folder, config=config, is_trainable=True)
    assert model.peft_config["default"].lora_alpha == 64
    assert not config.inference_mode
    with pytest.raises(AdapterError, match="does not fit"):
        PeftModel.from_pretrained(net(), folder, config=LoraConfig(r=3, target_modules=["0", "2"]))


def test_dtypes_of_loaded_and_new_adapters(folder: Path) -> None:
    def dtypes(model: PeftModel, name: str = "default") -> set[torch.dtype]:
        return {p.dtype for n, p in model.named_parameters() if f".{name}." in n}

    half = {key: tensor.bfloat16() for key, tensor in load_file(folder / "adapter_model.safetensors").items()}
    save_file(half, folder / "adapter_model.safetensors")
    assert dtypes(PeftModel.from_pretrained(net(), folder)) == {torch.float32}
    kept = PeftModel.from_pretrained(net().bfloat16(), folder, autocast_adapter_dtype=False)
    assert dtypes(kept) == {torch.bfloat16}
    kept.load_adapter(folder, "wide")
    kept.load_adapter(folder, "same", autocast_adapter_dtype=False)
    kept.add_adapter("new", LoraConfig(r=1, target_modules=["0"]), autocast_adapter_dtype=False)
    assert dtypes(kept, "wide") == {torch.float32}
    assert dtypes(kept, "same") == dtypes(kept, "new") == {torch.bfloat16}
    config = LoraConfig(r=1, target_modules=["0"])
    assert dtypes(get_peft_model(net().bfloat16(), config)) == {torch.float32}
    assert dtypes(get_peft_model(net().bfloat16(), config, autocast_adapter_dtype=False)) == {torch.bfloat16}


def test_renamed_modules_are_found_by_a_key_mapping(folder: Path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 5), "b": nn.Linear(5, 3)})
    config = LoraConfig(r=2, target_modules=["a", "b"])
    mapping = {r"^0\.": "a.", r"^2\.": "b."}
    loaded = PeftModel.from_pretrained(model, folder, config=config, key_mapping=mapping)
    first = loaded.get_base_model()["a"].lora_A["default"].weight
    assert torch.equal(first, read_adapter(folder).tensors["0.lora_A.weight"])


def test_sizes_that_differ_may_be_left_alone(folder: Path) -> None:
    with pytest.raises(AdapterError, match=r"2\.lora_B\.weight is \[3, 2\], the model needs \[4, 2\]"):
        PeftModel.from_pretrained(net(4), folder)
    with pytest.warns(PeftWarning, match=r"2\.lora_B\.default\.weight is \[3, 2\], the model needs \[4, 2\]"):
        model = PeftModel.from_pretrained(net(4), folder, ignore_mismatched_sizes=True)
    first = model.get_base_model()[0].lora_A["default"].weight
    assert torch.equal(first, read_adapter(folder).tensors["0.lora_A.weight"])
    with pytest.warns(PeftWarning):
        result = model.load_adapter(folder, "other", ignore_mismatched_sizes=True)
    assert [name for name, _, _ in result.mismatched_keys] == ["base_model.model.2.lora_B.other.weight"]


def test_requires_grad_and_what_else_a_model_is_asked() -> None:
    model = adapted(modules_to_save=None)
    assert model.has_active_enabled_adapter
    with model.disable_adapter():
        assert not model.has_active_enabled_adapter
    model.set_requires_grad("default", False)
    assert not any(p.requires_grad for p in model.parameters())
    model.set_requires_grad(["default"])
    assert model.get_nb_trainable_parameters()[0] > 0
    with pytest.raises(AdapterError, match="no adapter 'x'"):
        model.set_requires_grad("x")
    assert model.modules_to_save is None
    assert adapted(target_modules=["0"], modules_to_save=["2"]).modules_to_save == {"2"}
    assert model.supports_lora_conversion()
    assert model.base_model.targeted_module_names == ["0", "2"]
    assert model.base_model.targeted_parameter_names == []
    assert model.base_model_torch_dtype is None
    assert get_peft_model(llama().bfloat16(), LoraConfig()).base_model_torch_dtype is torch.bfloat16
    assert repr(model).startswith("PeftModel(")
    model.add_adapter("two", LoraConfig(r=1, target_modules=["0"]))
    with pytest.warns(PeftWarning, match="'default' is deleted; 'two' runs now"):
        model.delete_adapter("default")
    assert model.active_adapters == ["two"]


def test_checkpointing_that_is_on_already_lets_gradients_in() -> None:
    base = llama()
    base.activation_checkpointing_enable({"use_reentrant": True})
    base.train()
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_of_a_changed_base_is_saved_for_the_base_as_it_was(
    tmp_path: Path, init: str, rslora: bool
) -> None:
    patterns = {"rank_pattern": {"2": 3}, "alpha_pattern": {"0": 5}}
    model = adapted(init_lora_weights=init, use_rslora=rslora, **patterns)
    model.save_pretrained(tmp_path / "start")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(X).square().mean().backward()
    optimizer.step()
    trained = model(X)
    start = tmp_path / "start"
    model.save_pretrained(tmp_path / "end", path_initial_model_for_weight_conversion=start)
    loaded = PeftModel.from_pretrained(net(), tmp_path / "end")
    assert loaded.peft_config["default"].init_lora_weights is True
    assert (loaded.peft_config["default"].r, loaded.peft_config["default"].rank_pattern) == (4, {"2": 6})
    torch.testing.assert_close(loaded(X), trained)
    if not rslora:  # PEFT doubles alpha_pattern even there
        torch.testing.assert_close(peft.PeftModel.from_pretrained(net(), tmp_path / "end")(X), trained)
    with pytest.raises(AdapterError, match="not the start of this adapter"):
        adapted(r=4).save_pretrained(tmp_path / "x", path_initial_model_for_weight_conversion=start)
    with pytest.raises(AdapterError, match="use_dora"):
        adapted(use_dora=True).save_pretrained(tmp_path / "x", path_initial_model_for_weight_conversion=start)


EMBEDDINGS: dict[str, dict[str, Any]] = {
    "targeted": {"target_modules": ["embed_tokens", "q_proj", "lm_head"]},
    "one-targeted": {"target_modules": ["embed_tokens", "q_proj"]},
    "untargeted": {"target_modules": ["q_proj"]},
}


@pytest.mark.parametrize("save", ["auto", True, False])
@pytest.mark.parametrize("settings", EMBEDDINGS.values(), ids=EMBEDDINGS)
def test_embeddings_are_saved_as_peft_saves_them(tmp_path: Path, settings: dict[str, Any], save: Any) -> None:
    keys = []
    for name, library in (("ours", None), ("theirs", peft)):
        if library is None:
            model: Any = get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", **settings))
            model.save_pretrained(tmp_path / name, save_embedding_layers=save)
        else:
            model = peft.get_peft_model(llama(), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what it does, which is asked for
                model.save_pretrained(tmp_path / name, save_embedding_layers=save)
        keys.append(set(load_file(tmp_path / name / "adapter_model.safetensors")))
    assert keys[0] == keys[1]


@pytest.mark.parametrize("settings", EMBEDDINGS.values(), ids=EMBEDDINGS)
def test_resized_embeddings_travel_with_the_adapter(tmp_path: Path, settings: dict[str, Any]) -> None:
    llama().save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(20)
    model = get_peft_model(base, LoraConfig(init_lora_weights=False, **settings)).eval()
    model.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[17, 18, 3]])
    other = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    with pytest.raises(AdapterError, match=r"call resize_token_embeddings\(20\) on the base model first"):
        PeftModel.from_pretrained(other, tmp_path / "adapter")
    torch.manual_seed(9)
    other.resize_token_embeddings(20)
    loaded = PeftModel.from_pretrained(other, tmp_path / "adapter")
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    smaller = get_peft_model(LlamaForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig(**settings))
    smaller.save_pretrained(tmp_path / "small")
    assert not [
        key for key in load_file(tmp_path / "small" / "adapter_model.safetensors") if "lora_" not in key
    ]


def test_embeddings_are_asked_for_where_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="save_embedding_layers=True: a Sequential has no get_input_embeddings"
    ):
        adapted().save_pretrained(tmp_path, save_embedding_layers=True)


def test_a_sharded_state_can_be_saved(tmp_path: Path) -> None:
    model = adapted()
    gathered = {key: tensor + 1 for key, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=gathered)
    tensors = model.base_model.adapter("default").tensors
    assert all(torch.equal(t, tensors[key] + 1) for key, t in read_adapter(tmp_path).tensors.items())
    model.save_pretrained(tmp_path / "other rank", is_main_process=False)
    assert not (tmp_path / "other rank").exists()


def test_the_card_says_the_base_and_stays(tmp_path: Path) -> None:
    model = get_peft_model(llama(), LoraConfig(base_model_name_or_path="org/name", task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "base_model: org/name\n" in card
    assert "library_name: peft\n" in card
    assert "pipeline_tag: text-generation\n" in card
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_uploading_needs_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for thing in (adapted(), LoraConfig()):
        with pytest.raises(AdapterError, match="org/name: not uploaded"):
            thing.push_to_hub("org/name", private=True)


def test_the_base_comes_with_the_adapter(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    model.save_pretrained(tmp_path / "adapter")
    wanted = model(input_ids=IDS).logits
    loaded = AutoPeftModelForCausalLM.from_pretrained(
        tmp_path / "adapter", adapter_name="poet", is_trainable=True
    )
    assert torch.equal(loaded.eval()(input_ids=IDS).logits, wanted)
    assert loaded.active_adapters == ["poet"]
    assert any(p.requires_grad for p in loaded.parameters())
    half = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    for kind in (AutoPeftModel, AutoPeftModelForSequenceClassification):
        with pytest.raises(ConfigError, match="use AutoPeftModelForCausalLM"):
            kind.from_pretrained(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=r"used as AutoPeftModel\.from_pretrained"):
        AutoPeftModel()


def test_a_base_without_a_task_is_made_from_the_class_that_is_named(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "base")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(init_lora_weights=False)).eval()
    model.save_pretrained(tmp_path / "adapter")
    for loaded in (AutoPeftModel, peft.AutoPeftModel):
        again = loaded.from_pretrained(tmp_path / "adapter")
        torch.testing.assert_close(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
    path = tmp_path / "adapter" / "adapter_config.json"
    values = json.loads(path.read_text())
    for library, refusal in (("os", "wants 'os' imported"), (None, "does not say its base's class")):
        mapping = {"base_model_class": "system", "parent_library": library}
        path.write_text(json.dumps(values | {"auto_mapping": mapping}))
        with pytest.raises(ConfigError, match=refusal):
            AutoPeftModel.from_pretrained(tmp_path / "adapter")
    path.write_text(json.dumps(values | {"base_model_name_or_path": None}))
    with pytest.raises(AdapterError, match="names no base model"):
        AutoPeftModel.from_pretrained(tmp_path / "adapter")


def test_loading_ends_training_wherever_it_goes_on(tmp_path: Path) -> None:
    model = get_peft_model(net().eval(), LoraConfig(target_modules=["0"]))
    model.save_pretrained(tmp_path)
    for training in (model, model.get_base_model()[1], model.get_base_model()[0]):
        training.train()
        model.load_adapter(tmp_path, "more")
        assert not any(module.training for module in model.modules())
        model.delete_adapter("more")
    model.train()
    model.load_adapter(tmp_path, "more", is_trainable=True)
    assert all(module.training for module in model.modules())
