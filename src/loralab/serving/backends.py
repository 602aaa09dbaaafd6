"""Which backend runs a model: continuous batching where it writes what the model does, else the plain one."""

import logging
from typing import TYPE_CHECKING, Any

import torch

from loralab.models.load import BaseModel
from loralab.serving.continuous import Continuous
from loralab.serving.desk import Backend, Desk
from loralab.serving.placement import Placement
from loralab.serving.places import Places
from loralab.serving.plain import Plain
from loralab.serving.policy import Fairness
from loralab.serving.requests import Answer, Request
from loralab.serving.sampling import Sampling

if TYPE_CHECKING:
    from loralab.serving.engine import EngineSettings

__all__ = ["choose_backend"]

log = logging.getLogger(__name__)
_PROBED = 3
"""Tokens that the two must agree on."""


def choose_backend(base: BaseModel, desk: Desk, settings: "EngineSettings") -> Backend:
    """Return the backend that the settings name; "auto" tries continuous batching on a short prompt first.

    Raises:
        ValueError: continuous batching was asked for, and the model's attention is none that it takes.
    """
    most = settings.max_running
    if settings.backend == "plain":
        return Plain(base.model, desk, base.tokenizer.pad_token_id, most)
    if settings.backend == "auto":
        reason = _unfit(base)
        if reason:
            log.warning("continuous batching does not take this model (%s); batches begin together.", reason)
            return Plain(base.model, desk, base.tokenizer.pad_token_id, most)
    return Continuous(base.model, desk, settings.batch_tokens, settings.cache_tokens, most)


def _unfit(base: BaseModel) -> str:
    """Return why continuous batching is not for a model, "" if it writes what the model writes by itself."""
    prompt = list(range(4, 12))
    desk = Desk(Placement(Places(base.model), 1), Fairness(1))
    answer = Answer(
        Request(prompt, sampling=Sampling(_PROBED, ignore_eos=True)),
        None,
        base.tokenizer,
        _PROBED,
        frozenset(),
    )
    try:
        backend = Continuous(base.model, desk, 64, 256, 4)
        desk.add(answer)
        backend.submit(answer)
        backend.start()
        try:
            pieces = list(answer)
        finally:
            backend.stop()
    except (ValueError, RuntimeError, AttributeError, NotImplementedError, TypeError, KeyError) as error:
        return str(error).partition("\n")[0]
    if pieces[-1].finish == "error":
        return pieces[-1].error.partition("\n")[0]
    return "" if _agrees(base.model, prompt, answer.tokens) else "its answers differ there"


@torch.inference_mode()
def _agrees(model: Any, prompt: list[int], written: list[int]) -> bool:
    """Return whether each token is the likeliest after those before it, or nearly so."""
    ids = torch.tensor([[*prompt, *written]], device=model.device)
    logits_TV = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    chosen = logits_TV.gather(1, ids[0, len(prompt) :, None])[:, 0]
    return bool((logits_TV.amax(1) - chosen <= 0.05 * logits_TV.std(1)).all())
