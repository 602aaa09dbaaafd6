"""PEFT's names of LoRA."""

from loralab.adapters.conversion import (
    convert_to_lora,
    save_as_lora,
)
from loralab.adapters.layer_kinds import (
    Conv1d,
    Conv2d,
    Conv3d,
    Embedding,
    Linear,
    Linear4bit,
    Linear8bitLt,
    MultiheadAttention,
    ParamWrapper,
)
from loralab.adapters.preprocess import (
    preprocess_loraga,
)
from loralab.core.config import (
    LoraConfig,
)
from loralab.core.eva import (
    get_eva_state_dict,
    initialize_lora_eva_weights,
)
from loralab.core.init_config import (
    EvaConfig,
    LoftQConfig,
    LoraGAConfig,
)
from loralab.core.layers import (
    LoraLayer,
)
from loralab.core.model import (
    LoraModel,
)
from loralab.core.peft_config import (
    LoraRuntimeConfig,
)
from loralab.peft.others import (
    ArrowConfig,
    BdLoraConfig,
    KasaConfig,
    MontecloraConfig,
    VeloraConfig,
    create_arrow_model,
)

__all__ = [
    "ArrowConfig",
    "BdLoraConfig",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "Embedding",
    "EvaConfig",
    "KasaConfig",
    "Linear",
    "Linear4bit",
    "Linear8bitLt",
    "LoftQConfig",
    "LoraConfig",
    "LoraGAConfig",
    "LoraLayer",
    "LoraModel",
    "LoraRuntimeConfig",
    "MontecloraConfig",
    "MultiheadAttention",
    "ParamWrapper",
    "VeloraConfig",
    "convert_to_lora",
    "create_arrow_model",
    "get_eva_state_dict",
    "initialize_lora_eva_weights",
    "preprocess_loraga",
    "save_as_lora",
]
