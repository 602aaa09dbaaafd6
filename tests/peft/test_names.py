"""PEFT's names, module paths and signatures: all there, or refused by name."""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.layer import Linear as TheirLinear
from torch import nn
from transformers.pytorch_utils import Conv1D

import loralab.peft as ours
from loralab import LoraModel, PeftModel
from loralab.core.layers import LoraLayer
from loralab.core.layers.linear import Layer as OurLinear
from loralab.errors import ConfigError, LoralabError
from loralab.peft import others
from loralab.peft.tuners import lora

WALK = pkgutil.walk_packages(ours.__path__, "loralab.peft.")
MODULES = [info.name for info in WALK if info.name != "loralab.peft.others"]
IMPORTED = {
    "peft": "LoraConfig LoftQConfig EvaConfig PeftConfig PeftType TaskType PeftModel PeftMixedModel",
    "peft.tuners.lora": "LoraLayer LoraGAConfig preprocess_loraga Linear Conv2d Embedding",
    "peft.tuners.lora.layer": "Linear Conv1d Conv2d Embedding ParamWrapper LoraLayer",
    "peft.tuners.lora.config": "BdLoraConfig CordaConfig MontecloraConfig",
    "peft.tuners.lora.corda": "preprocess_corda",
    "peft.tuners.lora.model": "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING LoraModel",
    "peft.tuners.tuners_utils": "BaseTuner BaseTunerLayer check_target_module_exists inspect_matched_modules "
    "_find_minimal_target_modules _maybe_include_all_linear_layers _get_tuner_state_dict_key_prefixes "
    "_filter_state_dict_by_key_prefixes",
    "peft.tuners._buffer_dict": "BufferDict",
    "peft.tuners.trainable_tokens.layer": "TrainableTokensLayer",
    "peft.utils": "AuxiliaryTrainingWrapper ModulesToSaveWrapper TrainableTokensWrapper _get_submodules "
    "infer_device get_peft_model_state_dict INCLUDE_LINEAR_LAYERS_SHORTHAND",
    "peft.utils.other": "_get_module_names_tied_with_embedding _get_no_split_modules fsdp_auto_wrap_policy",
    "peft.utils.constants": "DUMMY_MODEL_CONFIG MIN_TARGET_MODULES_FOR_OPTIMIZATION",
    "peft.utils.hotswap": "hotswap_adapter prepare_model_for_compiled_hotswap",
    "peft.utils.quantization_utils": "Bnb8bitBackend",
    "peft.utils.integrations": "skip_init_on_device",
    "peft.utils.transformers_weight_conversion": "build_peft_weight_mapping",
    "peft.mapping": "PEFT_TYPE_TO_PREFIX_MAPPING get_peft_config",
    "peft.helpers": "DoraCaching disable_input_dtype_casting rescale_adapter_scale check_if_peft_model",
    "peft.optimizers": "create_lorafa_optimizer create_loraplus_optimizer create_riemannian_optimizer",
    "peft.tuners.loha.layer": "LoHaLayer",
    "peft.tuners.lokr.layer": "LoKrLayer factorization",
}
"""What the scripts and libraries of others import."""

PROMPTS = "there are no trained prompts"
INSIDE = "an inner part of PEFT's way of wrapping layers"
ABSENT = {
    "PeftModel.get_prompt": PROMPTS,
    "PeftModel.get_prompt_embedding_to_save": PROMPTS,
    "LoraModel.get_model_config": INSIDE,
    "LoraModel.inject_adapter": INSIDE,
    "LoraModel.subtract_mutated_init": "save_pretrained does it",
    "LoraModel.target_module_mapping": INSIDE,
    "LoraModel.tuner_layer_cls": INSIDE,
    "LoraModel.uses_shared_state": INSIDE,
    "LoraConfig.check_kwargs": INSIDE,
    "PeftConfig.check_kwargs": INSIDE,
    **dict.fromkeys(
        (
            f"Linear.{kind}_init"
            for kind in ("corda", "loftq", "lora_ga", "mica", "olora", "orthogonal", "pissa")
        ),
        "initialisations are files in core/inits",
    ),
    **dict.fromkeys(
        (
            f"Linear.{name}"
            for name in ("reset_lora_parameters", "update_layer", "get_base_weight", "set_base_weight")
        ),
        INSIDE,
    ),
    **dict.fromkeys(
        (f"Linear.{name}" for name in ("lora_variants", "resolve_lora_variant", "frozen_peft_weight_names")),
        "variants are files in core/variants",
    ),
    "Linear.other_param_names": INSIDE,
}
"""Members of PEFT's classes that are not here, and why."""

DIFFERENT = {
    "push_to_hub": ({"max_shard_size", "tags"}, "an adapter is one file; tags belong into its README.md"),
    "LoraModel.merge_adapter": ({"safe_merge"}, "weights that are not finite are always refused"),
    "LoraModel.merge_and_unload": ({"safe_merge"}, "weights that are not finite are always refused"),
    "Linear.delete_adapter": ({"adapter_name"}, "the first parameter, given by position, is called name"),
    "delete_adapter": ({"prefix", "layer_cls"}, "there is one prefix and one kind of layer"),
    "set_adapter": ({"layer_cls"}, "there is one kind of layer"),
    "get_eva_state_dict": (
        {"forward_fn", "prepare_model_inputs_fn", "prepare_layer_inputs_fn"},
        "the defaults are functions of the same names",
    ),
    "initialize_lora_eva_weights": (
        {"forward_fn", "prepare_model_inputs_fn", "prepare_layer_inputs_fn"},
        "the defaults are functions of the same names",
    ),
}
"""Parameters that are missing, or have another default, and why."""

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def differences(theirs: Callable[..., Any], mine: Callable[..., Any]) -> set[str]:
    """The names of PEFT's parameters that ours lacks, has in another place or with another default."""
    wanted = [
        p for p in inspect.signature(theirs).parameters.values() if p.kind in NAMED and p.name != "self"
    ]
    parameters = inspect.signature(mine).parameters
    known = [p for p in parameters.values() if p.kind in NAMED]
    if (
        "self" not in parameters
        and known
        and known[0].name in ("model", "self")
        and not _has(wanted, "model")
    ):
        known = known[1:]
    known = [p for p in known if p.name != "self"]
    places = [p.name for p in known if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    found = set()
    for place, parameter in enumerate(wanted):
        mine_is = next((p for p in known if p.name == parameter.name), None)
        moved = parameter.kind is NAMED[0] and places[place : place + 1] not in ([parameter.name], [])
        if mine_is is None or moved or mine_is.default != parameter.default:
            found.add(parameter.name)
    return found


def _has(parameters: list[inspect.Parameter], name: str) -> bool:
    return any(parameter.name == name for parameter in parameters)


def members(owner: type) -> list[str]:
    """The public names that PEFT gives to a class itself."""
    return [n for n in dir(owner) if not n.startswith("_") and n not in dir(nn.Module)] + ["__init__"]


def test_every_public_name_is_there() -> None:
    assert set(peft.__all__) <= set(ours.__all__)
    for name in ours.__all__:
        assert hasattr(ours, name), name
    assert ours.__version__ == peft.__version__


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_what_peft_has_there(module: str) -> None:
    mine, theirs = (
        importlib.import_module(module),
        importlib.import_module(module.replace("loralab.peft", "peft")),
    )
    more = {"Conv1d", "MultiheadAttention", "EMBEDDING_LAYER_NAMES"}
    for name in mine.__all__:
        assert hasattr(mine, name)
        assert hasattr(theirs, name) or name in more, name


@pytest.mark.parametrize("module", IMPORTED)
def test_what_others_import_is_there(module: str) -> None:
    mine = importlib.import_module(module.replace("peft", "loralab.peft", 1))
    for name in IMPORTED[module].split():
        assert hasattr(mine, name), name


def test_constants_are_pefts() -> None:
    for name in ours.utils.constants.__all__:
        theirs = getattr(peft.utils.constants, name)
        if isinstance(theirs, str | int | list | tuple):
            assert getattr(ours.utils.constants, name) == theirs, name
    table = ours.tuners.lora.model.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    for kind, names in peft.tuners.lora.model.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.items():
        assert kind not in table or set(names) == set(table[kind]), kind
    assert {kind.name: kind.value for kind in peft.PeftType} == {
        kind.name: kind.value for kind in ours.PeftType
    }
    assert [kind.value for kind in peft.TaskType] == [kind.value for kind in ours.TaskType]


@pytest.mark.parametrize("name", [name for name in vars(others) if name[0] != "_" and name in peft.__all__])
def test_what_is_not_here_refuses_to_be_used(name: str) -> None:
    thing = getattr(ours, name)
    with pytest.raises(ConfigError, match=rf"^{name}: .*") as caught:
        thing(r=8)
    assert "\n" not in str(caught.value)
    if isinstance(thing, type):
        assert not isinstance(ours.LoraConfig(), thing)
        with pytest.raises(ConfigError, match=name):
            thing.from_pretrained("somewhere")


def functions() -> dict[str, tuple[Any, Any]]:
    found = {}
    for module in MODULES:
        mine = importlib.import_module(module)
        theirs = importlib.import_module(module.replace("loralab.peft", "peft"))
        for name in mine.__all__:
            if inspect.isfunction(getattr(theirs, name, None)) and not hasattr(others, name):
                found[name] = getattr(theirs, name), getattr(mine, name)
    return found


@pytest.mark.parametrize("name", functions())
def test_a_function_has_pefts_parameters(name: str) -> None:
    theirs, mine = functions()[name]
    allowed = DIFFERENT.get(name, (set(), ""))[0]
    assert differences(theirs, mine) <= allowed


CLASSES: dict[str, tuple[type, type]] = {
    "PeftModel": (peft.PeftModel, PeftModel),
    "LoraModel": (peft.LoraModel, LoraModel),
    "LoraConfig": (peft.LoraConfig, ours.LoraConfig),
    "PeftConfig": (peft.PeftConfig, ours.PeftConfig),
    "AutoPeftModelForCausalLM": (peft.AutoPeftModelForCausalLM, ours.AutoPeftModelForCausalLM),
    "Linear": (TheirLinear, OurLinear),
}


@pytest.mark.parametrize("owner", CLASSES)
def test_a_class_has_pefts_members_and_their_parameters(owner: str) -> None:
    theirs, mine = CLASSES[owner]
    for name in members(theirs):
        full = f"{owner}.{name}"
        known = hasattr(mine, name) or (mine is OurLinear and name in ("merged_adapters",))
        forwarded = mine is PeftModel and hasattr(LoraModel, name)
        assert known or forwarded or full in ABSENT, full
        if known or forwarded:
            assert full not in ABSENT, full
        member = inspect.getattr_static(theirs, name)
        if (
            name == "__init__"
            or not known
            or not (inspect.isfunction(member) or isinstance(member, classmethod))
        ):
            continue
        allowed = DIFFERENT.get(full, DIFFERENT.get(name, (set(), "")))[0]
        assert differences(getattr(theirs, name), getattr(mine, name)) <= allowed, full


def test_making_a_model_takes_pefts_parameters() -> None:
    for theirs, mine in ((peft.PeftModel, PeftModel), (peft.PeftModelForCausalLM, ours.PeftModelForCausalLM)):
        assert differences(theirs.__init__, mine.__init__) == set()
    assert {f.name for f in dataclasses.fields(peft.LoraConfig)} == {
        f.name for f in dataclasses.fields(ours.LoraConfig)
    }


def test_every_difference_is_one() -> None:
    for full in ABSENT:
        owner, _, name = full.partition(".")
        assert name in members(CLASSES[owner][0]), full
    for name, (parameters, reason) in DIFFERENT.items():
        assert parameters
        assert reason, name


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.gpt = Conv1D(4, 4)
        self.embedding = nn.Embedding(5, 4)
        self.conv1 = nn.Conv1d(2, 2, 1)
        self.conv2 = nn.Conv2d(2, 2, 1)
        self.conv3 = nn.Conv3d(2, 2, 1)
        self.attention = nn.MultiheadAttention(4, 2)
        self.head = nn.Linear(4, 2)


KINDS = {
    "linear": "Linear",
    "gpt": "Linear",
    "embedding": "Embedding",
    "conv1": "Conv1d",
    "conv2": "Conv2d",
    "conv3": "Conv3d",
    "attention": "MultiheadAttention",
}


def test_layers_are_known_by_pefts_classes() -> None:
    config = ours.LoraConfig(target_modules=list(KINDS), modules_to_save=["head"])
    model = ours.get_peft_model(Mixed(), config)
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        theirs = peft.get_peft_model(
            Mixed(), peft.LoraConfig(target_modules=list(KINDS), modules_to_save=["head"])
        )
    for name, kind in KINDS.items():
        layer = getattr(model.get_base_model(), name)
        for other in set(KINDS.values()):
            assert isinstance(layer, getattr(lora.layer, other)) is (other == kind), (name, other)
        assert isinstance(layer, LoraLayer)
        assert isinstance(layer, ours.tuners.tuners_utils.BaseTunerLayer)
        wanted = repr(getattr(theirs.get_base_model(), name)).partition("(")[0]
        assert repr(layer).partition("(")[0] == wanted == f"lora.{kind}"
        for table in layer.adapter_layer_names:
            assert hasattr(layer, table), (name, table)
    head = model.get_base_model().head
    assert isinstance(head, ours.utils.ModulesToSaveWrapper)
    assert isinstance(head, ours.utils.AuxiliaryTrainingWrapper)
    assert not isinstance(head, LoraLayer)
    with pytest.raises(ConfigError, match="get_peft_model"):
        lora.Linear(nn.Linear(2, 2))
    kinds = {s.name: s.module_type for s in model.get_layer_status()}
    wanted_kinds = {s.name: s.module_type for s in theirs.get_layer_status()}
    assert {name: kind for name, kind in kinds.items() if "attention" not in name} == {
        name: kind for name, kind in wanted_kinds.items() if "attention" not in name
    }


def test_configs_are_peft_configs() -> None:
    config = ours.LoraConfig(task_type=ours.TaskType.CAUSAL_LM)
    assert isinstance(config, ours.PeftConfig)
    assert config.peft_type is ours.PeftType.LORA
    assert config.peft_type.value == "LORA"
    assert not config.is_prompt_learning
    assert not isinstance(config, ours.PrefixTuningConfig)
    assert ours.get_peft_config({"peft_type": "LORA", "r": 3}).r == 3
    assert ours.get_peft_config({"peft_type": "LORA", "r": 3}) == ours.LoraConfig(r=3)
    with pytest.raises(LoralabError, match="IA3"):
        ours.get_peft_config({"peft_type": "IA3"})
    with pytest.raises(ConfigError, match="ephemeral_gpu_offload"):
        ours.LoraConfig(runtime_config=ours.LoraRuntimeConfig(ephemeral_gpu_offload=True))


def test_errors_and_warnings_are_pefts_kinds() -> None:
    with pytest.raises(ours.NoMatchingPeftModuleError) as caught:
        ours.get_peft_model(nn.Sequential(nn.Linear(2, 2)), ours.LoraConfig(target_modules=["nothing"]))
    assert isinstance(caught.value, ours.PeftError | ValueError)
    assert issubclass(ours.PeftWarning, UserWarning)
    assert torch.is_tensor(
        next(ours.get_peft_model(Mixed(), ours.LoraConfig(target_modules=["linear"])).parameters())
    )
