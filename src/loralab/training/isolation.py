"""How to keep packed examples apart on a given model: tried on the model itself, not looked up.

On a CPU, attention that is told where documents begin does the least work. Else transformers builds a
block-diagonal mask from position ids that restart, on most architectures, if no attention mask is passed.
Where it does not, an explicit mask is tried, then a row for each example.
"""

from typing import Any, get_args

import torch
from torch import Tensor

from loralab.data.batch import Isolation, collate
from loralab.data.types import Example
from loralab.errors import TrainingError
from loralab.models.attention import set_document_attention

__all__ = ["find_isolation"]

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@torch.no_grad()
def find_isolation(model: Any, vocabulary: int, device: torch.device, dtype: torch.dtype) -> Isolation:
    """Return the cheapest way in which no packed example sees another on `model`.

    An example must give the same scores behind either of two neighbours, and, to rounding, the same as alone.
    For "documents" the model's attention is set to that of `models.attention`, and left so.

    Raises:
        TrainingError: not even a row for each example keeps padding out.
    """
    was_training = model.training
    model.eval()
    try:
        narrow, chunked = (_has(model, name) for name in ("sliding_window", "attention_chunk_size"))
        # Too far apart for the trial: our mask has no window, and chunks go by the place in a row.
        unfit = {"documents", "positions", "mask"} if chunked else {"mask"} if narrow else set()
        usable = device.type == "cpu" and "documents" not in unfit
        before = set_document_attention(model) if usable else None
        if before is not None:
            if _isolates(model, "documents", vocabulary, device, dtype):
                return "documents"
            model.set_attn_implementation(before)
        for isolation in get_args(Isolation)[1:]:
            if isolation not in unfit and _isolates(model, isolation, vocabulary, device, dtype):
                chosen: Isolation = isolation
                return chosen
    finally:
        model.train(was_training)
    raise TrainingError(
        f"{type(model).__name__}: examples influence each other even in rows of their own, or its scores are "
        "not finite; it cannot be trained like this. Is lora_alpha very high?"
    )


def _has(model: Any, name: str) -> bool:
    """Return whether the model's config sets a limit on how far back a token sees."""
    config = getattr(model, "config", None)
    configs = [config, *(getattr(config, key, None) for key in getattr(config, "sub_configs", ()))]
    return any(getattr(one, name, None) for one in configs)


def _isolates(
    model: Any, isolation: Isolation, vocabulary: int, device: torch.device, dtype: torch.dtype
) -> bool:
    generator = torch.Generator().manual_seed(0)
    # The probe is the shorter one, so that packing puts it behind its neighbour, and padding behind it.
    tokens = [torch.randint(0, vocabulary, (n,), generator=generator).tolist() for n in (13, 13, 11, 30)]
    probe = tokens[2]
    try:
        first, second = (
            _scores(model, [n, probe, tokens[3]], 1, isolation, device, dtype) for n in tokens[:2]
        )
        alone = _scores(model, [probe], 0, "rows", device, dtype)
    except (TypeError, ValueError, RuntimeError):
        return False
    scale = float(alone.abs().max())
    same = float((first - second).abs().max()) <= 1e-5 * scale
    return same and float((first - alone).abs().max()) <= _TOLERANCE[dtype] * scale


def _scores(
    model: Any,
    tokens: list[list[int]],
    index: int,
    isolation: Isolation,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Return the scores, fp32 [T, V], of the tokens at `index` within a batch of them all."""
    batch = collate([Example(tuple(ids), (0.0,) * len(ids)) for ids in tokens], 0, isolation).to(device)
    logits_BTV = model(**batch.model_inputs(isolation, dtype), use_cache=False).logits.float()
    wanted = torch.tensor(tokens[index], device=device)
    for row, ids_T in enumerate(batch.input_ids_BT):
        for start in range(len(ids_T) - len(wanted) + 1):
            if torch.equal(ids_T[start : start + len(wanted)], wanted):
                found: Tensor = logits_BTV[row, start : start + len(wanted)]
                return found
    raise ValueError("the probe is not in the batch")
