"""What is trained: the adapter's shape, where it sits and how it begins."""

from typing import Literal

from pydantic import Field

from loralab.training.settings import Section


class AdapterSettings(Section):
    """Rank, scale, targets, start."""

    r: int = Field(default=16, ge=1)
    """Rank. Each adapted [out, in] weight gets r * (out + in) trainable numbers."""
    lora_alpha: float = Field(default=32, gt=0, allow_inf_nan=False)
    """Numerator of the adapter's scale, lora_alpha / r."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability with which an input number of the adapter is zeroed in training."""
    target_modules: str | None = None
    """all-linear, attention, feed-forward, embeddings, module names, with commas between, or one regex. Left
    out: all-linear, and embeddings too where the vocabulary has no more than 4,096 tokens."""
    last_layers: int | None = Field(default=None, ge=1)
    """Adapt the last so many layers only: faster, as nothing below them is computed backward."""
    modules_to_save: str = ""
    """Modules to train whole beside the adapter, names with commas between, as norm or lm_head."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r), which keeps high ranks alive (arXiv:2312.03732)."""
    use_dora: bool = False
    """Train magnitudes and directions apart (DoRA, arXiv:2402.09353): better at low ranks, slower."""
    init: Literal["gaussian", "kaiming", "pissa", "olora", "orthogonal"] = "kaiming"
    """How A and B begin: A kaiming (PEFT's default) or gaussian, and B zero; orthogonal draws both so that
    their product is zero, for an even r; pissa and olora take parts of the base's own weights."""
    from_adapter: str | None = None
    """Go on from this adapter: a folder, a run's name or a hub id. Rank and targets are its own."""
    full: bool = False
    """Train all weights of the base and no adapter, to compare."""
