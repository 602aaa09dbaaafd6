"""What `loralab.serving.continuous` relies on in the installed transformers.

It reaches into parts that are no public interface. If one of these fails after an upgrade, that file is to
be looked at before the version is let in.
"""

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import ContinuousBatchingConfig
from transformers.generation.continuous_batching import requests, scheduler
from transformers.generation.continuous_batching.cache_allocators import cache_allocator
from transformers.generation.continuous_batching.continuous_api import (
    ContinuousBatchingManager,
    ContinuousBatchProcessor,
    OutputRouter,
)
from transformers.generation.continuous_batching.model_runner import ModelRunner

from loralab.serving.continuous import _PAGE, _Manager, _Prompt, _Router, _Runner, _Scheduler

ONE, TWO = "ab" * 32, "cd" * 32


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("ours", "theirs", "names"),
    [
        (_Scheduler, scheduler.FIFOScheduler, ["schedule_batch", "clear_cancelled_requests"]),
        (_Scheduler, scheduler.FIFOScheduler, ["_get_waiting_candidates"]),
        (_Runner, ModelRunner, ["compute_batch", "_sample"]),
        (_Router, OutputRouter, ["deliver", "deliver_batch"]),
        (_Manager, ContinuousBatchingManager, ["_create_batch_processor"]),
    ],
)
def test_what_we_override_is_there_with_those_parameters(ours: type, theirs: type, names: list[str]) -> None:
    for name in names:
        assert name in vars(ours)
        assert parameters(vars(ours)[name]) == parameters(getattr(theirs, name)), name


def test_settings_have_their_names() -> None:
    wanted = {
        "page_size",
        "num_blocks",
        "max_batch_tokens",
        "max_requests_per_batch",
        "use_async_batching",
        "use_cuda_graph",
        "scheduler_type",
        "safety_margin",
        "auto_switch_to_flash",
    }
    assert wanted <= set(parameters(ContinuousBatchingConfig))
    assert isinstance(scheduler.SCHEDULER_MAPPING, dict)
    assert parameters(ModelRunner)[:6] == [
        "logit_processor",
        "cb_config",
        "inputs_and_outputs",
        "cache",
        "do_sample",
        "return_logprobs",
    ]
    assert {"request_id", "initial_tokens", "max_new_tokens"} <= set(parameters(requests.RequestState))
    assert parameters(ContinuousBatchingManager.stop)[1:5] == [
        "block",
        "timeout",
        "keep_for_next_session",
        "hard_stop",
    ]


def test_parts_of_a_running_manager_have_their_names(family: Any, llama: Any, serve: Any) -> None:
    engine = serve(llama)
    family.tokens(family.ask(engine, "four", family.prompt(1, 9), 3))
    manager = engine.backend._manager
    processor = manager.batch_processor
    assert isinstance(processor, ContinuousBatchProcessor)
    assert manager.background_thread_status.fatal_error is None
    assert callable(manager._wake_up_loop.set)
    assert callable(manager.input_queue.put)
    assert isinstance(processor.scheduler, _Scheduler)
    assert isinstance(processor.model_runner, _Runner)
    assert isinstance(manager.output_router, _Router)
    assert processor.scheduler.block_new_requests is False
    assert processor.cache.use_prefix_sharing
    assert not processor.use_async_batching
    assert not processor.model_runner.pad_inputs
    for name in ("active_requests", "waiting_requests"):
        assert isinstance(getattr(processor.scheduler, name), dict)
    assert {a.tokens_per_page for a in processor.cache.cache_allocators.values()} == {_PAGE}


def test_a_processor_is_made_in_the_thread_and_keeps_our_runner() -> None:
    source = inspect.getsource(ContinuousBatchingManager._run_generation_loop)
    assert "self._create_batch_processor()" in source
    assert "self.model_runner.compute_batch(" in inspect.getsource(ContinuousBatchProcessor._generation_step)
    assert "self._sample(scores, output_ids)" in inspect.getsource(ModelRunner._forward_process_and_sample)


def test_a_door_that_is_closed_is_opened_by_who_finishes() -> None:
    """Ours finish by being cancelled, so our scheduler has to open it: this is what it stands in for."""
    assert "self.scheduler.block_new_requests = False" in inspect.getsource(
        ContinuousBatchProcessor.update_batch
    )


class Watched(_Prompt):
    """Notes how it is cut."""

    cuts: list[Any]

    def __getitem__(self, key: Any) -> Any:
        self.cuts.append(key)
        return super().__getitem__(key)


def test_hashes_are_made_of_slices_from_zero_and_work_of_others() -> None:
    """The salt goes in with [0 : size]; whatever is run as a token is cut otherwise."""
    tokens = list(range(100, 170))
    watched = Watched(tokens, ONE)
    watched.cuts = []
    allocator = SimpleNamespace(tokens_per_page=_PAGE, ledger=SimpleNamespace(hash_to_block={}))
    match: Any = cache_allocator.CacheAllocator.match_prefix_blocks
    assert match(allocator, watched) == []
    assert watched.cuts == [slice(0, _PAGE)]
    sources = inspect.getsource(scheduler.Scheduler._schedule_request) + inspect.getsource(
        scheduler.Scheduler._infer_request_tokens
    )
    assert "request_tokens[token_budget:]" in sources
    assert "request_tokens[:token_budget]" in sources
    assert "[0:" not in sources.replace(" ", "")
    state = requests.RequestState(request_id="x", initial_tokens=_Prompt(tokens, ONE), max_new_tokens=None)
    rest = state.remaining_prefill_tokens
    assert isinstance(rest, _Prompt), "the copy that is searched for a prefix is salted too"
    assert list(rest) == tokens
    assert rest[:5] == tokens[:5]
    assert rest[5:] == tokens[5:]
    again = state.create_equivalent_initial_request()
    assert isinstance(again.initial_tokens, _Prompt), "after it had to leave for want of memory, too"


def hashes(tokens: Any) -> list[int]:
    """The hashes of the blocks of a prompt, as the allocator chains them."""
    found: list[int] = []
    for at in range(len(tokens) // _PAGE):
        parent = found[-1] if found else None
        found.append(cache_allocator.compute_block_hash(parent, tokens[at * _PAGE : (at + 1) * _PAGE]))
    return found


def test_hashes_differ_by_identity_and_all_who_run_the_base_share() -> None:
    tokens = list(range(4, 100))
    plain, base = hashes(tokens), hashes(_Prompt(tokens, ""))
    one, two, grown = (
        hashes(prompt)
        for prompt in (_Prompt(tokens, ONE), _Prompt(tokens, TWO), _Prompt(tokens[:50], ONE) + tokens[50:])
    )
    assert plain == base
    assert one == hashes(_Prompt(tokens, ONE)) == grown
    assert len({*base, *one, *two}) == 9, "no block is shared, the first or a later one"
    assert hashes(_Prompt([*tokens[:40], *reversed(tokens[40:])], ONE))[0] == one[0]


def test_a_prompt_is_still_its_tokens() -> None:
    prompt = _Prompt([5, 6, 7], ONE)
    assert list(prompt) == [5, 6, 7]
    assert (len(prompt), prompt[0], prompt[-1], prompt[1:], prompt[:2]) == (3, 5, 7, [6, 7], [5, 6])
    assert torch.tensor(prompt).tolist() == [5, 6, 7]


def test_scores_come_in_the_order_of_the_requests_in_a_step(
    family: Any, llama: Any, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request's scores are those of the model at its own last token."""
    engine = serve(llama, merging="never", batch_tokens=64)
    seen: list[tuple[list[str], torch.Tensor]] = []
    take = engine.desk.take

    def watched(ids: Any, logits_BV: torch.Tensor) -> list[int]:
        seen.append((list(ids), logits_BV.clone()))
        return take(ids, logits_BV)

    engine.desk.take = watched
    asked = {n: family.prompt(n, 7 + 31 * (n % 3)) for n in range(7)}
    answers = {n: family.ask(engine, ["", "four"][n % 2], ids, 6) for n, ids in asked.items()}
    for answer in answers.values():
        family.tokens(answer)
    number = {answer.id: n for n, answer in answers.items()}
    assert max(len(ids) for ids, _ in seen) > 3
    written = dict.fromkeys(asked, 0)
    for ids, logits_BV in seen:
        for answer_id, logits_V in zip(ids, logits_BV, strict=True):
            n = number[answer_id]
            text = [*asked[n], *answers[n].tokens[: written[n]]]
            wanted = llama.logits(["", "four"][n % 2], text)[-1]
            torch.testing.assert_close(logits_V.float(), wanted, rtol=1e-3, atol=1e-3)
            written[n] += 1
    assert set(written.values()) == {6}


def test_an_error_reaches_the_router_as_text() -> None:
    told: list[tuple[str, str]] = []

    class Desk:
        def fail(self, answer_id: str, error: str) -> None:
            told.append((answer_id, error))

    router = _Router(Desk())  # type: ignore[arg-type]
    state = requests.RequestState(request_id="x", initial_tokens=[1], max_new_tokens=None)
    router.fail_and_deliver(state, RuntimeError("lost"))
    assert told == [("x", "lost")]
