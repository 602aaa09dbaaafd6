"""A batch of adapters of every kind and the plain base: each request as peft has it alone, token by token."""

from pathlib import Path
from typing import Any

import pytest

from loralab.serving import continuous


@pytest.mark.parametrize("backend", ["continuous", "plain"])
@pytest.mark.parametrize("kind", ["llama", "tied", "qwen", "gemma", "gpt2"])
def test_each_request_of_a_mixed_batch_is_as_it_is_alone(
    family: Any, serve: Any, kind: str, backend: str
) -> None:
    relative = family.relatives[kind]
    served = [name for name in relative.names if (kind, name) != ("gemma", "words")]
    names = ["", *served, *served, ""]
    prompts = [family.prompt(seed, 3 + seed * 7 % 44) for seed in range(len(names))]
    engine = serve(relative, backend=backend)
    answers = [family.ask(engine, name, ids) for name, ids in zip(names, prompts, strict=True)]
    written = [family.tokens(answer) for answer in answers]
    wanted = [relative.write(name, ids, 12) for name, ids in zip(names, prompts, strict=True)]
    assert dict(enumerate(zip(names, written, strict=True))) == dict(
        enumerate(zip(names, wanted, strict=True))
    )
    assert "mixed" in {answer.mode for answer in answers}


def test_an_embedding_that_scales_its_output(family: Any, serve: Any) -> None:
    gemma = family.relatives["gemma"]
    engine = serve(gemma, merging="never")
    ids = family.prompt(2, 20)
    assert family.tokens(family.ask(engine, "words", ids)) == gemma.write("words", ids, 12)


def check(relative: Any, asked: list[tuple[str, list[int]]], written: list[list[int]]) -> None:
    for (name, ids), tokens in zip(asked, written, strict=True):
        assert tokens == relative.write(name, ids, len(tokens)), name


def test_long_prompts_go_in_parts(family: Any, llama: Any, serve: Any) -> None:
    engine = serve(llama, batch_tokens=24)
    steps = family.Steps(engine)
    names = ["four", "", "dora", "twelve"]
    asked = [(name, family.prompt(seed, 90 + seed)) for seed, name in enumerate(names)]
    answers = [family.ask(engine, name, ids, 6) for name, ids in asked]
    check(llama, asked, [family.tokens(answer) for answer in answers])
    assert all(sum(batch.values()) <= 24 for batch in steps.batches)
    assert all(len(steps.tokens_of(answer)) >= 4 + 5 for answer in answers), "a prompt takes many steps"


def test_more_requests_than_run_at_a_time(family: Any, llama: Any, serve: Any) -> None:
    for backend in ("continuous", "plain"):
        engine = serve(llama, max_running=3, backend=backend)
        steps = family.Steps(engine)
        asked = [(name, family.prompt(seed, 9)) for seed, name in enumerate(["", *llama.names] * 2)]
        answers = [family.ask(engine, name, ids, 5) for name, ids in asked]
        check(llama, asked, [family.tokens(answer) for answer in answers])
        assert max(map(len, steps.batches)) == 3


def test_more_adapters_than_slots_and_the_base(family: Any, llama: Any, serve: Any) -> None:
    engine = serve(llama, slots=2)
    steps = family.Steps(engine)
    names = [name for name in llama.names if name != "whole"]
    asked = [(name, family.prompt(seed, 9)) for seed, name in enumerate([*names, "", *names])]
    answers = [family.ask(engine, name, ids, 8) for name, ids in asked]
    check(llama, asked, [family.tokens(answer) for answer in answers])
    assert max(steps.seated) == 2
    assert max(len(models) for models in steps.models) == 3, "two adapters and the base"


def test_a_cache_smaller_than_all_need_together(family: Any, llama: Any, serve: Any) -> None:
    engine = serve(llama, cache_tokens=192)
    asked = [(name, family.prompt(seed, 40)) for seed, name in enumerate(["four", "", "dora", "eight"])]
    answers = [family.ask(engine, name, ids, 60) for name, ids in asked]
    check(llama, asked, [family.tokens(answer) for answer in answers])


def test_one_request_may_take_the_whole_cache(family: Any, llama: Any, serve: Any) -> None:
    engine = serve(llama, cache_tokens=96)
    ids = family.prompt(1, 40)
    answers = [family.ask(engine, name, ids, 500) for name in ("four", "eight")]
    assert [len(family.tokens(answer)) for answer in answers] == [56, 56]
    check(llama, [("four", ids), ("eight", ids)], [answer.tokens for answer in answers])


def test_adapters_that_replace_modules_run_alone(family: Any, llama: Any, serve: Any) -> None:
    for backend in ("continuous", "plain"):
        engine = serve(llama, backend=backend)
        steps = family.Steps(engine)
        names = ["four", "whole", "", "whole", "eight", "whole", ""]
        asked = [(name, family.prompt(seed, 9)) for seed, name in enumerate(names)]
        answers = [family.ask(engine, name, ids, 8) for name, ids in asked]
        check(llama, asked, [family.tokens(answer) for answer in answers])
        assert {"whole"} in steps.models
        assert not any("whole" in models and len(models) > 1 for models in steps.models)


def test_equal_prompts_share_blocks_within_an_adapter_and_never_between(
    family: Any, llama: Any, serve: Any
) -> None:
    engine = serve(llama, merging="never")
    steps = family.Steps(engine)
    ids = family.prompt(3, 70)
    for name in ("four", "", "eight", "four", "", "eight", "dora"):
        answer = family.ask(engine, name, ids)
        assert family.tokens(answer) == llama.write(name, ids, 12), name
    prompts = [max(batch.values()) for batch in steps.batches if max(batch.values()) > 1]
    assert prompts == [70, 70, 70, 6, 6, 6, 70], "two blocks of 32 are there the second time"


def test_without_the_identity_in_the_hash_another_adapters_blocks_are_used(
    family: Any, llama: Any, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test above would miss, were it blind."""
    monkeypatch.setattr(continuous, "_Prompt", lambda tokens, identity: list(tokens))
    engine = serve(llama, merging="never")
    ids = family.prompt(3, 70)
    family.tokens(family.ask(engine, "four", ids))
    assert family.tokens(family.ask(engine, "eight", ids)) != llama.write("eight", ids, 12)


def test_an_adapter_that_is_alone_is_merged_and_says_the_same(family: Any, llama: Any, serve: Any) -> None:
    engine = serve(llama)
    before = family.fingerprint(engine._base.model)
    ids = family.prompt(4, 20)
    for name in ("four", "dora", "embeds", "shift", "four"):
        answer = family.ask(engine, name, ids, 24)
        assert family.tokens(answer) == llama.write(name, ids, 24)
        assert answer.mode == "merged"
    base = family.ask(engine, "", ids, 24)
    assert family.tokens(base) == llama.write("", ids, 24)
    assert base.mode == "base"
    assert family.fingerprint(engine._base.model) == before


def test_one_who_comes_while_another_is_merged(family: Any, llama: Any, serve: Any) -> None:
    """It goes back to mixed in the middle of an answer, and the answer does not change."""
    engine = serve(llama)
    gate = family.Gate(engine._base.model)
    ids, other = family.prompt(5, 12), family.prompt(6, 9)
    first = family.ask(engine, "four", ids, 80)
    while first.mode != "merged":
        assert first.finish is None
    gate.shut()
    assert gate.reached.wait(30)
    second, third = family.ask(engine, "dora", other, 10), family.ask(engine, "", other, 10)
    gate.open()
    assert family.tokens(second) == llama.write("dora", other, 10)
    assert family.tokens(third) == llama.write("", other, 10)
    assert family.tokens(first) == llama.write("four", ids, 80)
    assert (second.mode, third.mode) == ("mixed", "mixed")


@pytest.mark.parametrize("backend", ["continuous", "plain"])
def test_a_batch_of_the_base_alone_runs_no_adapter_code(
    family: Any, llama: Any, serve: Any, backend: str
) -> None:
    engine = serve(llama, merging="never", backend=backend)
    ids = family.prompt(2, 20)
    family.tokens(family.ask(engine, "four", ids))

    def choose(rows: Any) -> Any:
        raise AssertionError("a kernel was chosen")

    engine.placement.mixed.choice = choose
    assert family.tokens(family.ask(engine, "", ids)) == llama.write("", ids, 12)
    assert family.pieces(family.ask(engine, "four", ids))[-1].error == "a kernel was chosen"


def test_any_rank_that_the_settings_allow(family: Any, llama: Any, serve: Any, tmp_path: Path) -> None:
    family.make_adapter(llama.base_dir, tmp_path / "large", 1, r=600, target_modules=["q_proj"])
    engine = serve(llama, roots=[tmp_path], max_rank=1024, merging="never")
    assert len(family.tokens(family.ask(engine, "large", family.prompt(1, 9), 4))) == 4


def test_scattered_adapters_move_together(family: Any, llama: Any, serve: Any) -> None:
    """The slots between used ones are computed along; who runs on in far ones is brought near."""
    engine = serve(llama, merging="never", slots=9)
    names = [name for name in llama.names if name != "whole"]
    ids = family.prompt(1, 9)
    for name in names:
        family.tokens(family.ask(engine, name, ids))
    seats = sorted(
        (seat for seat in engine.placement.mixed.seats.values() if seat.bucket == 8),
        key=lambda seat: seat.slot,
    )
    pair = [seats[0], seats[-1]]
    assert pair[1].slot - pair[0].slot >= 4
    answers = [family.ask(engine, seat.fitted.name, ids, 40) for seat in pair]
    for seat, answer in zip(pair, answers, strict=True):
        assert family.tokens(answer) == llama.write(seat.fitted.name, ids, 40)
    assert {seat.slot for seat in pair} == {0, 1}
    reads = engine.cache.stats.disk_reads
    for name in names:
        assert family.tokens(family.ask(engine, name, ids)) == llama.write(name, ids, 12)
    places = [(seat.bucket, seat.slot) for seat in engine.placement.mixed.seats.values()]
    assert len(set(places)) == len(places) == len(names)
    assert engine.cache.stats.disk_reads == reads
