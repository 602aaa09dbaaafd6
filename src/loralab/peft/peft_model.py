"""PEFT's names of adapted models."""

from loralab.adapters.functional import (
    get_layer_status,
    get_model_status,
)
from loralab.adapters.peft_model import (
    PeftModel,
)
from loralab.adapters.tasks import (
    PeftModelForCausalLM,
    PeftModelForFeatureExtraction,
    PeftModelForQuestionAnswering,
    PeftModelForSeq2SeqLM,
    PeftModelForSequenceClassification,
    PeftModelForTokenClassification,
)
from loralab.core.status import (
    LayerStatus as TunerLayerStatus,
)
from loralab.core.status import (
    ModelStatus as TunerModelStatus,
)

__all__ = [
    "PeftModel",
    "PeftModelForCausalLM",
    "PeftModelForFeatureExtraction",
    "PeftModelForQuestionAnswering",
    "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification",
    "PeftModelForTokenClassification",
    "TunerLayerStatus",
    "TunerModelStatus",
    "get_layer_status",
    "get_model_status",
]
