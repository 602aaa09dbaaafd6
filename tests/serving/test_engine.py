"""The engine from outside: what is asked of it comes back right, and nothing that goes wrong spreads."""

import json
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loralab.errors import AdapterError, ConfigError
from loralab.serving.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    Full,
    Overloaded,
    Unavailable,
    UnknownModel,
)
from loralab.serving.requests import Answer, Request
from loralab.serving.sampling import Sampling

BOTH = pytest.mark.parametrize("backend", ["continuous", "plain"])


@pytest.fixture
def shelf(llama: Any, tmp_path: Path) -> Path:
    """A copy of the adapters, to delete and to change."""
    return Path(shutil.copytree(llama.adapters, tmp_path / "shelf"))


def rewrite(folder: Path, factor: float) -> None:
    """Make another adapter of it, under the same name."""
    path = folder / "adapter_model.safetensors"
    tensors = {k: v * factor if "lora_B" in k else v for k, v in load_file(path).items()}
    save_file(tensors, path)


def explicit_sum(relative: Any, weights: dict[str, float], ids: list[int], count: int) -> list[int]:
    """What the base writes with weighted deltas added to its weights."""
    from loralab.adapters.peft_format import read_adapter

    model = relative.load().model
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            for path, part in read_adapter(relative.adapters / name).modules().items():
                delta = weight * part.scaling * part.b_OR @ part.a_RI
                parameters[f"{path}.weight"] += delta.t() if "embed" in path else delta
        written: list[int] = []
        while len(written) < count:
            logits = model(input_ids=torch.tensor([[*ids, *written]])).logits[0, -1]
            written.append(int(logits.argmax()))
    return written


# adapters in memory


def test_after_the_first_read_no_disk_is_needed(family: Any, llama: Any, serve: Any, shelf: Path) -> None:
    engine = serve(llama, roots=[shelf], slots=1, merged_sets=1)
    ids = family.prompt(1, 12)
    for name in ("four", "five", "eight"):
        family.tokens(family.ask(engine, name, ids))
    assert engine.cache.stats.disk_reads == 3
    shutil.rmtree(shelf)
    engine.library.rescan()
    for name in ("four", "eight", "five", "four"):  # each takes the only slot from the one before
        assert family.tokens(family.ask(engine, name, ids)) == llama.write(name, ids, 12)
    assert engine.cache.stats.disk_reads == 3
    with pytest.raises((UnknownModel, AdapterError)):
        family.ask(engine, "twelve", ids)


def test_evicted_it_is_read_again(family: Any, llama: Any, serve: Any) -> None:
    engine = serve(llama, max_ram=12_000)
    ids = family.prompt(2, 9)
    for name in ("four", "five", "uneven", "four", "five"):
        assert family.tokens(family.ask(engine, name, ids)) == llama.write(name, ids, 12)
        assert engine.cache.bytes <= 12_000
    assert engine.cache.stats.evictions > 0
    assert engine.cache.stats.disk_reads == engine.cache.stats.misses


def test_loaded_under_another_name_and_evicted_it_is_still_known(family: Any, llama: Any, serve: Any) -> None:
    engine = serve(llama, max_ram=12_000)
    engine.library.load("alias", llama.adapters / "four")
    ids = family.prompt(2, 9)
    for name in ("five", "uneven", "five"):
        family.tokens(family.ask(engine, name, ids))
    assert engine.cache.peek("alias") is None
    assert family.tokens(family.ask(engine, "alias", ids)) == llama.write("four", ids, 12)


def test_memory_that_is_pinned_or_in_use_is_not_given_away(family: Any, llama: Any, serve: Any) -> None:
    engine = serve(llama, max_ram=10_000)
    engine.library.load("four", pin=True)
    with pytest.raises(Full):
        family.ask(engine, "five", family.prompt(1, 5))
    engine.library.pin("four", False)
    family.tokens(family.ask(engine, "five", family.prompt(1, 5)))


@BOTH
def test_unloaded_in_the_middle_of_an_answer_it_goes_on_to_the_end(
    family: Any, llama: Any, serve: Any, backend: str
) -> None:
    engine = serve(llama, backend=backend)
    gate = family.Gate(engine._base.model)
    ids = family.prompt(3, 20)
    gate.shut()
    answer = family.ask(engine, "four", ids, 30)
    assert gate.reached.wait(30)
    engine.library.unload("four")
    with pytest.raises(UnknownModel):
        family.ask(engine, "four", ids)
    assert "four" not in [entry.name for entry in engine.library.entries()]
    gate.open()
    assert family.tokens(answer) == llama.write("four", ids, 30)
    assert engine.cache.bytes == 0
    engine.library.load("four")
    assert family.tokens(family.ask(engine, "four", ids)) == llama.write("four", ids, 12)


def test_a_name_with_new_content_is_another_adapter_to_the_key_value_cache(
    family: Any, llama: Any, serve: Any, shelf: Path
) -> None:
    engine = serve(llama, roots=[shelf])
    ids = family.prompt(4, 100)
    before = family.ask(engine, "four", ids)
    assert family.tokens(before) == llama.write("four", ids, 12)
    rewrite(shelf / "four", -1.0)
    assert engine.library.rescan() == ["four"]
    after = family.ask(engine, "four", ids)
    assert family.tokens(after) == explicit_sum(llama, {"four": -1.0}, ids, 12) != before.tokens
    assert before.identity != after.identity


def test_new_content_while_the_old_is_being_used(family: Any, llama: Any, serve: Any, shelf: Path) -> None:
    engine = serve(llama, roots=[shelf])
    gate = family.Gate(engine._base.model)
    ids = family.prompt(4, 40)
    gate.shut()
    old = family.ask(engine, "four", ids, 20)
    assert gate.reached.wait(30)
    rewrite(shelf / "four", -1.0)
    engine.library.load("four", replace=True)
    new = family.ask(engine, "four", ids, 20)
    gate.open()
    assert family.tokens(old) == llama.write("four", ids, 20)
    assert family.tokens(new) == explicit_sum(llama, {"four": -1.0}, ids, 20)


def test_a_folder_is_watched(family: Any, llama: Any, serve: Any, tmp_path: Path) -> None:
    engine = serve(llama, roots=[tmp_path])
    assert engine.library.entries() == []
    shutil.copytree(llama.adapters / "four", tmp_path / "new")
    with pytest.raises(UnknownModel):
        engine.library.resolve("new")
    assert engine.library.rescan() == ["new"]
    assert engine.library.rescan() == []
    assert [(entry.name, entry.where) for entry in engine.library.entries()] == [("new", "disk")]
    ids = family.prompt(1, 9)
    assert family.tokens(family.ask(engine, "new", ids)) == llama.write("four", ids, 12)
    (entry,) = engine.library.entries()
    assert (entry.where, entry.rank, entry.in_use) == ("merged", 4, 0)
    assert entry.bytes > 0
    shutil.rmtree(tmp_path / "new")
    assert engine.library.rescan() == ["new"]


def test_loading_by_name(family: Any, llama: Any, serve: Any, tmp_path: Path) -> None:
    engine = serve(llama)
    assert engine.library.load("four").where == "ram"
    with pytest.raises(Conflict, match="'four' is loaded already"):
        engine.library.load("four")
    assert engine.library.load("four", replace=True, pin=True).pinned
    shutil.copytree(llama.adapters / "five", tmp_path / "five")
    with pytest.raises(Forbidden):
        engine.library.load("outside", tmp_path / "five")
    for name in ("", "a/b", "a+b", "a:b", "../four", "base", "a\0"):
        with pytest.raises((BadRequest, UnknownModel)):
            engine.library.load(name)
    with pytest.raises(UnknownModel):
        engine.library.load("nothing")
    with pytest.raises(UnknownModel):
        engine.library.unload("nothing")
    with pytest.raises(UnknownModel):
        engine.library.pin("nothing")


# what a request may ask for


@pytest.mark.parametrize(
    ("model", "name"),
    [("", ""), ("base", ""), ("four", "four"), ("base:four", "four"), ("four:0.5+five:0.25", None)],
)
def test_ways_to_name_a_model(family: Any, llama: Any, serve: Any, model: str, name: str | None) -> None:
    engine = serve(llama)
    ids = family.prompt(1, 9)
    wanted = llama.write(name, ids, 12) if name is not None else None
    wanted = wanted or explicit_sum(llama, {"four": 0.5, "five": 0.25}, ids, 12)
    assert family.tokens(family.ask(engine, model, ids)) == wanted


@pytest.mark.parametrize(
    "model", ["nope", "base:nope", "other:four", "four+nope", "Four", "../four", "four/"]
)
def test_an_unknown_model_is_never_the_base(family: Any, llama: Any, serve: Any, model: str) -> None:
    with pytest.raises((UnknownModel, BadRequest)):
        family.ask(serve(llama, backend="plain"), model, family.prompt(1, 5))


def test_what_cannot_be_answered_is_refused(family: Any, llama: Any, serve: Any) -> None:
    engine = serve(llama, cache_tokens=128)
    for ids, what in (
        ([], "empty"),
        ([5, -1], "outside of 0 to 299"),
        ([300], "outside of 0 to 299"),
        (family.prompt(1, 128), "the prompt has 128 tokens; 127 is the most"),
    ):
        with pytest.raises(BadRequest, match=what):
            family.ask(engine, "", ids)
    assert len(family.tokens(family.ask(engine, "", family.prompt(1, 127), 50))) == 1
    engine = serve(llama)
    assert len(family.tokens(family.ask(engine, "", family.prompt(1, 250), 50))) == 6, "positions end at 256"
    assert engine.desk.answers() == []
    for wrong in (
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_k": -1},
        {"stop": ("",)},
        {"logprobs": 21},
    ):
        with pytest.raises(ConfigError):
            Sampling(**wrong)


@pytest.mark.parametrize(
    "weights", [{"four": 0.7, "five": 0.3}, {"four": 0.5}, {"four": 1.0, "eight": -0.5, "embeds": 0.75}]
)
def test_a_stack_is_the_sum_of_weighted_deltas(
    family: Any, llama: Any, serve: Any, weights: dict[str, float]
) -> None:
    engine = serve(llama)
    ids = family.prompt(6, 15)
    model = "+".join(f"{name}:{weight}" for name, weight in weights.items())
    others = [family.ask(engine, name, ids) for name in ("", "four", "dora")]
    answer = family.ask(engine, model, ids)
    mixed = family.tokens(answer)
    assert mixed == explicit_sum(llama, weights, ids, 12)
    for name, other in zip(("", "four", "dora"), others, strict=True):
        assert family.tokens(other) == llama.write(name, ids, 12)
    alone = family.ask(engine, model, ids)
    assert family.tokens(alone) == mixed
    assert alone.mode == "merged"
    assert all(held.uses == 0 for held in engine.cache.held())


def test_a_stack_of_what_cannot_be_weighted_or_is_too_large(family: Any, llama: Any, serve: Any) -> None:
    engine = serve(llama, max_rank=12)
    for model, what in (
        ("dora:0.5", "more than products"),
        ("whole+four", "more than products"),
        ("twelve+four", "rank 16"),
    ):
        with pytest.raises(AdapterError, match=what):
            family.ask(engine, model, family.prompt(1, 5))
    assert all(held.uses == 0 for held in engine.cache.held())


def test_the_base_with_scales_of_its_own(family: Any, llama: Any, serve: Any) -> None:
    engine = serve(llama)
    ids = family.prompt(6, 15)
    engine.library.scales = {"four": 0.5, "five": 0.0}
    assert family.tokens(family.ask(engine, "", ids)) == explicit_sum(llama, {"four": 0.5}, ids, 12)
    engine.library.scales = {"four": 0.0}
    assert family.tokens(family.ask(engine, "", ids)) == llama.write("", ids, 12)


# sampling


@BOTH
def test_a_seed_gives_the_same_tokens_alone_and_in_a_crowd(
    family: Any, llama: Any, serve: Any, backend: str
) -> None:
    engine = serve(llama, backend=backend)
    ids = family.prompt(7, 11)
    how = {"temperature": 1.0, "top_p": 0.95, "top_k": 40, "seed": 1234}
    alone = family.tokens(family.ask(engine, "four", ids, 20, **how))
    crowd = [
        family.ask(engine, name, family.prompt(seed, 5 + seed), 25, temperature=1.2, seed=seed)
        for seed, name in enumerate(["", "five", "dora", "four"])
    ]
    again, other, free = (
        family.ask(engine, "four", ids, 20, **{**how, "seed": seed}) for seed in (1234, 99, None)
    )
    assert family.tokens(again) == alone
    assert family.tokens(other) != alone
    assert family.tokens(free) != alone
    assert all(family.tokens(answer) for answer in crowd)


@BOTH
def test_stop_texts_end_an_answer_wherever_tokens_part(
    family: Any, llama: Any, serve: Any, backend: str
) -> None:
    engine = serve(llama, backend=backend)
    ids = family.prompt(9, 10)
    whole = engine.tokenizer.decode(llama.write("four", ids, 30), skip_special_tokens=True)
    tried = 0
    for at in range(2, len(whole) - 4, 5):
        stop = whole[at : at + 3]
        if "\N{REPLACEMENT CHARACTER}" in stop:
            continue
        tried += 1
        answer = family.ask(engine, "four", ids, 30, stop=(stop, "never"))
        pieces = family.pieces(answer)
        assert "".join(piece.text for piece in pieces) == whole[: whole.find(stop)]
        assert pieces[-1].finish == "stop"
    assert tried >= 3


def test_an_end_token_ends_it_and_is_not_in_the_text(family: Any, llama: Any, serve: Any) -> None:
    engine = serve(llama)
    ids = family.prompt(10, 10)
    wanted = llama.write("four", ids, 12)
    assert 1 not in wanted, "the prompt is to have no end by itself"
    at = wanted.index(wanted[6])
    request = Request(ids, "four", Sampling(12), stops=(wanted[6],))
    answer = engine.submit(request)
    pieces = family.pieces(answer)
    assert answer.tokens == wanted[: at + 1]
    assert pieces[-1].finish == "stop"
    text = engine.tokenizer.decode(wanted[:at], skip_special_tokens=True)
    assert "".join(piece.text for piece in pieces) == text


@BOTH
def test_log_probabilities_are_those_of_the_models_scores(
    family: Any, llama: Any, serve: Any, backend: str
) -> None:
    engine = serve(llama, backend=backend)
    ids = family.prompt(11, 10)
    answers = {
        name: family.ask(engine, name, ids, 8, logprobs=5, temperature=1.5, seed=3) for name in ("", "dora")
    }
    for name, answer in answers.items():
        chosen = [token for piece in family.pieces(answer) for token in piece.tokens]
        assert [one.token for one in chosen] == answer.tokens
        logits = llama.logits(name, [*ids, *answer.tokens])[len(ids) - 1 : -1]
        wanted = torch.log_softmax(logits, -1)
        for row, one in enumerate(chosen):
            assert one.logprob == pytest.approx(float(wanted[row, one.token]), abs=1e-4)
            best = wanted[row].topk(5)
            assert [token for token, _, _ in one.top] == best.indices.tolist()
            values = [value for _, _, value in one.top]
            assert values == pytest.approx(best.values.tolist(), abs=1e-4)
            assert one.text == engine.tokenizer.decode([one.token])


# ends


@BOTH
def test_cancelling_frees_what_it_held(family: Any, llama: Any, serve: Any, backend: str) -> None:
    engine = serve(llama, backend=backend)
    gate = family.Gate(engine._base.model)
    gate.shut()
    running, other = (
        family.ask(engine, "four", family.prompt(1, 9), 200),
        family.ask(engine, "five", family.prompt(2, 9), 12),
    )
    assert gate.reached.wait(30)
    waiting = family.ask(engine, "eight", family.prompt(3, 9), 200)
    running.cancel()
    waiting.cancel()
    gate.open()
    for answer in (running, waiting):
        assert family.pieces(answer)[-1].finish == "cancelled"
        assert len(answer.tokens) < 100
    assert family.tokens(other) == llama.write("five", family.prompt(2, 9), 12)
    assert all(held.uses == 0 for held in engine.cache.held())
    assert engine.desk.answers() == []


def test_too_many_who_wait_are_refused(family: Any, llama: Any, serve: Any) -> None:
    engine = serve(llama, max_waiting=3)
    gate = family.Gate(engine._base.model)
    gate.shut()
    first = family.ask(engine, "", family.prompt(1, 5), 4)
    assert gate.reached.wait(30)
    others = [family.ask(engine, "four", family.prompt(n, 5), 4) for n in range(3)]
    with pytest.raises(Overloaded, match="3 requests wait") as refused:
        family.ask(engine, "", family.prompt(1, 5))
    assert refused.value.retry_after
    gate.open()
    assert all(family.tokens(answer) for answer in (first, *others))
    assert family.tokens(family.ask(engine, "", family.prompt(1, 5), 4))


@BOTH
def test_closing_finishes_what_it_can_and_says_so_to_the_others(
    family: Any, llama: Any, serve: Any, backend: str
) -> None:
    engine = serve(llama, backend=backend)
    before = family.fingerprint(engine._base.model)
    quick = family.ask(engine, "four", family.prompt(1, 5), 12)
    closing = threading.Thread(target=engine.close, args=(30.0,))
    closing.start()
    assert family.tokens(quick) == llama.write("four", family.prompt(1, 5), 12)
    closing.join(30)
    assert not closing.is_alive()
    assert family.fingerprint(engine._base.model) == before
    with pytest.raises(Unavailable):
        family.ask(engine, "", family.prompt(1, 5))


@BOTH
def test_the_deadline_ends_what_is_left(family: Any, llama: Any, serve: Any, backend: str) -> None:
    engine = serve(llama, backend=backend)
    before = family.fingerprint(engine._base.model)
    engine._base.model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    long = [family.ask(engine, name, family.prompt(1, 5), 200) for name in ("four", "dora", "")]
    while not any(answer.tokens for answer in long):
        time.sleep(0.01)
    engine.close(0.05)
    for answer in long:
        last = family.pieces(answer)[-1]
        assert (last.finish, bool(last.error)) == ("error", True)
    assert engine.desk.answers() == []
    assert family.fingerprint(engine._base.model) == before
    assert engine.backend.error is None, "it was stopped, it did not die"
    assert all(held.uses == 0 for held in engine.cache.held())


@BOTH
@pytest.mark.parametrize(
    ("error", "said"),
    [(RuntimeError("the device is lost"), "the device is lost"), (StopIteration(), "failed")],
)
def test_a_model_that_breaks_is_told_to_all(
    family: Any, llama: Any, serve: Any, backend: str, error: Exception, said: str
) -> None:
    engine = serve(llama, backend=backend)
    calls = 0

    def broken(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise error

    assert engine.state == "ready"
    gate = family.Gate(engine._base.model)
    engine._base.model.register_forward_pre_hook(broken)
    gate.shut()
    answers = [family.ask(engine, name, family.prompt(1, 5), 50) for name in ("four", "", "dora")]
    gate.open()
    for answer in answers:
        last = family.pieces(answer)[-1]
        assert last.finish == "error"
        assert said in last.error
    deadline = time.monotonic() + 10
    while engine.state != "dead" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.state == "dead"
    with pytest.raises(Unavailable, match=str(error) or "StopIteration"):
        family.ask(engine, "", family.prompt(1, 5))
    assert all(held.uses == 0 for held in engine.cache.held())


def huge(folder: Path, value: float) -> None:
    """Numbers that are finite one by one, and not what comes of them."""
    path = folder / "adapter_model.safetensors"
    save_file({key: torch.full_like(tensor, value) for key, tensor in load_file(path).items()}, path)


@BOTH
def test_scores_that_are_not_finite_end_their_answer_and_leave_nothing_behind(
    family: Any, llama: Any, serve: Any, shelf: Path, backend: str
) -> None:
    huge(shelf / "five", 60.0)  # in fp16 each product is finite, and not their sum
    engine = serve(llama, roots=[shelf], backend=backend, dtype="float16")
    ids = family.prompt(1, 40)
    names = ("four", "", "dora")
    before = [family.tokens(family.ask(engine, name, ids)) for name in names]
    for temperature in (0.0, 1.0):
        last = family.pieces(family.ask(engine, "five", ids, 20, temperature=temperature))[-1]
        assert last.finish == "error"
        assert "not finite" in last.error
    assert engine.state == "ready"
    assert [family.tokens(family.ask(engine, name, ids)) for name in names] == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_adapter_whose_numbers_would_reach_others_is_refused(
    family: Any, llama: Any, serve: Any, shelf: Path, dtype: str
) -> None:
    """Requests of a step share one attention, where infinity counts 0 times itself where it is masked."""
    huge(shelf / "five", 1e6 if dtype != "float16" else 2e2)
    engine = serve(llama, roots=[shelf], dtype=dtype)
    with pytest.raises(AdapterError, match="too large to serve"):
        family.ask(engine, "five", family.prompt(1, 9), 20)
    with pytest.raises(AdapterError, match=r"too large to serve|not finite"):
        family.ask(engine, "four:1e12+eight:1", family.prompt(1, 9), 20)


@pytest.mark.parametrize("name", ["four", "whole"])
def test_an_adapter_that_cannot_be_merged(
    family: Any, llama: Any, serve: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It is served beside the weights if it can be, and otherwise its own answer ends."""
    engine = serve(llama)

    def refuse(fitted: Any) -> None:
        raise AdapterError(f"{fitted.name}: the merged weight is not finite.")

    monkeypatch.setattr(engine.placement.merged, "build", refuse)
    ids = family.prompt(1, 9)
    answer = family.ask(engine, name, ids, 30)
    last = family.pieces(answer)[-1]
    if name == "four":
        assert (last.finish, answer.mode) == ("length", "mixed")
        assert answer.tokens == llama.write(name, ids, 30)
    else:
        assert (last.finish, last.error) == ("error", "whole: the merged weight is not finite.")
    assert engine.state == "ready"
    assert family.tokens(family.ask(engine, "", ids)) == llama.write("", ids, 12)


@BOTH
def test_a_crowd_that_comes_and_goes(family: Any, llama: Any, serve: Any, backend: str) -> None:
    """Many threads, all adapters, some cancelled; then everything is as at the beginning."""
    engine = serve(llama, slots=3, max_running=8, backend=backend)
    before = family.fingerprint(engine._base.model)
    names = ["", *llama.names, "four:0.5+eight:0.5"]
    for name in llama.names:
        llama.write(name, family.prompt(0, 8), 10)  # the oracle's models, not made in many threads at once
    llama.write("", family.prompt(0, 8), 10)

    def one(seed: int) -> tuple[Answer, str]:
        name = names[seed % len(names)]
        answer = family.ask(engine, name, family.prompt(seed % 3, 8), 10)
        if random.Random(seed).random() < 0.2:
            answer.cancel()
        family.pieces(answer)
        return answer, name

    with ThreadPoolExecutor(16) as pool:
        done = list(pool.map(one, range(66)))
    for seed, (answer, name) in enumerate(done):
        assert answer.finish in ("length", "cancelled")
        if answer.finish == "length" and "+" not in name:
            assert answer.tokens == llama.write(name, family.prompt(seed % 3, 8), 10)
    assert engine.desk.answers() == []
    assert all(held.uses == 0 for held in engine.cache.held())
    assert engine.cache._leaving == []
    engine.close()
    assert family.fingerprint(engine._base.model) == before


def test_automatic_choice_takes_what_fits(family: Any, llama: Any, serve: Any) -> None:
    from loralab.serving.continuous import Continuous

    engine = serve(llama, backend="auto")
    assert isinstance(engine.backend, Continuous)
    ids = family.prompt(1, 9)
    assert family.tokens(family.ask(engine, "dora", ids)) == llama.write("dora", ids, 12)


def test_a_config_that_changes_beside_the_same_weights_is_another_adapter(
    family: Any, llama: Any, serve: Any, shelf: Path
) -> None:
    engine = serve(llama, roots=[shelf])
    ids = family.prompt(4, 40)
    family.tokens(family.ask(engine, "four", ids))
    path = shelf / "four" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 4}))
    assert engine.library.rescan() == ["four"]
    assert family.tokens(family.ask(engine, "four", ids)) == explicit_sum(llama, {"four": 0.5}, ids, 12)


def test_who_watches_is_told_of_reads_switches_and_ends(family: Any, llama: Any, tmp_path: Path) -> None:
    from loralab.serving.engine import Engine, EngineSettings

    class Watcher:
        def __init__(self) -> None:
            self.ends: list[tuple[str, str | None]] = []
            self.reads: list[tuple[str, int]] = []
            self.switches: list[tuple[str, str, str]] = []

        def finished(self, answer: Answer) -> None:
            self.ends.append((answer.id, answer.finish))

        def loaded(self, name: str, nbytes: int, seconds: float) -> None:
            assert seconds >= 0
            self.reads.append((name, nbytes))

        def switched(self, before: str, after: str, mode: str, seconds: float) -> None:
            assert seconds >= 0
            self.switches.append((before, after, mode))

    watcher = Watcher()
    settings = EngineSettings(backend="continuous", cache_tokens=1024)
    with Engine(llama.load(), [llama.adapters], settings, watcher) as engine:
        one = family.ask(engine, "four", family.prompt(1, 9), 20)
        family.tokens(one)
        two = family.ask(engine, "", family.prompt(1, 9), 5)
        family.tokens(two)
    assert watcher.ends == [(one.id, "length"), (two.id, "length")]
    assert [name for name, _ in watcher.reads] == ["four"]
    assert watcher.switches == [
        ("", one.identity, "mixed"),
        ("", one.identity, "merged"),
        (one.identity, "", "merged"),
    ]
