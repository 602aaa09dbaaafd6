"""``init_lora_weights="eva"``: directions and ranks from the inputs of layers."""

import logging
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loralab import LoraConfig, PeftModel, get_peft_model
from loralab.core.eva import get_eva_state_dict, initialize_lora_eva_weights
from loralab.core.init_config import EvaConfig
from loralab.core.pca import IncrementalPca
from loralab.errors import (
    ConfigError,
    LoralabError,
)

toy = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("toy.py"))))
net, batches, config = toy.net, toy.batches, toy.config
traces, same, LINEAR = toy.traces, toy.same, toy.LINEAR


def test_principal_components_of_batches_are_those_of_the_whole() -> None:
    rows = torch.randn(400, 10, dtype=torch.float64) * torch.logspace(0, -1.5, 10) + torch.arange(10) / 5
    pca = IncrementalPca(10)
    for part in rows.split(80):
        turned = pca.add(part)
    centred = rows - rows.mean(0)
    _, s, v = torch.linalg.svd(centred, full_matrices=False)
    assert torch.allclose(pca.singular_K.double(), s, rtol=1e-4)
    assert torch.allclose(pca.explained_K, s.square() / centred.square().sum(), atol=1e-5)
    assert torch.allclose((pca.directions_KI.double() * v).sum(1).abs(), torch.ones(10).double(), atol=1e-4)
    assert float(turned.min()) > 0.9


def test_eva_gives_rank_to_inputs_that_vary_and_keeps_the_number_of_directions() -> None:
    model = get_peft_model(net(), config("eva"))
    initialize_lora_eva_weights(model, batches(12))
    layers = model.base_model.lora_layers
    ranks = {path: layer.r["default"] for path, layer in layers.items()}
    assert sum(ranks.values()) == 16
    assert len(set(ranks.values())) > 1
    saved = model.peft_config["default"]
    for path, layer in layers.items():
        a_RI, b_OR = layer.factors("default")
        assert saved.rank_of(path) == ranks[path] == len(a_RI)
        assert torch.allclose(a_RI @ a_RI.t(), torch.eye(len(a_RI)), atol=1e-4)
        assert not b_OR.any()
        assert layer.scaling["default"] == pytest.approx(3.0)
        assert a_RI.requires_grad
        assert b_OR.requires_grad
    shared = min(ranks["left"], ranks["right"])
    left, right = (layers[path].factors("default")[0][:shared] for path in ("left", "right"))
    assert torch.allclose(left, right)


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("adjust", [False, True])
def test_the_scale_stays_if_asked(use_rslora: bool, adjust: bool) -> None:
    settings = EvaConfig(adjust_scaling_factors=adjust)
    model = get_peft_model(net(), config("eva", eva_config=settings, use_rslora=use_rslora))
    before = {path: layer.scaling["default"] for path, layer in model.base_model.lora_layers.items()}
    initialize_lora_eva_weights(model, batches(12))
    after = {path: layer.scaling["default"] for path, layer in model.base_model.lora_layers.items()}
    assert (after == pytest.approx(before)) is adjust


def test_without_redistribution_all_ranks_stay() -> None:
    model = get_peft_model(net(), config("eva", eva_config=EvaConfig(rho=1.0), rank_pattern={"out": 2}))
    initialize_lora_eva_weights(model, batches(12))
    assert model.peft_config["default"].rank_pattern == {"out": 2}
    assert {path: x.r["default"] for path, x in model.base_model.lora_layers.items()} == {
        **{"c_fc": 4, "left": 4, "right": 4, "out": 2}
    }


def test_a_layer_of_rank_0_loses_its_adapter(tmp_path: Path) -> None:
    model = get_peft_model(net(), config("eva"))
    found = get_eva_state_dict(model, batches(12))
    assert list(found) == [f"base_model.model.{path}" for path in LINEAR]
    found["base_model.model.left"] = found["base_model.model.left"][:0]
    initialize_lora_eva_weights(model, eva_state_dict=found)
    assert model.peft_config["default"].target_modules == {"c_fc", "right", "out"}
    assert "left" not in dict(model.base_model.adapter("default").modules())
    x = batches()[0]["input_ids"]
    nn.init.normal_(model.base_model.lora_layers["out"].factors("default")[1])
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(net(), tmp_path)(x), model.eval()(x))


def test_ranks_reach_the_right_layer_where_names_end_alike(tmp_path: Path) -> None:
    def nested() -> nn.Module:
        torch.manual_seed(0)
        outer, inner = nn.Sequential(), nn.Sequential()
        outer.add_module("fc", nn.Linear(8, 8))
        inner.add_module("fc", nn.Linear(8, 8))
        outer.add_module("inner", inner)
        return outer

    model = get_peft_model(nested(), LoraConfig(init_lora_weights="eva", target_modules=["fc"], r=4))
    parts = {"fc": torch.eye(8)[:3], "inner.fc": torch.eye(8)[:4]}
    initialize_lora_eva_weights(model, eva_state_dict=parts)
    assert model.peft_config["default"].rank_pattern == {"^fc": 3}
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(nested(), tmp_path)
    assert {path: x.r["default"] for path, x in again.base_model.lora_layers.items()} == {
        "fc": 3,
        "inner.fc": 4,
    }


def test_masked_positions_do_not_count() -> None:
    data = batches(12)
    for batch in data:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["attention_mask"][:, 6:] = 0
        batch["labels"][:, :2] = -100
    cut = [{"input_ids": batch["input_ids"][:, 2:6]} for batch in data]
    base, made = net(), config("eva")
    masked, plain = get_eva_state_dict(base, data, made), get_eva_state_dict(base, cut, made)
    assert all(torch.allclose(masked[path], plain[path], atol=1e-3) for path in LINEAR)
    unmasked = get_eva_state_dict(base, data, config("eva", eva_config=EvaConfig(use_label_mask=False)))
    assert masked["c_fc"].shape != unmasked["c_fc"].shape or not torch.equal(masked["c_fc"], unmasked["c_fc"])


def test_data_of_another_form_needs_functions_of_its_own() -> None:
    base, made = net(), config("eva")
    data = [batch["input_ids"] for batch in batches(12)]
    with pytest.raises(ConfigError, match="a batch is expected to be a dictionary with 'input_ids'"):
        get_eva_state_dict(base, data, made, forward_fn=lambda model, ids: model(ids))
    found = get_eva_state_dict(
        base,
        data,
        made,
        forward_fn=lambda model, ids: model(ids),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,
    )
    asked: list[str] = []

    def rows(inputs: tuple[Tensor, ...], batch: Tensor, name: str) -> Tensor:
        asked.append(name)
        return inputs[0].flatten(0, 1)

    own = get_eva_state_dict(
        base,
        data,
        made,
        forward_fn=lambda model, ids: model(ids),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn={"left": rows},
    )
    assert set(asked) == {"left"}
    assert all(torch.allclose(found[path], own[path], atol=1e-4) for path in LINEAR)
    with pytest.raises(
        ConfigError, match=r"prepare_layer_inputs_fn: 'lefd' is no targeted layer. Did you mean"
    ):
        get_eva_state_dict(base, data, made, prepare_layer_inputs_fn={"lefd": rows})


def test_small_batches_are_put_together(caplog: pytest.LogCaptureFixture) -> None:
    """One row of 3 tokens cannot show 8 directions; PEFT passes such batches over, for ever."""
    with caplog.at_level(logging.INFO):
        found = get_eva_state_dict(net(), batches(40, rows=1, tokens=3), config("eva"))
    assert sum(len(a_RI) for a_RI in found.values()) == 16
    assert caplog.records[-1].message == "eva: 3 of 3 inputs are settled"
    caplog.clear()
    get_eva_state_dict(net(), batches(12), config("eva"), show_progress_bar=False)
    assert not caplog.records


def test_the_inputs_of_all_processes_are_put_together(tmp_path: Path) -> None:
    alone = get_eva_state_dict(net(), batches(12), config("eva"))
    where = (tmp_path / "meeting").as_uri()
    torch.distributed.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    try:
        found = get_eva_state_dict(net(), batches(12), config("eva"))
    finally:
        torch.distributed.destroy_process_group()
    assert same(found, alone)


@pytest.mark.parametrize(
    ("data", "fault"),
    [([], "the dataloader is empty"), (iter(batches(2)), "can be gone through only once")],
    ids=["empty", "once"],
)
def test_data_that_does_not_suffice_is_refused(data: Any, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        get_eva_state_dict(net(), data, config("eva"))


def test_eva_is_refused_where_it_does_not_fit() -> None:
    plain = get_peft_model(net(), LoraConfig(target_modules=LINEAR))
    with pytest.raises(
        ConfigError, match="has init_lora_weights=True; initialize_lora_eva_weights is for 'eva'"
    ):
        initialize_lora_eva_weights(plain, batches())
    model = get_peft_model(net(), config("eva"))
    found = get_eva_state_dict(model, batches(12))
    first, *_ = found
    before = traces(model)["values"]
    for wrong, fault in (
        ({}, "has nothing for 'c_fc'"),
        (
            found | {"base_model.model.lef": torch.zeros(2, 24)},
            "'lef' is no targeted layer. Did you mean 'left'",
        ),
        (found | {first: torch.zeros(2, 5)}, r"'c_fc' is \[2, 5\], the layer needs \[rank, 16\]"),
        ({name: a_RI[:0] for name, a_RI in found.items()}, "gives every layer the rank 0"),
    ):
        with pytest.raises(LoralabError, match=fault):
            initialize_lora_eva_weights(model, eva_state_dict=wrong)
    assert same(before, traces(model)["values"])
    with pytest.raises(ConfigError, match="needs a dataloader or an eva_state_dict"):
        initialize_lora_eva_weights(model)
    with pytest.raises(ConfigError, match=r"there is no adapter 'defualt'.* Did you mean 'default'"):
        initialize_lora_eva_weights(model, batches(), adapter_name="defualt")
    with pytest.raises(ConfigError, match="needs peft_config for a model without adapters"):
        get_eva_state_dict(net(), batches())
    with pytest.raises(ConfigError, match="the data never reaches 'out'"):
        get_eva_state_dict(
            net(),
            batches(),
            config("eva"),
            forward_fn=lambda m, x: m.right(m.left(m.c_fc(m.embed(x["input_ids"]))).repeat(1, 1, 2)),
        )
