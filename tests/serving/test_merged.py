"""Merged weights: right to the last bit, and a base that is as it was found whatever happens."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loralab.errors import AdapterError
from loralab.serving.merged import Merged
from loralab.serving.places import Fitted, Places, stacked
from loralab.serving.reading import Roots


def fit(places: Places, relative: Any) -> dict[str, Fitted]:
    """All adapters of a relative, by name."""
    roots = Roots([relative.adapters])
    return {name: places.fit(roots.read(roots.find(name)), name) for name in relative.names}


@pytest.mark.parametrize("kind", ["llama", "tied", "qwen", "gpt2"])
@pytest.mark.parametrize("keep", [1, 3])
def test_the_base_comes_back_to_the_bit(family: Any, kind: str, keep: int) -> None:
    relative = family.relatives[kind]
    model = relative.load().model
    places = Places(model)
    adapters, merged = fit(places, relative), Merged(places, keep)
    before = family.fingerprint(model)
    chance = random.Random(0)
    shown = set()
    for step in range(400):
        name = chance.choice(["", *adapters])
        if name:
            merged.build(adapters[name])
            merged.show(adapters[name].identity)
            assert len(merged.built()) <= keep
        else:
            merged.show("")
        if step % 7 == 0 or not name:
            now = family.fingerprint(model)
            if name:
                assert now != before
            else:
                assert now == before
        if chance.random() < 0.1:
            merged.forget(adapters[chance.choice(list(adapters))].identity)
        shown.add(name)
    assert shown == {"", *adapters}
    merged.show("")
    assert family.fingerprint(model) == before


def test_ten_thousand_switches_builds_and_failures(
    family: Any, llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama.load("bfloat16").model
    places = Places(model)
    adapters, merged = list(fit(places, llama).values()), Merged(places, keep=3)
    before = family.fingerprint(model)
    chance = random.Random(1)
    really, fails = merged._weight, 0

    def weight(*args: Any) -> Any:
        if chance.random() < 0.02:
            raise MemoryError("half-way")
        return really(*args)

    monkeypatch.setattr(merged, "_weight", weight)
    for step in range(10_000):
        fitted = chance.choice(adapters)
        kind = chance.random()
        if kind < 0.1:
            try:
                merged.build(fitted)
            except MemoryError:
                fails += 1
                assert fitted.identity not in merged.built()
        elif kind < 0.12:
            merged.forget(fitted.identity)
        elif kind < 0.5:
            merged.show("")
        else:
            built = merged.built()
            merged.show(chance.choice(built) if built else "")
        if step % 500 == 0:
            merged.show("")
            assert family.fingerprint(model) == before
    merged.show("")
    assert family.fingerprint(model) == before
    assert fails > 20


def exact(weight_OI: Tensor, part: Any) -> Tensor:
    """W + s B A in float64, times the gain of DoRA."""
    sums = weight_OI.double() + part.scaling * (part.b_OR.double() @ part.a_RI.double())
    return sums if part.gain_O is None else sums * part.gain_O.double()[:, None]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["four", "twelve", "uneven", "dora", "embeds"])
def test_a_merged_weight_is_the_sum_rounded_once(llama: Any, name: str, dtype: str) -> None:
    model = llama.load(dtype).model
    places = Places(model)
    fitted, merged = fit(places, llama)[name], Merged(places)
    originals = {path: places.by_path[path].weight_OI().clone() for path in fitted.parts}
    merged.build(fitted)
    merged.show(fitted.identity)
    checked = 0
    for path, part in fitted.parts.items():
        place = places.by_path[path]
        shown = place.module.weight.detach()
        shown_OI = shown.t() if place.transposed else shown
        assert shown_OI.dtype == originals[path].dtype
        wanted = exact(originals[path], part)
        if dtype == "float32":
            torch.testing.assert_close(shown_OI.double(), wanted, rtol=1e-6, atol=1e-6)
            continue
        # The sum in fp32 is off by up to this much; where all of that rounds to one number, so must it.
        width = 1e-6 * (1 + wanted.abs())
        low, high = (wanted - width).to(shown_OI.dtype), (wanted + width).to(shown_OI.dtype)
        defined = low == high
        assert torch.equal(shown_OI[defined], low[defined])
        assert ((shown_OI >= low) & (shown_OI <= high)).all()
        checked += int(defined.sum())
    assert dtype == "float32" or checked > 0.9 * sum(w.numel() for w in originals.values())


def test_tied_weights_part_when_one_of_them_changes(family: Any) -> None:
    tied = family.relatives["tied"]
    model = tied.load().model
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert embedding.weight is head.weight
    weight = embedding.weight.detach().clone()
    places = Places(model)
    adapters, merged = fit(places, tied), Merged(places, keep=9)
    deltas = {}
    for name in ("first", "last", "both", "saved"):
        merged.build(adapters[name])
        merged.show(adapters[name].identity)
        deltas[name] = (
            not torch.equal(embedding.weight, weight),
            not torch.equal(head.weight, weight),
        )
        if name == "both":
            torch.testing.assert_close(embedding.weight, head.weight, rtol=1e-6, atol=1e-6)
    assert deltas == {
        "first": (True, False),
        "last": (False, True),
        "both": (True, True),
        "saved": (True, False),
    }
    merged.show("")
    assert embedding.weight is head.weight
    assert torch.equal(embedding.weight, weight)


def test_a_sum_that_is_not_finite_is_refused_and_nothing_is_shown(family: Any, llama: Any) -> None:
    model = llama.load("float16").model
    places = Places(model)
    fitted, merged = fit(places, llama)["four"], Merged(places)
    before = family.fingerprint(model)
    path = list(fitted.parts)[-1]
    fitted.parts[path].b_OR[0].fill_(6e4)
    fitted.parts[path].a_RI.fill_(6e4)
    with pytest.raises(AdapterError, match=rf"{path}: the merged weight is not finite"):
        merged.build(fitted)
    assert (merged.built(), merged.shown) == ([], "")
    assert family.fingerprint(model) == before


def test_failing_while_another_is_shown_leaves_a_model_that_works(family: Any, llama: Any) -> None:
    model = llama.load("float16").model
    places = Places(model)
    adapters, merged = fit(places, llama), Merged(places, keep=2)
    before = family.fingerprint(model)
    merged.build(adapters["five"])
    merged.show(adapters["five"].identity)
    during = family.fingerprint(model)
    adapters["four"].parts["model.layers.1.mlp.down_proj"].b_OR.fill_(6e4)
    adapters["four"].parts["model.layers.1.mlp.down_proj"].a_RI.fill_(6e4)
    with pytest.raises(AdapterError):
        merged.build(adapters["four"])
    assert family.fingerprint(model) == during
    merged.show("")
    assert family.fingerprint(model) == before


@pytest.mark.parametrize("kind", ["llama", "tied", "qwen", "gpt2"])
def test_a_merged_model_says_what_peft_says(family: Any, kind: str) -> None:
    relative = family.relatives[kind]
    model = relative.load().model
    places = Places(model)
    merged = Merged(places)
    ids = family.prompt(5, 30)
    for name, fitted in fit(places, relative).items():
        merged.build(fitted)
        merged.show(fitted.identity)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        torch.testing.assert_close(logits, relative.logits(name, ids), rtol=1e-4, atol=1e-4, msg=name)
        assert (logits - relative.logits("", ids)).abs().max() > 0.01


def test_a_stack_is_merged_as_the_sum_of_its_deltas(llama: Any) -> None:
    places = Places(llama.load().model)
    adapters = fit(places, llama)
    fitted = stacked([(adapters["four"], 0.7), (adapters["eight"], -0.3), (adapters["embeds"], 2.0)], "s")
    merged = Merged(places)
    merged.build(fitted)
    merged.show(fitted.identity)
    weights = {"four": 0.7, "eight": -0.3, "embeds": 2.0}
    for path in fitted.parts:
        place = places.by_path[path]
        wanted = place.weight_OI().double().clone()
        for name, weight in weights.items():
            part = adapters[name].parts.get(path)
            if part is not None:
                wanted += weight * part.scaling * (part.b_OR.double() @ part.a_RI.double())
        shown = place.module.weight.detach()
        shown_OI = shown.t() if place.transposed else shown
        torch.testing.assert_close(shown_OI.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["dora", "shift", "whole"])
def test_what_is_no_plain_sum_is_not_stacked(llama: Any, name: str) -> None:
    adapters = fit(Places(llama.load().model), llama)
    with pytest.raises(AdapterError, match=f"'{name}' is more than products"):
        stacked([(adapters["four"], 1.0), (adapters[name], 0.5)], "s")


def test_quantized_weights_are_left_alone(family: Any, llama: Any, serve: Any, tmp_path: Path) -> None:
    """They are never merged, and serve mixed all the same."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'loralab[quant]'")
    import peft

    from loralab.models.load import load_base
    from loralab.serving.engine import Engine, EngineSettings

    base = load_base(str(llama.base_dir), "float32", quantize="nf4")
    places = Places(base.model)
    fitted = fit_one(places, llama, "four")
    merged = Merged(places)
    assert not merged.can(fitted)
    with pytest.raises(AdapterError, match="quantized"):
        merged.build(fitted)
    shutil.copytree(llama.adapters / "four", tmp_path / "four")
    shutil.copytree(llama.adapters / "eight", tmp_path / "eight")
    ids = family.prompt(8, 20)
    with Engine(base, [tmp_path], EngineSettings(backend="continuous", cache_tokens=1024)) as engine:
        answers = [family.ask(engine, name, ids, 8) for name in ("four", "eight", "")]
        written = [family.tokens(answer) for answer in answers]
        alone = family.ask(engine, "four", ids, 16)
        family.tokens(alone)
        assert alone.mode == "mixed"
        assert engine.placement.merged.built() == []
    for name, tokens in zip(("four", "eight", ""), written, strict=True):
        model = load_base(str(llama.base_dir), "float32", quantize="nf4").model
        if name:
            model = peft.PeftModel.from_pretrained(model, str(llama.adapters / name))
        found: list[int] = []
        with torch.no_grad():
            while len(found) < 8:
                logits = model.eval()(input_ids=torch.tensor([[*ids, *found]])).logits[0, -1]
                found.append(int(logits.argmax()))
        assert tokens == found


def fit_one(places: Places, relative: Any, name: str) -> Fitted:
    roots = Roots([relative.adapters])
    return places.fit(roots.read(roots.find(name)), name)
