"""Targets and files that name the linear layers that experts had before they were stacked."""

import copy
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from loralab import LoraConfig, PeftModel, get_peft_model
from loralab.adapters.functional import inject_adapter_in_model
from loralab.adapters.state_dict import get_peft_model_state_dict, set_peft_model_state_dict
from loralab.errors import AdapterError, TargetError

SIZES: dict[str, Any] = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 32},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 3},
}
IDS = torch.tensor([[1, 5, 9, 3], [2, 2, 7, 30]])
NAMES = {"w1": (24, 16), "w3": (24, 16), "w2": (16, 24)}


def mixtral() -> MixtralForCausalLM:
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SIZES)).eval()


def qwen(dense: bool = False) -> Qwen3MoeForCausalLM:
    torch.manual_seed(0)
    sizes = {key: value for key, value in SIZES.items() if key != "num_local_experts"}
    more = {"num_experts": 3, "moe_intermediate_size": 8, "head_dim": 8, "num_experts_per_tok": 2}
    layers = [0] if dense else []
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **more, mlp_only_layers=layers)).eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def theirs(base: Any, settings: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of patterns that it says match nothing, and do
        return peft.get_peft_model(base, peft.LoraConfig(**settings))


@pytest.mark.parametrize(
    ("make", "targets"),
    [
        (mixtral, ["w1", "w2", "w3"]),
        (mixtral, ["gate", "q_proj"]),
        (mixtral, ["w2", "v_proj"]),
        (mixtral, ["q_proj", "v_proj"]),
        (mixtral, "all-linear"),
        (mixtral, r".*\.w2"),
        (qwen, ["gate_proj", "up_proj", "down_proj"]),
        (qwen, ["gate", "q_proj", "down_proj"]),
        (qwen, "all-linear"),
    ],
)
def test_targets_become_what_peft_makes_of_them(make: Any, targets: Any) -> None:
    settings = {"r": 2, "lora_alpha": 4, "target_modules": targets}
    given = LoraConfig(**settings)
    before = copy.deepcopy(given)
    ours, other = get_peft_model(make(), given), theirs(make(), settings)
    assert given == before
    state = {key: tensor.shape for key, tensor in peft.get_peft_model_state_dict(other).items()}
    assert {key: tensor.shape for key, tensor in get_peft_model_state_dict(ours).items()} == state
    scales = {layer.path: layer.scaling["default"] for layer in ours.base_model.lora_layers.values()}
    assert set(scales.values()) == {2.0}
    injected = inject_adapter_in_model(LoraConfig(**settings), make())
    assert get_peft_model_state_dict(injected).keys() == {k.removeprefix("base_model.model.") for k in state}
    ours.add_adapter("other", LoraConfig(**settings))
    assert len(ours.base_model.adapter("other").tensors) == len(state)


def single_factors(rank: int = 2) -> dict[str, Tensor]:
    """Factors of every expert, of the routers and of an attention, under the keys that they had."""
    torch.manual_seed(1)
    tensors = {}
    for layer in range(2):
        block = f"base_model.model.model.layers.{layer}.block_sparse_moe"
        shapes = {f"{block}.experts.{e}.{name}": shape for e in range(3) for name, shape in NAMES.items()}
        shapes[f"{block}.gate"] = (3, 16)
        shapes[f"base_model.model.model.layers.{layer}.self_attn.q_proj"] = (16, 16)
        for path, (out, width) in shapes.items():
            tensors[f"{path}.lora_A.weight"] = torch.randn(rank, width) * 0.3
            tensors[f"{path}.lora_B.weight"] = torch.randn(out, rank) * 0.3
    return tensors


def changed(tensors: dict[str, Tensor], scale: float) -> MixtralForCausalLM:
    """The base with the product of every pair of factors added to the matrix that it was made for."""
    base = mixtral()
    with torch.no_grad():
        for key in [key for key in tensors if key.endswith("lora_A.weight")]:
            delta = scale * tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
            path = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            where, _, name = path.replace("block_sparse_moe", "mlp").rpartition(".")
            if name not in NAMES:
                base.get_parameter(f"{where}.{name}.weight").add_(delta)
                continue
            where, _, expert = where.rpartition(".")
            experts = base.get_submodule(where)
            if name == "w2":
                experts.down_proj[int(expert)] += delta
            else:
                rows = slice(0, 24) if name == "w1" else slice(24, 48)
                experts.gate_up_proj[int(expert), rows] += delta
    return base


SETTINGS: dict[str, Any] = {
    **{"r": 2, "lora_alpha": 4, "target_modules": ["w1", "w2", "w3", "gate", "q_proj"]},
    **{"task_type": "CAUSAL_LM", "inference_mode": True},
}


def stored(folder: Path, tensors: dict[str, Tensor], **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    LoraConfig(**(SETTINGS | settings)).save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_stored_adapter_of_single_experts_computes_what_it_did(tmp_path: Path) -> None:
    tensors = single_factors()
    folder = stored(tmp_path, tensors)
    loaded = PeftModel.from_pretrained(mixtral(), folder)
    wanted = logits(changed(tensors, 2.0))
    assert (wanted - logits(mixtral())).abs().max() > 1e-3
    torch.testing.assert_close(logits(loaded), wanted, rtol=1e-4, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = peft.PeftModel.from_pretrained(mixtral(), folder)
    torch.testing.assert_close(logits(loaded), logits(other), rtol=1e-4, atol=1e-5)
    own, same = get_peft_model_state_dict(loaded), peft.get_peft_model_state_dict(other)
    assert own.keys() == same.keys()
    assert all(torch.equal(tensor, same[key]) for key, tensor in own.items())


def test_it_can_be_loaded_beside_another_set_and_saved_again(tmp_path: Path) -> None:
    tensors = single_factors()
    folder = stored(tmp_path / "old", tensors)
    wanted = logits(PeftModel.from_pretrained(mixtral(), folder))
    model = get_peft_model(mixtral(), LoraConfig(**SETTINGS)).eval()
    model.load_adapter(folder, "second")
    model.set_adapter("second")
    assert torch.equal(logits(model), wanted)
    result = set_peft_model_state_dict(model, tensors)
    assert not result.missing_keys
    assert not result.unexpected_keys
    model.set_adapter("default")
    assert torch.equal(logits(model), wanted)
    model.save_pretrained(tmp_path / "new", selected_adapters=["default"])
    assert torch.equal(logits(PeftModel.from_pretrained(mixtral(), tmp_path / "new")), wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = peft.PeftModel.from_pretrained(mixtral(), tmp_path / "new")
    torch.testing.assert_close(logits(other), wanted, rtol=1e-4, atol=1e-5)


def test_the_scale_is_kept_with_rslora(tmp_path: Path) -> None:
    tensors = single_factors()
    loaded = PeftModel.from_pretrained(mixtral(), stored(tmp_path, tensors, use_rslora=True))
    torch.testing.assert_close(logits(loaded), logits(changed(tensors, 4 / 2**0.5)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("names", [["w1", "w3"], ["w2"]])
def test_one_parameter_alone_and_an_expert_without_factors(tmp_path: Path, names: list[str]) -> None:
    tensors = {
        key: tensor
        for key, tensor in single_factors().items()
        if any(f".{name}." in key for name in names) and ".experts.1." not in key
    }
    loaded = PeftModel.from_pretrained(mixtral(), stored(tmp_path, tensors, target_modules=names))
    torch.testing.assert_close(logits(loaded), logits(changed(tensors, 2.0)), rtol=1e-4, atol=1e-5)


def test_dense_layers_of_the_same_names_stay_targets() -> None:
    names = ["gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(qwen(dense=True), LoraConfig(target_modules=names))
    paths = {layer.path.removeprefix("model.layers.") for layer in model.base_model.lora_layers.values()}
    stacked = {"1.mlp.experts.gate_up_proj", "1.mlp.experts.down_proj"}
    assert paths == stacked | {f"0.mlp.{name}" for name in names}


def test_a_regex_for_some_layers_reaches_those_alone() -> None:
    config = LoraConfig(target_modules=r".*layers\.1\..*(q_proj|w2|gate)")
    model = get_peft_model(mixtral(), config)
    paths = {layer.path.removeprefix("model.layers.") for layer in model.base_model.lora_layers.values()}
    assert paths == {"1.self_attn.q_proj", "1.mlp.experts.down_proj", "1.mlp.gate.weight"}


@pytest.mark.parametrize("excluded", [["experts", "gate"], r".*\.(w\d|gate)"])
def test_experts_can_be_excluded(excluded: Any) -> None:
    config = LoraConfig(target_modules="all-linear", exclude_modules=excluded, lora_dropout=0.1)
    model = get_peft_model(mixtral(), config)
    names = {layer.path.rpartition(".")[2] for layer in model.base_model.lora_layers.values()}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"target_modules": ["w1", "w2"]}, "names w1 of the experts but not w3"),
        (
            {"target_modules": ["experts.0.w2"]},
            "'w2' names experts, .*a choice among them.*target_parameters=",
        ),
        ({"target_modules": ["w2"], "layers_to_transform": [0]}, "layers_to_transform is not carried over"),
        ({"target_modules": ["w2"], "rank_pattern": {"w2": 4}}, "rank_pattern or alpha_pattern is not"),
        ({"target_modules": ["w2"], "lora_dropout": 0.1}, "lora_dropout=0.1 has no meaning for"),
        ({"target_modules": ["w2"], "exclude_modules": r".*\.w2"}, "matches no module"),
    ],
)
def test_what_cannot_be_carried_over_is_refused(settings: dict[str, Any], fault: str) -> None:
    base = mixtral()
    kinds = [type(module) for module in base.modules()]
    with pytest.raises(TargetError, match=fault) as caught:
        get_peft_model(base, LoraConfig(**settings))
    assert "\n" not in str(caught.value)
    assert [type(module) for module in base.modules()] == kinds


def test_factors_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    block = "base_model.model.model.layers.0.block_sparse_moe.experts"
    for key, tensor, fault in (
        (f"{block}.0.w1.lora_A.weight", torch.zeros(3, 16), "lora_A of 'w1' differs in shape"),
        (f"{block}.5.w2.lora_B.weight", torch.zeros(16, 2), "lora_B of 'w2' is for 6 experts of 3"),
        (f"{block}.0.w9.lora_B.weight", torch.zeros(16, 2), "factors for 'w9'"),
    ):
        folder = stored(tmp_path, single_factors() | {key: tensor})
        with pytest.raises(AdapterError, match=fault):
            PeftModel.from_pretrained(mixtral(), folder)
    tensors = {key: t for key, t in single_factors().items() if not key.endswith("w3.lora_B.weight")}
    with pytest.raises(AdapterError, match="lora_B of 'w3' is missing"):
        PeftModel.from_pretrained(mixtral(), stored(tmp_path, tensors))
