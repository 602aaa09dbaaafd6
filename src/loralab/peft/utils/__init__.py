"""PEFT's names of helpers."""

from loralab.adapters.functional import (
    PeftWarning,
)
from loralab.adapters.helpers import (
    cast_mixed_precision_params,
    infer_device,
    shift_tokens_right,
)
from loralab.adapters.inspecting import (
    get_submodules as _get_submodules,
)
from loralab.adapters.kbit import (
    prepare_model_for_kbit_training,
)
from loralab.adapters.loftq import (
    replace_lora_weights_loftq,
)
from loralab.adapters.peft_format import (
    PICKLE_FILE as WEIGHTS_NAME,
)
from loralab.adapters.peft_format import (
    WEIGHTS_FILE as SAFETENSORS_WEIGHTS_NAME,
)
from loralab.adapters.peft_tables import (
    ALLOWED_COMPUTE_DTYPES,
    EMBEDDING_LAYER_NAMES,
    INCLUDE_LINEAR_LAYERS_SHORTHAND,
    TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING,
    UPCAST_DTYPES,
    transpose,
)
from loralab.adapters.state_dict import (
    get_base_model_state_dict,
    get_peft_model_state_dict,
    load_peft_weights,
    set_base_model_state_dict,
    set_peft_model_state_dict,
)
from loralab.core.peft_config import (
    CONFIG_FILE as CONFIG_NAME,
)
from loralab.core.peft_config import (
    PeftType,
    TaskType,
)
from loralab.core.saved import (
    AuxiliaryTrainingWrapper,
    ModulesToSaveWrapper,
)
from loralab.core.targets import (
    DEFAULT_TARGETS as TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
)
from loralab.core.tokens import (
    TrainableTokensWrapper,
)
from loralab.errors import (
    LoralabError as PeftError,
)
from loralab.errors import (
    TargetError as NoMatchingPeftModuleError,
)
from loralab.peft.others import (
    bloom_model_postprocess_past_key_value,
)

__all__ = [
    "ALLOWED_COMPUTE_DTYPES",
    "CONFIG_NAME",
    "EMBEDDING_LAYER_NAMES",
    "INCLUDE_LINEAR_LAYERS_SHORTHAND",
    "SAFETENSORS_WEIGHTS_NAME",
    "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING",
    "TRANSFORMERS_MODELS_TO_PREFIX_TUNING_POSTPROCESS_MAPPING",
    "UPCAST_DTYPES",
    "WEIGHTS_NAME",
    "AuxiliaryTrainingWrapper",
    "ModulesToSaveWrapper",
    "NoMatchingPeftModuleError",
    "PeftError",
    "PeftType",
    "PeftWarning",
    "TaskType",
    "TrainableTokensWrapper",
    "_get_submodules",
    "bloom_model_postprocess_past_key_value",
    "cast_mixed_precision_params",
    "get_base_model_state_dict",
    "get_peft_model_state_dict",
    "infer_device",
    "load_peft_weights",
    "prepare_model_for_kbit_training",
    "replace_lora_weights_loftq",
    "set_base_model_state_dict",
    "set_peft_model_state_dict",
    "shift_tokens_right",
    "transpose",
]
