"""What the initialisations from data promise; "corda" and "lora_ga" one by one."""

import copy
import logging
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from loralab import LoraConfig, PeftModel, get_peft_model
from loralab.adapters.preprocess import preprocess_corda, preprocess_loraga
from loralab.core.calibrate import covariances
from loralab.core.eva import get_eva_state_dict, initialize_lora_eva_weights
from loralab.core.init_config import CordaConfig, LoraGAConfig
from loralab.errors import (
    CheckpointError,
    ConfigError,
    LoralabError,
    TargetError,
)

toy = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("toy.py"))))
net, batches, config, run, step = toy.net, toy.batches, toy.config, toy.run, toy.step
prepared, traces, same = toy.prepared, toy.traces, toy.same
LINEAR, WORDS, WIDTH = toy.LINEAR, toy.WORDS, toy.WIDTH


@pytest.mark.parametrize("name", ["corda", "lora_ga", "eva", "loftq"])
def test_a_fresh_adapter_changes_nothing_that_is_not_rounded(name: str) -> None:
    base = net()
    before, x = base(**{"input_ids": batches()[0]["input_ids"]}), batches()[0]["input_ids"]
    weights = {path: base.get_submodule(path).weight.detach().clone() for path in LINEAR}
    model = get_peft_model(base, prepared(name, base)).eval()
    if name == "loftq":
        assert 0 < float((model(x) - before).detach().abs().max()) < 0.5
    else:
        assert torch.allclose(model(x), before, atol=1e-5)
    changed = name != "eva"
    for path in LINEAR:
        layer = model.base_model.lora_layers[path]
        assert torch.equal(layer.dense_weight(), weights[path]) is not changed
        assert bool(layer.factors("default")[1].any()) is changed
        assert {factor.dtype for factor in layer.factors("default")} == {torch.float32}


@pytest.mark.parametrize("name", ["corda", "lora_ga", "loftq"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_base_and_adapter_add_up_to_the_weight(name: str, use_rslora: bool) -> None:
    base = net()
    weights = {path: base.get_submodule(path).weight.detach().clone() for path in LINEAR}
    settings = {"use_rslora": use_rslora, "rank_pattern": {"left": 2}, "alpha_pattern": {"out": 3}}
    model = get_peft_model(base, prepared(name, base, **settings)).eval()
    for path, layer in model.base_model.lora_layers.items():
        lost = (layer.dense_weight() + layer.delta("default") - weights[path]).norm()
        alone = (layer.dense_weight() - weights[path]).norm()
        assert lost < 1e-5 if name != "loftq" else lost < 0.9 * alone


@pytest.mark.parametrize("name", ["corda", "lora_ga", "loftq"])
def test_a_bf16_base_keeps_its_dtype(name: str) -> None:
    base = net().to(torch.bfloat16)
    before = base(batches()[0]["input_ids"])
    model = get_peft_model(base, prepared(name, base)).eval()
    for layer in model.base_model.lora_layers.values():
        assert layer.weight.dtype is torch.bfloat16
        assert layer.factors("default")[0].dtype is torch.float32
    assert (model(batches()[0]["input_ids"]) - before).abs().max() < 0.5


@pytest.mark.parametrize("name", ["corda", "lora_ga", "eva", "loftq"])
def test_an_adapter_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    made = prepared(name, net())
    model = get_peft_model(net(), made).eval()
    if name == "eva":
        initialize_lora_eva_weights(model, batches(12))
    with torch.no_grad():
        for layer in model.base_model.lora_layers.values():
            for factor in layer.factors("default"):
                factor.add_(torch.randn_like(factor) * 0.1)
    x = batches()[0]["input_ids"]
    model.save_pretrained(tmp_path)
    assert "statistics" not in (tmp_path / "adapter_config.json").read_text()
    options = {"config": made} if name in ("corda", "lora_ga") else {}
    assert torch.allclose(PeftModel.from_pretrained(net(), tmp_path, **options)(x), model(x), atol=1e-5)


@pytest.mark.parametrize("name", ["corda", "lora_ga"])
def test_a_stored_adapter_without_its_statistics_is_refused(name: str, tmp_path: Path) -> None:
    model = get_peft_model(net(), prepared(name, net())).eval()
    model.save_pretrained(tmp_path)
    base = net()
    before = traces(base)["values"]
    with pytest.raises(
        LoralabError, match=r"knows nothing about 'c_fc': call preprocess_.*set init_lora_weights"
    ):
        PeftModel.from_pretrained(base, tmp_path)
    assert same(before, traces(base)["values"])
    # Over the residual base, as it is after training, the adapter is a plain one.
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path)
    residual, x = copy.deepcopy(model).unload(), batches()[0]["input_ids"]
    assert torch.allclose(PeftModel.from_pretrained(residual, tmp_path)(x), model(x), atol=1e-6)


def test_an_error_in_the_last_layer_leaves_the_first_as_it_was() -> None:
    base = net()
    made = prepared("corda", base)
    del made.corda_config.statistics["out"]
    before = traces(base)
    with pytest.raises(ConfigError, match="knows nothing about 'out'"):
        get_peft_model(base, made)
    assert same(before["values"], traces(base)["values"])


@pytest.mark.parametrize("name", ["corda", "lora_ga", "eva"])
@pytest.mark.parametrize("fails", [False, True])
def test_looking_at_data_leaves_no_traces(name: str, fails: bool) -> None:
    base = net()
    base.left.train()
    base.out.weight.requires_grad_(False)
    model = get_peft_model(base, config(name)) if name == "eva" else base
    before = traces(model)

    def looked(function: Callable[[], None]) -> Callable[[], None]:
        def look() -> None:
            function()
            torch.rand(3)
            if fails:
                raise KeyboardInterrupt

        return look

    def look() -> None:
        if name == "eva":
            wrong: Iterator[Any] = iter([*batches(1), *([None] if fails else batches(12))])
            get_eva_state_dict(model, wrong if fails else batches(12))
        elif name == "corda":
            preprocess_corda(base, config(name), looked(run(base)))
        else:
            preprocess_loraga(base, config(name), looked(step(base)))

    if fails:
        with pytest.raises((KeyboardInterrupt, ConfigError)):
            look()
    else:
        look()
    assert same(before, traces(model))


@pytest.mark.parametrize("name", ["corda", "eva"])
@pytest.mark.parametrize("module", ["embed", "conv"])
def test_a_layer_that_is_not_linear_is_refused_by_name(name: str, module: str) -> None:
    base = nn.Sequential()
    base.embed, base.conv, base.line = nn.Embedding(9, 8), nn.Conv1d(8, 8, 1), nn.Linear(8, 8)
    made = LoraConfig(init_lora_weights=name, target_modules=[module, "line"], r=2)

    def begin() -> None:
        if name == "corda":
            preprocess_corda(base, made, lambda: None)
        else:
            initialize_lora_eva_weights(get_peft_model(base, made), [torch.zeros(2, 3)])

    with pytest.raises((TargetError, ConfigError), match=f"{module}'.*exclude") as caught:
        begin()
    assert "\n" not in str(caught.value)


def test_covariances_do_not_depend_on_how_samples_are_batched() -> None:
    base = net()
    modules = {path: base.get_submodule(path) for path in LINEAR}
    ids = batches(1, rows=6)[0]["input_ids"]
    together = covariances(modules, base, lambda: base(ids), torch.float32)
    apart = covariances(modules, base, lambda: [base(row[None]) for row in ids], torch.float32)
    for path, mean_II in together.items():
        assert torch.allclose(mean_II, apart[path], atol=1e-5 * float(mean_II.abs().max()))
        assert torch.allclose(mean_II, mean_II.t())


def test_the_first_directions_are_those_that_the_data_uses() -> None:
    """ "ipm" takes from the base what the data needs most, "kpm" what it needs least."""
    base = nn.Sequential(nn.Linear(12, 12, bias=False))
    x = torch.randn(1, 300, 12) * torch.logspace(0, -2, 12)
    left = {}
    for method in ("ipm", "kpm"):
        made = LoraConfig(
            init_lora_weights="corda",
            target_modules=["0"],
            r=4,
            corda_config=CordaConfig(corda_method=method),
        )
        model = copy.deepcopy(base)
        preprocess_corda(model, made, lambda model=model: model(x))
        layer = get_peft_model(model, made).base_model.lora_layers["0"]
        left[method] = float((x @ layer.dense_weight().t()).norm() / base(x).detach().norm())
    assert left["ipm"] < 0.2
    assert left["kpm"] > 0.99


def test_corda_files_take_the_place_of_data(tmp_path: Path) -> None:
    base = net()
    files = {"cache_file": str(tmp_path / "new" / "c.bin"), "covariance_file": tmp_path / "cov.pt"}
    first = prepared("corda", base, corda_config=CordaConfig(**files, prune_temporary_fields=False))
    assert load_file(files["covariance_file"]).keys() == set(LINEAR)
    assert same(load_file(files["covariance_file"]), first.corda_config.covariances)
    again = config("corda", corda_config=CordaConfig(**files))
    preprocess_corda(base, again)
    assert same(first.corda_config.statistics, again.corda_config.statistics)
    other = LoraConfig(
        init_lora_weights="corda",
        target_modules=LINEAR,
        r=2,
        corda_config=CordaConfig(covariance_file=files["covariance_file"], corda_method="kpm"),
    )
    preprocess_corda(base, other)
    assert get_peft_model(base, other).base_model.lora_layers["left"].r["default"] == 2


def test_a_corda_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    base, file = net(), str(tmp_path / "cache")
    prepared("corda", base, corda_config=CordaConfig(cache_file=file))
    wanted = config("corda", corda_config=CordaConfig(cache_file=file, corda_method="kpm"))
    with pytest.raises(ConfigError, match=r"made with corda_method='ipm', the config says 'kpm'"):
        preprocess_corda(base, wanted)
    with pytest.raises(ConfigError, match="expected corda covariances, the file holds corda"):
        preprocess_corda(base, config("corda", corda_config=CordaConfig(covariance_file=file)))
    with pytest.raises(ConfigError, match="expected lora_ga, the file holds corda"):
        preprocess_loraga(base, config("lora_ga"), step(base), file)
    more = LoraConfig(
        init_lora_weights="corda", target_modules=LINEAR, r=6, corda_config=CordaConfig(cache_file=file)
    )
    preprocess_corda(base, more)
    with pytest.raises(ConfigError, match=r"'c_fc': .* gives A as \[4, 16\], the adapter needs \[6, 16\]"):
        get_peft_model(base, more)
    Path(file).write_bytes(b"\x80\x04pickle")
    with pytest.raises(CheckpointError, match="PEFT's caches are pickles") as caught:
        preprocess_corda(base, wanted)
    assert "\n" not in str(caught.value)


def test_corda_without_data_is_refused() -> None:
    base = net()
    with pytest.raises(ConfigError, match="needs run_model, unless cache_file or covariance_file"):
        preprocess_corda(base, config("corda"))
    with pytest.raises(ConfigError, match="corda_method is not set"):
        preprocess_corda(base, config("corda", corda_config=CordaConfig(corda_method=None)), run(base))
    with pytest.raises(
        ConfigError, match=r"run_model did not run 4 of 4 targeted modules, the first is 'c_fc'"
    ):
        preprocess_corda(base, config("corda"), lambda: None)
    with torch.no_grad():
        base.embed.weight[0, 0] = torch.nan
    with pytest.raises(ConfigError, match="the input of 'c_fc' is not finite"):
        preprocess_corda(base, config("corda"), run(base))
    nn.init.zeros_(base.embed.weight)
    with pytest.raises(ConfigError, match="'c_fc': the inputs that run_model gives are all zero"):
        preprocess_corda(base, config("corda"), run(base))
    nn.init.normal_(base.embed.weight)
    made = config("corda")
    made.r = 20
    with pytest.raises(ConfigError, match="'c_fc': rank 20 exceeds the smaller side"):
        preprocess_corda(base, made, run(base))


def test_another_model_may_be_run() -> None:
    base, other = net(), net()
    made, direct = config("corda"), prepared("corda", net())
    preprocess_corda(base, made, run(other), hooked_model=other)
    assert same(made.corda_config.statistics, direct.corda_config.statistics)
    with pytest.raises(TargetError, match="hooked_model has no module 'c_fc'"):
        preprocess_corda(base, made, run(other), hooked_model=nn.Linear(2, 2))


def test_half_the_memory_is_nearly_the_same_covariance(caplog: pytest.LogCaptureFixture) -> None:
    found = {}
    for half in (False, True):
        settings = CordaConfig(use_float16_for_covariance=half, prune_temporary_fields=False, verbose=half)
        with caplog.at_level(logging.INFO):
            found[half] = prepared("corda", net(), corda_config=settings).corda_config.covariances["left"]
    assert found[True].dtype is torch.float16
    assert torch.allclose(found[True].float(), found[False], rtol=1e-2, atol=1e-2)
    assert [record.message for record in caplog.records] == [f"corda: splitting {path}" for path in LINEAR]


def test_statistics_are_gathered_from_the_base() -> None:
    model = get_peft_model(net(), LoraConfig(target_modules=LINEAR))
    with pytest.raises(ConfigError, match="has adapters already"):
        preprocess_corda(model, config("corda"), run(model))


def test_the_gradient_is_the_mean_over_batches_and_b_a_follows_it() -> None:
    base, data = net(), batches()
    base.drop.p = 0.0
    full = sum(torch.autograd.grad(base(**batch), base.left.weight)[0] for batch in data) / len(data)
    made = config("lora_ga", lora_ga_config=LoraGAConfig(scale="unit"))
    preprocess_loraga(base, made, step(base, data))
    u, s, v = torch.linalg.svd(full, full_matrices=False)
    found = made.lora_ga_config.statistics["left"]
    assert torch.allclose(found.s_R, s[:8], rtol=1e-4)
    layer = get_peft_model(base, made).base_model.lora_layers["left"]
    a_RI, b_OR = (factor.detach() for factor in layer.factors("default"))
    # ArB2r: the rows of A are the first directions of the gradient, the columns of B the next ones.
    assert torch.allclose((a_RI @ v[:4].t()).abs(), torch.eye(4), atol=1e-3)
    assert torch.allclose((b_OR.t() @ u[:, 4:8]).abs(), torch.diag(s[4:8]), atol=1e-3 * float(s[4]))


def test_a_tied_weight_counts_where_it_is_used() -> None:
    """PEFT-like tools read ``weight.grad``, in which a tied weight's other use is mixed."""
    base = net()
    base.drop.p = 0.0
    apart = copy.deepcopy(base)
    base.out.weight = nn.Parameter(torch.randn(WORDS, 12))
    apart.out.weight = nn.Parameter(base.out.weight.detach().clone())
    base.twin = nn.Linear(12, WORDS)
    base.twin.weight = base.out.weight
    forward = base.forward

    def both(**batch: Tensor) -> Tensor:
        return forward(**batch) + base.twin(torch.ones(12)).sum() * 100

    base.forward = both
    made, alone = config("lora_ga"), config("lora_ga")
    preprocess_loraga(base, made, step(base))
    preprocess_loraga(apart, alone, step(apart))
    assert torch.allclose(
        made.lora_ga_config.statistics["out"].s_R, alone.lora_ga_config.statistics["out"].s_R, rtol=1e-4
    )


@pytest.mark.parametrize("module", ["embed", "conv", "c_fc"])
def test_lora_ga_takes_embeddings_and_convolutions(module: str) -> None:
    torch.manual_seed(0)
    base = net()
    base.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
    layer = base.get_submodule(module)
    weight = layer.weight.detach().clone()

    def forward(input_ids: Tensor) -> Tensor:
        x = base.conv(base.embed(input_ids).transpose(1, 2)).transpose(1, 2).contiguous()
        return base.c_fc(torch.tanh(x))

    base.forward = forward
    x = batches()[0]["input_ids"]
    before = base(x)
    made = LoraConfig(init_lora_weights="lora_ga", target_modules=[module], r=4, lora_alpha=8)
    preprocess_loraga(base, made, lambda: base(x).square().mean().backward())
    model = get_peft_model(base, made)
    assert torch.allclose(base(x), before, atol=1e-4)
    assert not torch.equal(model.base_model.lora_layers[module].dense_weight(), weight)
    assert model.base_model.lora_layers[module].factors("default")[1].any()


def test_a_lora_ga_file_takes_the_place_of_the_training_step(tmp_path: Path) -> None:
    base, file = net(), tmp_path / "gradients.pt"
    first, again = config("lora_ga"), config("lora_ga")
    preprocess_loraga(base, first, step(base), cache_file=file)
    preprocess_loraga(base, again, lambda: pytest.fail("the file should be read"), cache_file=str(file))
    for path, low in first.lora_ga_config.statistics.items():
        assert torch.equal(low.u_OR, again.lora_ga_config.statistics[path].u_OR)
    again.r = 6
    with pytest.raises(ConfigError, match=r"needs 2 \* r = 12 directions of the gradient and there are 8"):
        get_peft_model(base, again)
    with pytest.raises(ConfigError, match=r"nothing for 'embed\.u'; it was made with another model"):
        preprocess_loraga(base, LoraConfig(target_modules=["embed"]), step(base), cache_file=file)


def test_a_step_without_gradients_is_refused() -> None:
    base = net()
    with pytest.raises(ConfigError, match="train_step did not get a gradient from 4 of 4"):
        preprocess_loraga(base, config("lora_ga"), run(base))
    base.left.weight = nn.Parameter(torch.zeros(12, 24, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match="'left' is quantized; lora_ga needs gradients"):
        preprocess_loraga(base, config("lora_ga"), step(base))
