"""The one file that hooks into transformers' continuous batching.

Its scheduler asks ours whom to let in, and orders a step so that requests of one adapter lie together. Its
runner enters the placement before the model runs and hands the scores to the answers. An answer ends by its
own rules, and is then cancelled there. Blocks of the KV cache are shared between equal prompts by a hash of
their tokens; ours say the adapter's identity along with those of the first block, so that no block serves
another adapter.

Written for transformers 5.23; tests/serving/test_continuous_contract.py holds the installed version to it.
"""

import time
from collections.abc import Sequence
from typing import Any, SupportsIndex, overload

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching import requests, scheduler
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager, OutputRouter
from transformers.generation.continuous_batching.model_runner import ModelRunner

from loralab.serving.desk import Desk
from loralab.serving.packed import PACKED, takes_packed
from loralab.serving.requests import Answer

__all__ = ["Continuous"]

_PAGE = 32
"""Tokens of a block of the KV cache, the smallest that is shared between prompts."""
_SCHEDULER = "loralab"


class Continuous:
    """Runs the answers of a desk on a model, in a thread of transformers' manager."""

    def __init__(self, model: Any, desk: Desk, batch_tokens: int, cache_tokens: int, most: int) -> None:
        scheduler.SCHEDULER_MAPPING[_SCHEDULER] = _Scheduler
        config = ContinuousBatchingConfig(
            page_size=_PAGE,
            num_blocks=-(-cache_tokens // _PAGE),
            max_batch_tokens=batch_tokens,
            max_requests_per_batch=min(most, batch_tokens),
            use_async_batching=False,
            use_cuda_graph=False,
            scheduler_type=_SCHEDULER,
            safety_margin=0.0,
            auto_switch_to_flash=False,
        )
        generation = GenerationConfig(do_sample=False, max_new_tokens=None, eos_token_id=-1, pad_token_id=0)
        self._manager = _Manager(model, generation, config, desk)
        self._desk = desk

    @property
    def alive(self) -> bool:
        """Whether the thread runs and has met no error."""
        status = self._manager.background_thread_status
        return self._manager.is_running() and status.fatal_error is None

    @property
    def error(self) -> BaseException | None:
        """What the thread ended with, if with an error."""
        error: BaseException | None = self._manager.background_thread_status.fatal_error
        return error

    def start(self) -> None:
        """Start the thread."""
        self._manager.start()

    def submit(self, answer: Answer) -> None:
        """Begin to work on an answer."""
        state = requests.RequestState(
            request_id=answer.id,
            initial_tokens=_Prompt(answer.request.prompt, answer.identity),
            max_new_tokens=None,
        )
        self._manager.input_queue.put(state)
        self._manager._wake_up_loop.set()

    def wake(self) -> None:
        """Have the thread look at its answers again."""
        self._manager._wake_up_loop.set()

    def stop(self) -> None:
        """End the thread; what is not finished fails."""
        while self.alive and self._manager.batch_processor is None:
            time.sleep(0.001)  # it is still making its cache
        if self._manager._generation_thread is not None:
            self._manager.stop(block=True, timeout=60, hard_stop=True)


class _Manager(ContinuousBatchingManager):
    """The manager with our parts in its place."""

    def __init__(
        self, model: Any, generation: GenerationConfig, config: ContinuousBatchingConfig, desk: Desk
    ) -> None:
        super().__init__(model, generation, config)
        self._desk = desk
        self.output_router = _Router(desk)

    def switch_to_cb_friendly_attn(self, model: Any, auto_switch_to_flash: bool = True) -> None:
        if not takes_packed(model):
            super().switch_to_cb_friendly_attn(model, auto_switch_to_flash)
            return
        self._original_attn_impl = model.config._attn_implementation
        model.set_attn_implementation(PACKED)

    def _create_batch_processor(self) -> Any:
        processor: Any = super()._create_batch_processor()
        processor.scheduler.desk = self._desk
        before = processor.model_runner
        processor.model_runner = _Runner(
            logit_processor=before.logit_processor,
            cb_config=before.cb_config,
            inputs_and_outputs=before.inputs_and_outputs,
            cache=before.cache,
            do_sample=False,
            return_logprobs=False,
        )
        processor.model_runner.desk = self._desk
        return processor


class _Scheduler(scheduler.FIFOScheduler):
    """Lets in whom the desk says, and orders a step by adapter."""

    desk: Desk

    def schedule_batch(self, token_budget: int, cache_budget: int) -> tuple[Any, bool, int, int]:
        scheduled, fast, tokens, read = super().schedule_batch(token_budget, cache_budget)
        if scheduled:
            scheduled.sort(key=lambda future: self.desk.place_of(future.state.request_id))
        return scheduled, fast, tokens, read

    def clear_cancelled_requests(self) -> list[Any]:
        for request_id in (*self.active_requests, *self.waiting_requests):
            if not self.desk.going(request_id):
                self.set_request_cancellation(request_id)
        cleared = super().clear_cancelled_requests()
        if cleared:
            # A request that had to leave for want of memory closes the door, and one that finishes opens it
            # again. Ours all finish by being cancelled.
            self.block_new_requests = False
        return cleared

    def _get_waiting_candidates(self) -> list[Any]:
        admitted = self.desk.admit(list(self.waiting_requests), list(self.active_requests))
        return [self.waiting_requests[request_id] for request_id in admitted]


class _Runner(ModelRunner):
    """Enters the placement before a step, and hands the scores to the answers after it."""

    desk: Desk

    def compute_batch(self, model: Any, batch_data: dict[str, Any]) -> None:
        inputs: Any = self.inputs_and_outputs
        self._batch = [
            (f.state.request_id, f.query_length, f.has_new_token) for f in inputs.requests_in_batch
        ]
        self.desk.enter(self._batch, self.supports_logits_to_keep(model))
        super().compute_batch(model, batch_data)

    def _sample(self, scores: Tensor, output_ids: Tensor) -> None:
        ids = [request_id for request_id, _, ends in self._batch if ends]
        if ids:
            chosen = self.desk.take(ids, scores[0, : len(ids)])
            output_ids[0, : len(ids)].copy_(torch.tensor(chosen, dtype=output_ids.dtype))


class _Router(OutputRouter):
    """Tells the desk of requests that failed; all else the runner has told it already."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk = desk

    def deliver(self, output: Any) -> None:
        if output.error is not None:  # "" is an error too, one without words
            self._desk.fail(output.request_id, output.error or "the model failed.")

    def deliver_batch(self, outputs: list[Any]) -> None:
        for output in outputs:
            self.deliver(output)


class _Prompt(list[int]):
    """Token ids of a prompt whose first block says what the request runs with when it is hashed."""

    def __init__(self, tokens: Sequence[int], identity: str) -> None:
        super().__init__(tokens)
        digest = bytes.fromhex(identity) if identity else b""
        self._salt = [int.from_bytes(digest[at : at + 3], "little") for at in range(0, len(digest), 3)]
        self._identity = identity

    @overload
    def __getitem__(self, key: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> list[int]: ...
    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        if not isinstance(key, slice):
            return found
        if key.start is None and key.stop is None:
            return _Prompt(found, self._identity)
        # Blocks are cut out as [0 : size], [size : 2 * size] and so on; work is cut out as [: n] and [n :].
        return found + self._salt if key.start == 0 else found

    def __add__(self, other: Any) -> Any:
        return _Prompt([*self, *other], self._identity)
