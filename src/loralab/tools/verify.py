"""Whether an exported model computes what the live adapter does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from loralab.adapters import PeftModel
from loralab.core.adapter import Adapter
from loralab.errors import AdapterError, ModelError
from loralab.models.quiet import quiet
from loralab.tools.checkpoint import Checkpoint

__all__ = ["Verified", "verify"]

_ROWS, _TOKENS = 2, 24
_EXACT, _ROUNDED = 1e-4, 0.05
"""The largest difference allowed, as a share of the largest logit: in float32, and in less."""


@dataclass(frozen=True)
class Verified:
    """The largest differences between logits, over fixed random tokens."""

    difference: float
    """Exported model against base and live adapter."""
    effect: float
    """Live adapter against base: what there was to keep."""
    scale: float
    """The largest logit."""


def verify(base: Path, adapter: Adapter, exported: Path) -> Verified:
    """Return how far the model in `exported` is from the base with the live adapter, computed in float32.

    Raises:
        AdapterError: farther than rounding explains, or so far that half of the adapter's effect is lost.
        ModelError: a model cannot be loaded.
    """
    live = PeftModel(_load(base), adapter.config, adapter=adapter).eval()
    ids = _tokens(live.config)
    wanted = _logits(live, ids)
    with live.disable_adapter():
        effect = float((wanted - _logits(live, ids)).abs().max())
    del live
    difference = float((_logits(_load(exported), ids) - wanted).abs().max())
    scale = float(wanted.abs().max())
    single = all(s.dtype in (torch.float32, torch.float64) for s in Checkpoint(exported).tensors.values())
    allowed = scale * (_EXACT if single else _ROUNDED)
    if not difference <= allowed or (effect > allowed and difference > effect / 2):
        raise AdapterError(
            f"the exported model is not the live adapter: logits differ by {difference:.3g} (allowed are "
            f"{allowed:.3g}; the adapter itself moves them by {effect:.3g}). Nothing was written; try dtype "
            "float32."
        )
    return Verified(difference, effect, scale)


def _load(folder: Path) -> Any:
    config = Checkpoint(folder).config
    names = config.get("architectures") or ["AutoModelForCausalLM"]
    kind = getattr(transformers, str(names[0]), None)
    if kind is None:
        raise ModelError(
            f"{folder}: transformers has no class {names[0]!r}, so the result cannot be checked."
        )
    with quiet():
        return kind.from_pretrained(folder, dtype=torch.float32).eval()


def _tokens(config: Any) -> Tensor:
    size = getattr(config.get_text_config(), "vocab_size", None) or 2
    longest = getattr(config, "max_position_embeddings", None) or _TOKENS
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, size, (_ROWS, min(_TOKENS, longest)), generator=generator)


@torch.no_grad()
def _logits(model: Any, ids: Tensor) -> Tensor:
    output = model(input_ids=ids)
    logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits.float()
