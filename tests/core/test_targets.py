"""Which modules a config targets, on real architectures."""

import re
import warnings
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

from loralab.core.config import LoraConfig
from loralab.core.model import LoraModel
from loralab.core.targets import DEFAULT_TARGETS, find_targets, shorten, walk
from loralab.errors import ConfigError, TargetError

SMALL: dict[str, dict[str, Any]] = {
    "Llama": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
    "GPT2": {"n_embd": 8, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2},
    "Bert": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
    "GPTNeoX": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
    "T5": {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 2, "num_heads": 2},
    "OPT": {"hidden_size": 8, "ffn_dim": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
}
CLASSES = {
    "Llama": "LlamaForCausalLM",
    "GPT2": "GPT2LMHeadModel",
    "Bert": "BertForMaskedLM",
    "GPTNeoX": "GPTNeoXForCausalLM",
    "T5": "T5ForConditionalGeneration",
    "OPT": "OPTForCausalLM",
}
ATTENTION = {
    "Llama": "q_proj k_proj v_proj o_proj",
    "GPT2": "attn.c_attn attn.c_proj",
    "Bert": "query key value attention.output.dense",
    "GPTNeoX": "query_key_value attention.dense",
    "T5": "q k v o",
    "OPT": "q_proj k_proj v_proj out_proj",
}
FEED_FORWARD = {
    "Llama": "gate_proj up_proj down_proj",
    "GPT2": "c_fc mlp.c_proj",
    "Bert": "intermediate.dense output.dense",
    "GPTNeoX": "dense_h_to_4h dense_4h_to_h",
    "T5": "wi wo",
    "OPT": "fc1 fc2",
}
OTHERS = {"Bert": {"cls.predictions.transform.dense"}}
DEFAULTS = {
    "Llama": "q_proj v_proj",
    "GPT2": "attn.c_attn",
    "Bert": "query value",
    "GPTNeoX": "query_key_value",
    "T5": "q v",
    "OPT": "q_proj v_proj",
}


def model_of(name: str) -> nn.Module:
    config = getattr(transformers, f"{name}Config")(vocab_size=16, **SMALL[name])
    with torch.device("meta"):
        return getattr(transformers, CLASSES[name])(config)


def chosen(model: nn.Module, **settings: Any) -> set[str]:
    return set(find_targets(model, LoraConfig(**settings)).paths)


def ending(model: nn.Module, names: str) -> set[str]:
    return {path for path, _ in walk(model) if any(path.endswith(f".{name}") for name in names.split())}


def chosen_by_peft(model: nn.Module, **settings: Any) -> set[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, peft.LoraConfig(**settings))
    return set(adapted.base_model.targeted_module_names)


@pytest.mark.parametrize("name", SMALL)
def test_presets(name: str) -> None:
    model = model_of(name)
    attention = ending(model, ATTENTION[name])
    feed_forward = ending(model, FEED_FORWARD[name]) - attention
    assert chosen(model, target_modules="attention") == attention
    assert chosen(model, target_modules="feed-forward") == feed_forward
    everything = attention | feed_forward | OTHERS.get(name, set())
    assert chosen(model, target_modules="all-linear") == everything


@pytest.mark.parametrize("name", SMALL)
def test_the_default_of_an_architecture(name: str) -> None:
    assert chosen(model_of(name)) == ending(model_of(name), DEFAULTS[name])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "mlp.up_proj"]},
        {"target_modules": r".*layers\.1\..*(q|v)_proj"},
        {"target_modules": ["q_proj"], "layers_to_transform": 1},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0], "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["v_proj"]},
        {"target_modules": "all-linear", "exclude_modules": r".*\.0\..*"},
        {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens", "layers.1.self_attn.q_proj"]},
    ],
    ids=str,
)
def test_the_same_modules_as_peft(settings: dict[str, Any]) -> None:
    assert chosen(model_of("Llama"), **settings) == chosen_by_peft(model_of("Llama"), **settings)


def test_defaults_are_those_of_peft() -> None:
    table = peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    shared = DEFAULT_TARGETS.keys() & table.keys()
    assert len(shared) >= 30
    assert all(set(DEFAULT_TARGETS[kind]) == set(table[kind]) for kind in shared)


def test_a_head_for_classes_is_left_alone() -> None:
    config = transformers.BertConfig(vocab_size=16, **SMALL["Bert"])
    with torch.device("meta"):
        model = transformers.BertForSequenceClassification(config)
    assert "classifier" not in chosen(model, target_modules="all-linear")
    assert chosen(model, target_modules="all-linear") == chosen_by_peft(
        model, target_modules="all-linear", task_type="SEQ_CLS"
    )


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["q_prj"], "Did you mean 'q_proj'"),
        (["model.layers.0.self_attn.qproj"], "Did you mean"),
        (r".*\.qproj", "matches no module"),
        ([], "matches no module"),
        ("q_proj", "matches no module"),
    ],
)
def test_targets_that_match_nothing(wanted: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message) as caught:
        find_targets(model_of("Llama"), LoraConfig(target_modules=wanted))
    assert "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj" in str(caught.value)


def test_a_regex_that_is_none() -> None:
    with pytest.raises(TargetError, match=r"'\*q_proj' is not a regular expression"):
        find_targets(model_of("Llama"), LoraConfig(target_modules="*q_proj"))


def test_entries_of_a_list_that_match_nothing_are_found_and_refused() -> None:
    config = LoraConfig(target_modules=["q_proj", "up_prj", "zzz"])
    assert find_targets(model_of("Llama"), config).unmatched == ("up_prj", "zzz")
    with pytest.raises(TargetError, match=r"'up_prj', 'zzz' .*Did you mean 'up_proj'"):
        LoraModel(model_of("Llama"), config)


def test_targets_that_are_all_excluded() -> None:
    with pytest.raises(TargetError, match="matches 2 modules, but exclude_modules or modules_to_save"):
        chosen(model_of("Llama"), target_modules=["q_proj"], exclude_modules=["q_proj"])


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(TargetError, match=r"in layers_to_transform=\[7\]"):
        chosen(model_of("Llama"), target_modules=["q_proj"], layers_to_transform=[7])


def test_no_default_for_an_unknown_model() -> None:
    with pytest.raises(TargetError, match=r"target_modules is not set.*all-linear"):
        chosen(nn.Sequential(nn.Linear(2, 2)))


def test_a_module_that_cannot_be_adapted_is_named() -> None:
    with pytest.raises(TargetError, match=r"'model\.norm' is a LlamaRMSNorm"):
        LoraModel(model_of("Llama"), LoraConfig(target_modules=["model.norm"]))


class Experts(nn.Module):
    """Two layers of three numbered experts: two numbers in each path."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.ModuleList(nn.ModuleDict({"experts": self.experts()}) for _ in range(2))
        self.model = nn.ModuleDict({"layers": layers})

    def experts(self) -> nn.ModuleList:
        return nn.ModuleList(nn.ModuleDict({"up": nn.Linear(2, 2)}) for _ in range(3))


@pytest.mark.parametrize("wanted", [["up"], "all-linear"])
def test_layers_are_counted_in_the_outermost_list(wanted: Any) -> None:
    settings = {"target_modules": wanted, "layers_to_transform": [1]}
    assert chosen(Experts(), **settings) == {f"model.layers.1.experts.{number}.up" for number in range(3)}
    inner = chosen(Experts(), **settings, layers_pattern="experts")
    assert inner == {f"model.layers.{number}.experts.1.up" for number in range(2)}
    assert chosen(Experts(), **settings, layers_pattern=["layers"]) == chosen(Experts(), **settings)
    assert chosen(Experts(), target_modules=wanted, layers_to_transform=[]) == chosen(
        Experts(), target_modules=wanted
    )


def test_an_adapted_model_shows_its_own_modules() -> None:
    model = model_of("Llama")
    before = [(path, type(module)) for path, module in walk(model)]
    LoraModel(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    assert [(path, type(module)) for path, module in walk(model)] == before


@pytest.mark.parametrize("wanted", ["all-linear", "attention", None, ["q_proj"]])
@pytest.mark.parametrize("layers", [None, [1]])
def test_what_is_saved_targets_the_same_modules_again(wanted: Any, layers: Any) -> None:
    config = LoraConfig(target_modules=wanted, layers_to_transform=layers, exclude_modules=["k_proj"])
    paths = chosen(model_of("Llama"), **vars(config))
    saved = LoraModel(model_of("Llama"), config).peft_config["default"]
    assert isinstance(saved.target_modules, set)
    assert chosen(model_of("Llama"), **vars(saved)) == paths
    again = {key: getattr(saved, key) for key in ("target_modules", "exclude_modules", "layers_to_transform")}
    assert chosen_by_peft(model_of("Llama"), **again) == paths


def test_shortened_names_match_what_they_stand_for() -> None:
    every = [f"h.{layer}.{part}.{leaf}" for layer in range(3) for part in "ab" for leaf in ("q", "k")]
    assert shorten([path for path in every if path.endswith("q")], every) == {"q"}
    assert shorten([path for path in every if path.endswith("a.q")], every) == {"a.q"}
    assert shorten(["h.1.a.q"], every) == {"1.a.q"}
    assert all(re.fullmatch(r"[012]\.a\.q|b\.k", name) for name in shorten(["h.0.a.q", "h.2.a.q"], every))


def test_an_unknown_initialisation_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'gausian'.*Did you mean 'gaussian'"):
        LoraModel(Experts(), LoraConfig(target_modules=["up"], init_lora_weights="gausian"))
