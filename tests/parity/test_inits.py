"""PEFT as the oracle for the initialisations from data: the same data gives the same factors and ranks."""

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft.tuners.lora.corda import preprocess_corda as their_corda
from peft.tuners.lora.eva import get_eva_state_dict as their_eva_state
from peft.tuners.lora.eva import initialize_lora_eva_weights as their_eva
from peft.tuners.lora.loraga import preprocess_loraga as their_loraga
from peft.utils.loftq_utils import _low_rank_decomposition as their_decomposition
from torch import Tensor, nn

from loralab import LoraConfig, PeftModel, get_peft_model
from loralab.adapters.preprocess import preprocess_corda, preprocess_loraga
from loralab.core.eva import get_eva_state_dict, initialize_lora_eva_weights
from loralab.core.inits.loftq import decompose

WORDS = 32
MODELS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "llama": (
        "LlamaForCausalLM",
        {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
        ["q_proj", "k_proj", "up_proj", "down_proj"],
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        {
            **{"n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2},
            **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        },
        ["c_attn", "c_fc"],
    ),
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """PEFT warns of things that are no fault of these tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def build(name: str) -> nn.Module:
    kind, settings, _ = MODELS[name]
    config = getattr(transformers, kind).config_class(vocab_size=WORDS, initializer_range=0.2, **settings)
    torch.manual_seed(0)
    return getattr(transformers, kind)(config).eval()


def batches(count: int, rows: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for ids in torch.randint(0, WORDS, (count, rows, 12), generator=generator):
        mask = torch.ones_like(ids)
        mask[0, 9:] = 0
        found.append({"input_ids": ids, "attention_mask": mask, "labels": ids})
    return found


def settings(name: str, init: str, **options: Any) -> dict[str, Any]:
    targets = MODELS[name][2]
    return {"r": 4, "lora_alpha": 12, "target_modules": targets, "init_lora_weights": init} | options


def run(model: nn.Module, data: list[dict[str, Tensor]], backward: bool = False) -> Callable[[], None]:
    def run_model() -> None:
        for batch in data:
            loss = model(**batch).loss
            if backward:
                loss.backward()

    return run_model


def pair(name: str, init: str, **options: Any) -> tuple[Any, PeftModel, LoraConfig]:
    """The same adapter by PEFT and by us, and the config by which ours knows its statistics."""
    first, second = build(name), build(name)
    with quiet():
        wanted = peft.LoraConfig(**settings(name, init, **theirs_of(options)))
    made = LoraConfig(**settings(name, init, **options))
    if init == "corda":
        data = batches(6, rows=1)
        their_corda(first, wanted, run(first, data))
        preprocess_corda(second, made, run(second, data))
    elif init == "lora_ga":
        data = batches(4, rows=3)
        with quiet():
            their_loraga(first, wanted, run(first, data, backward=True))
        preprocess_loraga(second, made, run(second, data, backward=True))
    with quiet():
        theirs = peft.get_peft_model(first, wanted)
    return theirs.eval(), get_peft_model(second, made).eval(), made


def theirs_of(options: dict[str, Any]) -> dict[str, Any]:
    kinds = {
        "corda_config": peft.tuners.lora.config.CordaConfig,
        "lora_ga_config": peft.tuners.lora.config.LoraGAConfig,
        "eva_config": peft.EvaConfig,
    }
    return {key: kinds[key](**value) if key in kinds else value for key, value in options.items()}


def layers(model: nn.Module) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """(A, B, base weight) of every layer."""
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    return {
        name.removesuffix(".lora_A.default.weight"): (
            tensor,
            tensors[name.replace("lora_A", "lora_B")],
            tensors[name.replace("lora_A.default", "base_layer")],
        )
        for name, tensor in tensors.items()
        if "lora_A" in name
    }


def close(first: Tensor, second: Tensor, tolerance: float = 1e-4) -> None:
    assert first.shape == second.shape
    assert float((first - second).detach().norm()) <= tolerance * float(second.detach().norm())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["ipm", "kpm"])
def test_corda_takes_the_same_out_of_the_base(name: str, method: str) -> None:
    pattern = {"c_attn" if name == "gpt2" else "q_proj": 2}
    theirs, ours, _ = pair(name, "corda", corda_config={"corda_method": method}, rank_pattern=pattern)
    mine, wanted = layers(ours), layers(theirs)
    assert mine.keys() == wanted.keys()
    for path, (a_RI, b_OR, weight) in wanted.items():
        close(mine[path][1] @ mine[path][0], b_OR @ a_RI)
        close(mine[path][2], weight)
    batch = batches(1, rows=2)[0]
    expected = build(name)(**batch).logits
    close(ours(**batch).logits, expected)
    close(theirs(**batch).logits, expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("direction", "scale"),
    list(itertools.product(["ArBr", "A2rBr", "ArB2r"], ["unit", "gd_scale", "stable"])),
)
def test_lora_ga_takes_the_same_directions(name: str, direction: str, scale: str) -> None:
    """A singular vector's sign is free, so rows of A and columns of B are compared up to theirs."""
    theirs, ours, _ = pair(name, "lora_ga", lora_ga_config={"direction": direction, "scale": scale})
    mine, wanted, base = layers(ours), layers(theirs), build(name)
    for path, (a_RI, b_OR, _) in wanted.items():
        own_a, own_b, weight = mine[path]
        module = base.get_submodule(path.removeprefix("base_model.model."))
        turned = name == "gpt2"
        if turned and scale == "stable":
            # PEFT takes I for O where the weight is stored as [I, O].
            b_OR = b_OR * (own_b.shape[0] / own_a.shape[1]) ** 0.25
        close(own_a * (own_a * a_RI).sum(1, keepdim=True).sign(), a_RI, 1e-3)
        close(own_b * (own_b * b_OR).sum(0).sign(), b_OR, 1e-3)
        delta = 3 * own_b @ own_a
        close(weight + (delta.t() if turned else delta), module.weight.detach())
    batch = batches(1, rows=2)[0]
    close(ours(**batch).logits, base(**batch).logits)


def test_lora_ga_scales_by_the_weight() -> None:
    theirs, ours, _ = pair("llama", "lora_ga", lora_ga_config={"scale": "weight_svd"})
    wanted = layers(theirs)
    for path, (_, b_OR, _) in layers(ours).items():
        assert float(b_OR.norm() / wanted[path][1].norm()) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "eva", [{}, {"rho": 1.0}, {"whiten": True}, {"adjust_scaling_factors": False}, {"rho": 3.0}], ids=str
)
def test_eva_finds_the_same_ranks_and_directions(name: str, eva: dict[str, Any]) -> None:
    theirs, ours, _ = pair(name, "eva", eva_config=eva)
    data = batches(10, rows=8)
    their_eva(theirs, data, show_progress_bar=False)
    initialize_lora_eva_weights(ours, data)
    first, second = theirs.peft_config["default"], ours.peft_config["default"]
    assert second.rank_pattern == first.rank_pattern
    assert second.alpha_pattern == pytest.approx(first.alpha_pattern)
    mine, wanted = layers(ours), layers(theirs)
    assert mine.keys() == wanted.keys()
    for path, (a_RI, b_OR, _) in wanted.items():
        # When the search stops may differ by a batch: PEFT takes a changed sign for a turn.
        cosines = nn.functional.cosine_similarity(mine[path][0], a_RI).abs()
        assert float(cosines.min()) > 0.97
        assert not b_OR.any()
        assert not mine[path][1].any()
    batch = batches(1, rows=2)[0]
    close(ours(**batch).logits, build(name)(**batch).logits)


@pytest.mark.parametrize("name", MODELS)
def test_eva_states_are_exchanged(name: str) -> None:
    theirs, ours, _ = pair(name, "eva")
    data = batches(10, rows=8)
    state, other = get_eva_state_dict(ours, data), their_eva_state(theirs, data, show_progress_bar=False)
    assert {path: a_RI.shape for path, a_RI in state.items()} == {p: a.shape for p, a in other.items()}
    their_eva(theirs, eva_state_dict=dict(state))
    initialize_lora_eva_weights(ours, eva_state_dict=other)
    for path, (a_RI, _, _) in layers(theirs).items():
        assert torch.equal(a_RI, state[path])
        close(layers(ours)[path][0], other[path].float())


@pytest.mark.parametrize("name", MODELS)
def test_eva_adapters_are_read_both_ways(name: str, tmp_path: Path) -> None:
    theirs, ours, _ = pair(name, "eva")
    data, batch = batches(10, rows=8), batches(1, rows=2)[0]
    their_eva(theirs, data, show_progress_bar=False)
    initialize_lora_eva_weights(ours, data)
    for model in (theirs, ours):
        for path in layers(model):
            nn.init.normal_(model.get_parameter(f"{path}.lora_B.default.weight"))
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    with quiet():
        read = peft.PeftModel.from_pretrained(build(name), tmp_path / "ours")
    close(read(**batch).logits, ours(**batch).logits)
    close(PeftModel.from_pretrained(build(name), tmp_path / "theirs")(**batch).logits, theirs(**batch).logits)


@pytest.mark.parametrize("name", MODELS)
def test_corda_adapters_are_read_both_ways(name: str, tmp_path: Path) -> None:
    """Over the original base, each with statistics from the same data."""
    theirs, ours, made = pair(name, "corda")
    batch = batches(1, rows=2)[0]
    for model in (theirs, ours):
        for path in layers(model):
            nn.init.normal_(model.get_parameter(f"{path}.lora_B.default.weight"))
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    base = build(name)
    with quiet():
        their_corda(base, peft.LoraConfig(**settings(name, "corda")), run(base, batches(6, rows=1)))
        read = peft.PeftModel.from_pretrained(base, tmp_path / "ours")
    close(read(**batch).logits, ours(**batch).logits, 1e-3)
    again = PeftModel.from_pretrained(build(name), tmp_path / "theirs", config=made)
    close(again(**batch).logits, theirs(**batch).logits, 1e-3)


@pytest.mark.parametrize("init", ["corda", "lora_ga"])
def test_an_adapter_over_its_residual_base_is_plain_to_both(init: str, tmp_path: Path) -> None:
    theirs, ours, _ = pair("llama", init, **{f"{init}_config": {}})
    batch = batches(1, rows=2)[0]
    expected = {"theirs": theirs(**batch).logits, "ours": ours(**batch).logits}
    for model, folder in ((theirs, "theirs"), (ours, "ours")):
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(tmp_path / folder)
    with quiet():
        read = peft.PeftModel.from_pretrained(ours.unload(), tmp_path / "ours")
        close(read(**batch).logits, expected["ours"])
        residual = theirs.unload()
    close(PeftModel.from_pretrained(residual, tmp_path / "theirs")(**batch).logits, expected["theirs"])


@pytest.mark.parametrize("turns", [1, 2, 5])
@pytest.mark.parametrize("shape", [(64, 128), (48, 40)])
def test_loftq_loses_no_more_than_theirs(turns: int, shape: tuple[int, int]) -> None:
    """PEFT's LoftQ runs on a GPU only; these are its steps with the quantizer it uses, on the CPU."""
    bnb = pytest.importorskip("bitsandbytes")
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rest = weight
    for _ in range(turns):
        packed, state = bnb.functional.quantize_4bit(rest, blocksize=64, quant_type="nf4")
        rounded = bnb.functional.dequantize_4bit(packed, state)
        parts = their_decomposition(weight - rounded, reduced_rank=8)
        rest = weight - parts["L"] @ parts["R"]
    theirs = float((weight - rounded - parts["L"] @ parts["R"]).norm())
    q_OI, low = decompose(weight, 8, 4, turns)
    ours = float((weight - q_OI - low.product()).norm())
    assert ours <= theirs * (1 + 1e-4)
    if turns == 1:
        close(q_OI, rounded, 1e-5)
        assert ours == pytest.approx(theirs, rel=1e-4)
