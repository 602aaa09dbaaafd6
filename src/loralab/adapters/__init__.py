"""Adapters on disk and on models: PEFT's files both ways, and `PeftModel`."""

from loralab.adapters.peft_format import read_adapter, write_adapter
from loralab.adapters.peft_model import PeftModel
from loralab.adapters.tasks import get_peft_model

__all__ = ["PeftModel", "get_peft_model", "read_adapter", "write_adapter"]
