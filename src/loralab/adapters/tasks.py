"""What an adapted model is for: one class for each task, and the function that picks it."""

import dataclasses

from torch import nn

from loralab.adapters.arguments import check_model, lora_config
from loralab.adapters.peft_model import PeftModel, class_for
from loralab.core.config import LoraConfig
from loralab.errors import ConfigError

__all__ = [
    "PeftModelForCausalLM",
    "PeftModelForFeatureExtraction",
    "PeftModelForQuestionAnswering",
    "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification",
    "PeftModelForTokenClassification",
    "get_peft_model",
]


class PeftModelForCausalLM(PeftModel):
    """A model that continues text."""

    task_type = "CAUSAL_LM"


class PeftModelForSeq2SeqLM(PeftModel):
    """A model that turns one text (or sound) into another."""

    task_type = "SEQ_2_SEQ_LM"


class PeftModelForSequenceClassification(PeftModel):
    """A model that classifies texts; its classification head is trained in full."""

    task_type = "SEQ_CLS"


class PeftModelForTokenClassification(PeftModel):
    """A model that classifies tokens; its classification head is trained in full."""

    task_type = "TOKEN_CLS"


class PeftModelForQuestionAnswering(PeftModel):
    """A model that marks answers in a text; its head is trained in full."""

    task_type = "QUESTION_ANS"


class PeftModelForFeatureExtraction(PeftModel):
    """A model whose hidden states are what is wanted."""

    task_type = "FEATURE_EXTRACTION"


def get_peft_model(
    model: nn.Module,
    peft_config: LoraConfig,
    adapter_name: str = "default",
    mixed: bool = False,
    autocast_adapter_dtype: bool = True,
    revision: str | None = None,
    low_cpu_mem_usage: bool = False,
) -> PeftModel:
    """Return `model` with a new adapter attached to it. The model itself is changed in place.

    `revision` is that of the base model, and goes into the adapter's config. Every model takes adapters of
    all kinds side by side, and runs several at once, so `mixed` asks for nothing more.

    >>> from torch import nn
    >>> from loralab import LoraConfig, get_peft_model
    >>> base = nn.Sequential(nn.Linear(100, 500))
    >>> model = get_peft_model(base, LoraConfig(r=10, target_modules="all-linear"))
    >>> model.get_nb_trainable_parameters()
    (6000, 56500)

    Raises:
        TargetError: `target_modules` matches nothing, or an entry of a list matches nothing.
        ConfigError: the model has adapters already, use `add_adapter`; or the config is none of LoRA.
    """
    check_model(model, "get_peft_model")
    if isinstance(model, PeftModel):
        raise ConfigError("the model has adapters already; use model.add_adapter(name, config) for one more.")
    peft_config = lora_config(peft_config, "get_peft_model")
    if revision is not None:
        peft_config = dataclasses.replace(peft_config, revision=revision)
    return class_for(peft_config)(model, peft_config, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)
