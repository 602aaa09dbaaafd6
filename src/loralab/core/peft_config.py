"""`PeftConfig`: what every adapter's config has, and how it is read and written, in PEFT's words."""

import enum
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from loralab.errors import AdapterError
from loralab.files import write_text
from loralab.hub import HubOptions, find_folder, upload_folder

__all__ = [
    "CONFIG_FILE",
    "FORMAT_VERSION",
    "LoraRuntimeConfig",
    "PeftConfig",
    "PeftType",
    "TaskType",
    "read_json",
]

FORMAT_VERSION = "0.21.2"
"""The PEFT release whose file format and field names loralab follows."""

CONFIG_FILE = "adapter_config.json"


class TaskType(str, enum.Enum):
    """What the adapted model is for, in PEFT's words."""

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


class PeftType(str, enum.Enum):
    """The kinds of adapters, in PEFT's words, so that they can be compared with; LORA is implemented."""

    LORA = "LORA"
    PROMPT_TUNING = "PROMPT_TUNING"
    MULTITASK_PROMPT_TUNING = "MULTITASK_PROMPT_TUNING"
    P_TUNING = "P_TUNING"
    PREFIX_TUNING = "PREFIX_TUNING"
    ADALORA = "ADALORA"
    ADAMSS = "ADAMSS"
    BOFT = "BOFT"
    ADAPTION_PROMPT = "ADAPTION_PROMPT"
    IA3 = "IA3"
    BEFT = "BEFT"
    LILY = "LILY"
    LOHA = "LOHA"
    LOKR = "LOKR"
    OFT = "OFT"
    POLY = "POLY"
    LN_TUNING = "LN_TUNING"
    VERA = "VERA"
    FROD = "FROD"
    PVERA = "PVERA"
    FOURIERFT = "FOURIERFT"
    GLORA = "GLORA"
    XLORA = "XLORA"
    HRA = "HRA"
    VBLORA = "VBLORA"
    UNILORA = "UNILORA"
    CPT = "CPT"
    MISS = "MISS"
    RANDLORA = "RANDLORA"
    ROAD = "ROAD"
    TRAINABLE_TOKENS = "TRAINABLE_TOKENS"
    HIRA = "HIRA"
    SHIRA = "SHIRA"
    C3A = "C3A"
    WAVEFT = "WAVEFT"
    OSF = "OSF"
    DELORA = "DELORA"
    GRALORA = "GRALORA"
    CARTRIDGE = "CARTRIDGE"
    TINYLORA = "TINYLORA"
    PSOFT = "PSOFT"
    PEANUT = "PEANUT"
    SHADOW = "SHADOW"
    SUPERTUNING = "SUPERTUNING"
    DEFT = "DEFT"


@dataclass
class LoraRuntimeConfig:
    """Settings of an adapter that are not written to files."""

    ephemeral_gpu_offload: bool = False
    """PEFT moves CPU weights to a GPU to initialise DoRA; here that is refused, for it would do nothing."""


@dataclass
class PeftConfig:
    """The settings that do not depend on the kind of adapter. `LoraConfig` adds those of LoRA."""

    KIND: ClassVar[PeftType | None] = None
    """The kind of adapter that a subclass describes."""

    task_type: TaskType | str | None = None
    """What the model is for ("CAUSAL_LM", "SEQ_CLS", ...); stored for the tools that read the file."""
    peft_type: PeftType | str | None = None
    auto_mapping: dict[str, Any] | None = None
    """The class of the base model and the module it is in, where no `task_type` tells a reader."""
    peft_version: str | None = FORMAT_VERSION
    base_model_name_or_path: str | None = None
    """The base that the adapter was trained on, as the user named it."""
    revision: str | None = None
    inference_mode: bool = False
    """True freezes the adapter as it is attached."""

    @property
    def is_prompt_learning(self) -> bool:
        """False: no adapter of loralab trains a prompt."""
        return False

    @property
    def is_adaption_prompt(self) -> bool:
        """False: no adapter of loralab trains a prompt."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        raise NotImplementedError

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload ``adapter_config.json`` to the hub, and return the commit's address.

        Raises:
            AdapterError: the hub cannot be reached or refuses.
        """
        options = {
            **{"commit_message": commit_message or "Upload config", "commit_description": commit_description},
            **{"private": private, "token": token, "revision": revision, "create_pr": create_pr},
        }
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload_folder(Path(folder), repo_id, options)

    def save_pretrained(
        self, save_directory: str | Path, *, auto_mapping_dict: Mapping[str, Any] | None = None
    ) -> None:
        """Write ``adapter_config.json`` into a folder, with the settings as they are now.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        values = self.to_dict()
        if auto_mapping_dict is not None:
            values["auto_mapping"] = dict(auto_mapping_dict)
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        write_text(Path(save_directory) / CONFIG_FILE, text)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, subfolder: str | None = None, **kwargs: Any
    ) -> "PeftConfig":
        """Return the config in a folder, or in a repository on the hub.

        Keywords are those of `HubOptions`.

        Raises:
            AdapterError: there is no config there, or it cannot be read.
            ConfigError: a keyword is unknown.
        """
        keywords = kwargs if subfolder is None else {**kwargs, "subfolder": subfolder}
        options = HubOptions.from_keywords(keywords, f"{cls.__name__}.from_pretrained")
        folder = find_folder(pretrained_model_name_or_path, [CONFIG_FILE], options)
        return cls._from_values(read_json(folder), str(folder / CONFIG_FILE))

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> "PeftConfig":
        """Return the config that these settings describe, of the class that `peft_type` names."""
        return cls._from_values(kwargs, "adapter config")

    @classmethod
    def from_json_file(cls, path_json_file: str | Path) -> dict[str, Any]:
        """Return the JSON object in a file.

        Raises:
            AdapterError: it cannot be read, or is no JSON object.
        """
        return _read(Path(path_json_file))

    @classmethod
    def _from_values(cls, values: Mapping[str, Any], where: str) -> "PeftConfig":
        """Return the config of the subclass that `peft_type` in the JSON object `values` names.

        Raises:
            AdapterError: there is none.
        """
        kinds: dict[Any, type[PeftConfig]] = {kind.KIND: kind for kind in PeftConfig.__subclasses__()}
        name = values.get("peft_type")
        if name is None:
            raise AdapterError(f"{where}: expected a JSON object with 'peft_type': 'LORA'.")
        if name not in kinds:
            raise AdapterError(f"{where}: peft_type is {name!r}; loralab reads 'LORA' adapters only.")
        return kinds[name]._from_values(values, where)


def read_json(folder: Path) -> dict[str, Any]:
    """Return the JSON object in a folder's ``adapter_config.json``.

    Raises:
        AdapterError: the file is missing, or is no JSON object.
    """
    if not folder.is_dir():
        raise AdapterError(f"{folder}: no such folder; expected an adapter folder with {CONFIG_FILE} in it.")
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise AdapterError(f"{folder}: no {CONFIG_FILE} there; is it an adapter folder?")
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        values: Any = json.loads(path.read_text(encoding="utf8"))
    except json.JSONDecodeError as error:
        raise AdapterError(f"{path}:{error.lineno}: not valid JSON ({error.msg}).") from None
    except UnicodeDecodeError:
        raise AdapterError(f"{path}: not UTF-8 text.") from None
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read ({error.strerror}).") from None
    if not isinstance(values, dict):
        raise AdapterError(f"{path}: expected a JSON object with 'peft_type': 'LORA'.")
    return values
