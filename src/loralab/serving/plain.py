"""The backend for models that continuous batching does not take: batches that begin and end together."""

import inspect
import queue
import threading
from typing import Any

import torch
from torch import Tensor

from loralab.serving.desk import Desk
from loralab.serving.requests import Answer

__all__ = ["Plain"]


class Plain:
    """Runs the answers of a desk, up to `most` at a time; who comes later waits for the next batch."""

    def __init__(self, model: Any, desk: Desk, pad: int, most: int) -> None:
        self.error: BaseException | None = None
        self._model, self._desk, self._pad, self._most = model, desk, pad, most
        self._places = "position_ids" in inspect.signature(model.forward).parameters
        self._waiting: dict[str, Answer] = {}
        self._new: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="loralab-plain", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, answer: Answer) -> None:
        """Begin to work on an answer."""
        self._new.put(answer)

    def wake(self) -> None:
        """Have the thread look at its answers again."""
        self._new.put(None)

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self.wake()
        self._thread.join(60)

    def _work(self) -> None:
        try:
            while not self._stopped.is_set():
                self._receive(wait=not self._waiting)
                admitted = self._desk.admit(list(self._waiting), [])[: self._most]
                batch = [self._waiting.pop(answer_id) for answer_id in admitted]
                if batch:
                    self._write(batch)
        except Exception as error:  # told to whoever waits, and to who asks for `error`
            self.error = error
            self._desk.close("error", str(error) or "the model failed.")

    def _receive(self, *, wait: bool) -> None:
        while wait or not self._new.empty():
            answer = self._new.get()
            wait = False
            if answer is not None:
                self._waiting[answer.id] = answer
        for answer_id in list(self._waiting):
            if not self._desk.going(answer_id):
                del self._waiting[answer_id]

    @torch.inference_mode()
    def _write(self, batch: list[Answer]) -> None:
        """Write the answers of a batch to their ends."""
        batch.sort(key=lambda answer: self._desk.place_of(answer.id))
        device = self._model.device
        longest = max(answer.prompt_tokens for answer in batch)
        prompts = [[self._pad] * (longest - a.prompt_tokens) + list(a.request.prompt) for a in batch]
        ids_BT = torch.tensor(prompts, device=device)
        counts = torch.tensor([answer.prompt_tokens for answer in batch], device=device)
        mask_BT = (torch.arange(longest, device=device) >= longest - counts[:, None]).long()
        cache: Any = None
        while batch and not self._stopped.is_set():
            self._desk.enter([(answer.id, ids_BT.shape[1], True) for answer in batch], only_last=False)
            logits_BV, cache = self._step(ids_BT, mask_BT, cache)
            tokens = self._desk.take([answer.id for answer in batch], logits_BV)
            ids_BT = torch.tensor(tokens, device=device)[:, None]
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(batch), 1)], dim=1)
            going = [row for row, answer in enumerate(batch) if self._desk.going(answer.id)]
            if len(going) < len(batch):
                kept = torch.tensor(going, dtype=torch.long, device=device)
                batch = [batch[row] for row in going]
                ids_BT, mask_BT = ids_BT[kept], mask_BT[kept]
                if batch:
                    cache.batch_select_indices(kept)

    def _step(self, ids_BT: Tensor, mask_BT: Tensor, cache: Any) -> tuple[Tensor, Any]:
        more: dict[str, Any] = {}
        if self._places:
            more["position_ids"] = (mask_BT.cumsum(1) - 1).clamp_min(0)[:, -ids_BT.shape[1] :]
        output = self._model(
            input_ids=ids_BT, attention_mask=mask_BT, past_key_values=cache, use_cache=True, **more
        )
        return output.logits[:, -1], output.past_key_values
