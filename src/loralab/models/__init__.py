"""Base models and tokenizers, from a folder, the hub, or the one that comes with loralab."""

from loralab.models.hardware import choose_device, choose_dtype
from loralab.models.load import BaseModel, load_base, load_tokenizer

__all__ = ["BaseModel", "choose_device", "choose_dtype", "load_base", "load_tokenizer"]
