"""A stored adapter and the base that it names, in one call: PEFT's ``AutoPeftModel`` classes."""

import importlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from loralab.adapters.peft_format import PICKLE_FILE, WEIGHTS_FILE, read_config
from loralab.adapters.peft_model import PeftModel
from loralab.adapters.tasks import (
    PeftModelForCausalLM,
    PeftModelForFeatureExtraction,
    PeftModelForQuestionAnswering,
    PeftModelForSeq2SeqLM,
    PeftModelForSequenceClassification,
    PeftModelForTokenClassification,
)
from loralab.core.config import LoraConfig
from loralab.core.peft_config import CONFIG_FILE
from loralab.errors import AdapterError, ConfigError
from loralab.hub import HubOptions, find_folder

__all__ = [
    "MODEL_TYPE_TO_PEFT_MODEL_MAPPING",
    "AutoPeftModel",
    "AutoPeftModelForCausalLM",
    "AutoPeftModelForFeatureExtraction",
    "AutoPeftModelForQuestionAnswering",
    "AutoPeftModelForSeq2SeqLM",
    "AutoPeftModelForSequenceClassification",
    "AutoPeftModelForTokenClassification",
]

MODEL_TYPE_TO_PEFT_MODEL_MAPPING: dict[str, type[PeftModel]] = {
    str(kind.task_type): kind
    for kind in (
        PeftModelForCausalLM,
        PeftModelForFeatureExtraction,
        PeftModelForQuestionAnswering,
        PeftModelForSeq2SeqLM,
        PeftModelForSequenceClassification,
        PeftModelForTokenClassification,
    )
}
_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "added_tokens.json")
_TRUSTED = ("diffusers", "transformers")
_FOR_ADAPTER = (
    "subfolder",
    "allow_pickle",
    "ignore_mismatched_sizes",
    "autocast_adapter_dtype",
    "key_mapping",
)
_FOR_BOTH = ("cache_dir", "token", "local_files_only", "force_download")


class AutoPeftModel:
    """Makes the base from the class that the adapter's config names in `auto_mapping`."""

    _base_class: str | None = None
    """The name of the class of transformers that makes the base."""
    _kind: type[PeftModel] = PeftModel

    def __init__(self) -> None:
        raise ConfigError(f"{type(self).__name__} is used as {type(self).__name__}.from_pretrained(adapter).")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: LoraConfig | None = None,
        revision: str | None = None,
        import_allowlist: Collection[str] | None = None,
        **kwargs: Any,
    ) -> PeftModel:
        """Return the base model that an adapter names, with the adapter attached.

        Keywords that are not for the adapter go to the base's own `from_pretrained`. A base with fewer
        embeddings than the tokenizer beside the adapter has tokens is resized first. A class is imported
        from transformers, diffusers and what is in `import_allowlist`.

        Raises:
            AdapterError: there is no adapter, it names no base, or it does not fit.
            ConfigError: it is for another task, or its base's class may not be imported.
        """
        hub = {name: kwargs[name] for name in _FOR_BOTH if name in kwargs}
        own = {name: kwargs.pop(name) for name in _FOR_ADAPTER if name in kwargs} | hub
        where = {name: own[name] for name in ("subfolder", *hub) if name in own} | {"revision": revision}
        options = HubOptions.from_keywords(where, f"{cls.__name__}.from_pretrained")
        patterns = [CONFIG_FILE, WEIGHTS_FILE, PICKLE_FILE, *_TOKENIZER]
        folder = find_folder(pretrained_model_name_or_path, patterns, options)
        found = config or read_config(folder)
        base_name = found.base_model_name_or_path
        if not base_name:
            raise AdapterError(f"{folder}: names no base model; load it and use PeftModel.from_pretrained.")
        builder = cls._builder(found, import_allowlist or ())
        base = builder.from_pretrained(base_name, revision=found.revision, **kwargs)
        tokens = _tokens(folder)
        if hasattr(base, "get_input_embeddings") and tokens > base.get_input_embeddings().weight.shape[0]:
            base.resize_token_embeddings(tokens)
        own.pop("subfolder", None)
        return cls._kind.from_pretrained(base, folder, adapter_name, is_trainable, config, **own)

    @classmethod
    def _builder(cls, config: LoraConfig, allowed: Collection[str]) -> Any:
        """Return the class that makes the base."""
        if cls._base_class is not None:
            if config.task_type not in (None, cls._kind.task_type):
                kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING[str(config.task_type)]
                raise ConfigError(f"the adapter is for {config.task_type}; use Auto{kind.__name__}.")
            return getattr(importlib.import_module("transformers"), cls._base_class)
        if config.task_type is not None:
            kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING[str(config.task_type)]
            raise ConfigError(f"the adapter is for {config.task_type}; use Auto{kind.__name__}.")
        mapping = config.auto_mapping or {}
        library, name = mapping.get("parent_library"), mapping.get("base_model_class")
        if not library or not name:
            raise ConfigError("the adapter does not say its base's class; use the Auto class of its task.")
        trusted = (*_TRUSTED, *allowed)
        if not any(library == known or library.startswith(f"{known}.") for known in trusted):
            raise ConfigError(
                f"the adapter's config wants {library!r} imported, which can run any program. If you trust "
                f"it, pass import_allowlist=[{library!r}]."
            )
        return getattr(importlib.import_module(library), name)


def _tokens(folder: Path) -> int:
    """Return how many tokens the tokenizer beside the adapter knows; 0 if there is none."""
    if not (folder / "tokenizer_config.json").is_file():
        return 0
    return len(importlib.import_module("transformers").AutoTokenizer.from_pretrained(folder))


class AutoPeftModelForCausalLM(AutoPeftModel):
    """Makes the base with `AutoModelForCausalLM`."""

    _base_class, _kind = "AutoModelForCausalLM", PeftModelForCausalLM


class AutoPeftModelForSeq2SeqLM(AutoPeftModel):
    """Makes the base with `AutoModelForSeq2SeqLM`."""

    _base_class, _kind = "AutoModelForSeq2SeqLM", PeftModelForSeq2SeqLM


class AutoPeftModelForSequenceClassification(AutoPeftModel):
    """Makes the base with `AutoModelForSequenceClassification`."""

    _base_class, _kind = "AutoModelForSequenceClassification", PeftModelForSequenceClassification


class AutoPeftModelForTokenClassification(AutoPeftModel):
    """Makes the base with `AutoModelForTokenClassification`."""

    _base_class, _kind = "AutoModelForTokenClassification", PeftModelForTokenClassification


class AutoPeftModelForQuestionAnswering(AutoPeftModel):
    """Makes the base with `AutoModelForQuestionAnswering`."""

    _base_class, _kind = "AutoModelForQuestionAnswering", PeftModelForQuestionAnswering


class AutoPeftModelForFeatureExtraction(AutoPeftModel):
    """Makes the base with `AutoModel`."""

    _base_class, _kind = "AutoModel", PeftModelForFeatureExtraction
