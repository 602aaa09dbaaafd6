"""How strongly the adapter is pushed: learning rate, scale, rank, noise."""

import math
from collections.abc import Iterator

from loralab.data.findings import Code, Finding
from loralab.training.checks import Given

HIGH = Code(
    "S211",
    "warning",
    "the learning rate is above 1e-2, at which adapters usually fall apart",
    "lower --learning-rate; 1e-4 to 1e-3 is usual for LoRA",
)
LOW = Code(
    "S212",
    "warning",
    "the learning rate is below 1e-5: the adapter will hardly move",
    "raise --learning-rate; LoRA wants about ten times what full fine-tuning wants",
)
HIGH_FULL = Code(
    "S213",
    "warning",
    "full fine-tuning of a wide model at over 1e-4 usually forgets what the base knew",
    "lower --learning-rate; 1e-5 to 5e-5 is usual for full fine-tuning",
)
WIDE_RANK = Code(
    "S214",
    "warning",
    "the rank is larger than a side of a weight: more than that side it cannot have",
    "lower --r, or train such weights whole with --modules-to-save",
)
LOUD = Code(
    "S215",
    "warning",
    "the adapter's scale is above 16, which is as a learning rate many times as high",
    "lower --lora-alpha; with use_rslora, 1 to 4 times sqrt(r) is usual, without it 1 to 2 times r",
)
NOISY = Code(
    "S216",
    "warning",
    "neftune_alpha is above 15, more than its authors tried (arXiv:2310.05914)",
    "lower --neftune-alpha to 5, 10 or 15",
)
CODES = (HIGH, LOW, HIGH_FULL, WIDE_RANK, LOUD, NOISY)

_HIGHEST, _LOWEST = 1e-2, 1e-5
_HIGHEST_FULL, _WIDE = 1e-4, 1024
_LOUDEST = 16.0
_NOISIEST = 15.0
_BY_ADAM = ("adamw", "adamw-8bit", "adafactor", "schedule-free")
"""The optimizers whose steps are about as large as the learning rate, whatever the gradient."""


def check(given: Given) -> Iterator[Finding]:
    """Compare with what is usual."""
    config = given.config
    if config.optimizer in _BY_ADAM:
        yield from _rates(given)
    if config.neftune_alpha > _NOISIEST:
        yield NOISY.found(f"neftune_alpha is {config.neftune_alpha:g}")
    if config.full:
        return
    if given.narrowest and config.r > given.narrowest[1]:
        path, side = given.narrowest
        yield WIDE_RANK.found(f"r is {config.r}, and {path} has a side of {side}")
    scale = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
    if scale > _LOUDEST:
        how = "lora_alpha / sqrt(r)" if config.use_rslora else "lora_alpha / r"
        yield LOUD.found(f"the adapter's scale, {how}, is {scale:g}")


def _rates(given: Given) -> Iterator[Finding]:
    rate = given.config.peak_learning_rate
    if given.config.full:
        if rate > _HIGHEST_FULL and (given.width or 0) >= _WIDE:
            yield HIGH_FULL.found(f"learning_rate is {rate:g} for all weights of a base {given.width:,} wide")
    elif rate > _HIGHEST:
        yield HIGH.found(f"learning_rate is {rate:g}")
    elif rate < _LOWEST:
        yield LOW.found(f"learning_rate is {rate:g}")
