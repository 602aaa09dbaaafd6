"""`PeftModel`: an adapted model under the names that PEFT's users know."""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from loralab.adapters import functional
from loralab.adapters.adapted_model import AdaptedModel
from loralab.adapters.arguments import check_save_keywords, lora_config, without_device_map
from loralab.adapters.kbit import let_gradients_in
from loralab.adapters.loading import How, finish_loading, is_training, keep_dtypes, read_stored
from loralab.adapters.moe_conversion import for_stacked_experts
from loralab.adapters.peft_format import own_keys, write_adapter
from loralab.adapters.saving import for_original_base, write_card
from loralab.adapters.state_dict import LoadResult, get_peft_model_state_dict
from loralab.adapters.trainer import teach_trainer
from loralab.core.adapter import Adapter
from loralab.core.config import LoraConfig
from loralab.core.model import LoraModel
from loralab.errors import ConfigError
from loralab.hub import upload_folder

__all__ = ["PeftModel"]

_SAVE_KEYWORDS = ("selected_adapters", "save_embedding_layers", "path_initial_model_for_weight_conversion")


class PeftModel(AdaptedModel):
    """A base model with named adapters. What it does not define itself, the base model answers.

    Subclasses say what the model is for; `get_peft_model` picks one by the config's `task_type`.
    """

    task_type: str | None = None

    def __init__(
        self,
        model: nn.Module,
        peft_config: LoraConfig,
        adapter_name: str = "default",
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        *,
        adapter: Adapter | None = None,
    ) -> None:
        """`adapter` gives the first adapter's tensors; without it they are initialised.

        Without `autocast_adapter_dtype` new tensors have the base's dtype, also where that is of 16 bits.
        Nothing is initialised that is set afterwards, so `low_cpu_mem_usage` changes nothing.
        """
        functional.check_bare(model)
        super().__init__(LoraModel(model, with_base(peft_config, model), adapter_name, adapter))
        if not autocast_adapter_dtype:
            keep_dtypes(self.base_model, adapter_name, adapter)
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            let_gradients_in(model)
        if hasattr(model, "save_pretrained"):
            teach_trainer(PeftModel)

    def add_adapter(
        self,
        adapter_name: str,
        peft_config: LoraConfig,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """Attach one more adapter, freshly initialised. It is not made active."""
        self.base_model.attach(adapter_name, with_base(peft_config, self.get_base_model()))
        if not autocast_adapter_dtype:
            keep_dtypes(self.base_model, adapter_name)
        self.base_model.set_adapter(self.active_adapters)

    # files

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        selected_adapters: Sequence[str] | None = None,
        save_embedding_layers: bool | Literal["auto"] = "auto",
        is_main_process: bool = True,
        path_initial_model_for_weight_conversion: str | Path | None = None,
        *,
        state_dict: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write adapters as PEFT does: "default" into the folder itself, others into folders of their names.

        Values come from `state_dict`, the state of the whole model, where one is given. With
        `path_initial_model_for_weight_conversion`, where the adapter was saved before training, an
        adapter of a changed base (PiSSA and the like) is written for the base as it was. An adapter is one
        file, written whole by the main process, so `max_shard_size` and `save_function` change nothing.

        Raises:
            ConfigError: `safe_serialization=False`, for loralab writes no pickles; or another keyword
                that would do nothing.
            AdapterError: there is no such adapter.
        """
        check_save_keywords(kwargs, _SAVE_KEYWORDS)
        if not safe_serialization:
            raise ConfigError(
                "safe_serialization=False would write a pickle; loralab writes safetensors only."
            )
        chosen = [selected_adapters] if isinstance(selected_adapters, str) else selected_adapters
        names = list(self.peft_config if chosen is None else chosen)
        start = path_initial_model_for_weight_conversion
        for name in names:
            tensors = get_peft_model_state_dict(
                self, state_dict, name, save_embedding_layers=save_embedding_layers
            )
            stored = Adapter(self.peft_config[name], own_keys(tensors))
            if start is not None:
                stored = for_original_base(stored, start)
            if is_main_process:
                folder = Path(save_directory) if name == "default" else Path(save_directory) / name
                write_adapter(stored, folder)
        if is_main_process:
            self.create_or_update_model_card(save_directory)

    def create_or_update_model_card(self, output_dir: str | Path) -> None:
        """Write a README.md with the adapter's base and kind, unless there is one."""
        name = "default" if "default" in self.peft_config else next(iter(self.peft_config))
        write_card(Path(output_dir), self.peft_config[name], self.task_type)

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
        """Upload what `save_pretrained` writes to the hub, and return the commit's address.

        Raises:
            AdapterError: the hub cannot be reached or refuses.
        """
        options = {
            **{
                "commit_message": commit_message or "Upload adapter",
                "commit_description": commit_description,
            },
            **{"private": private, "token": token, "revision": revision, "create_pr": create_pr},
        }
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload_folder(Path(folder), repo_id, options)

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: LoraConfig | None = None,
        autocast_adapter_dtype: bool = True,
        ephemeral_gpu_offload: bool = False,
        low_cpu_mem_usage: bool = False,
        key_mapping: Mapping[str, str] | None = None,
        *,
        torch_device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> "PeftModel":
        """Return `model` with a stored adapter attached, in evaluation mode unless it `is_trainable`.

        `model_id` is a folder or a hub id; `config` takes the place of the config there. Further keywords
        are `ignore_mismatched_sizes`, `allow_pickle` and those of `HubOptions`. Every tensor goes where its
        base layer is, whatever `torch_device` or a `device_map` of one device says, and
        `low_cpu_mem_usage` is how it is done anyway.

        Raises:
            AdapterError: the files cannot be read, or do not fit the model, which is then unchanged.
            ConfigError: the model has adapters already, or a keyword would do nothing.
        """
        if isinstance(model, PeftModel):
            raise ConfigError("the model has adapters already; use model.load_adapter(folder, name).")
        functional.check_bare(model)
        how = How.from_keywords(
            {
                **without_device_map(kwargs, model, "from_pretrained"),
                "ephemeral_gpu_offload": ephemeral_gpu_offload,
            },
            "from_pretrained",
            is_trainable=is_trainable,
            config=None if config is None else lora_config(config, "from_pretrained"),
            autocast=autocast_adapter_dtype,
            key_mapping=key_mapping,
        )
        stored = read_stored(model, model_id, how)
        kind = class_for(stored.adapter.config) if cls is PeftModel else cls
        if how.ignore_mismatched_sizes:
            adapted = kind(model, stored.adapter.config, adapter_name)
        else:
            adapted = kind(model, stored.adapter.config, adapter_name, adapter=stored.adapter)
        finish_loading(adapted.base_model, adapter_name, stored, how)
        return adapted if is_trainable else adapted.eval()

    def load_adapter(
        self,
        model_id: str | Path,
        adapter_name: str,
        is_trainable: bool = False,
        torch_device: str | torch.device | None = None,
        autocast_adapter_dtype: bool = True,
        ephemeral_gpu_offload: bool = False,
        low_cpu_mem_usage: bool = False,
        key_mapping: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> LoadResult:
        """Attach a stored adapter beside the others and return what did not match; it is not made active.

        If there is one of that name already, it takes the values from the file and stays the same object
        for an optimizer. Parameters are those of `from_pretrained`.

        Raises:
            AdapterError: the files cannot be read, or do not fit the model, which is then unchanged.
            ConfigError: a keyword would do nothing.
        """
        how = How.from_keywords(
            {
                **without_device_map(kwargs, self.get_base_model(), "load_adapter"),
                "ephemeral_gpu_offload": ephemeral_gpu_offload,
            },
            "load_adapter",
            is_trainable=is_trainable,
            autocast=autocast_adapter_dtype,
            key_mapping=key_mapping,
        )
        stored = read_stored(self.get_base_model(), model_id, how)
        if not how.ignore_mismatched_sizes:
            self.base_model.load(adapter_name, stored.adapter)
        elif adapter_name not in self.peft_config:
            self.base_model.attach(adapter_name, stored.adapter.config)
        result = finish_loading(self.base_model, adapter_name, stored, how)
        if not is_trainable and is_training(self):  # eval() visits every module of every adapter
            self.eval()
        return result


def class_for(config: LoraConfig) -> type[PeftModel]:
    """Return the class for a config's task, `PeftModel` itself for none."""
    kinds = {kind.task_type: kind for kind in PeftModel.__subclasses__()}
    return kinds.get(config.task_type, PeftModel)


def with_base(config: LoraConfig, model: nn.Module) -> LoraConfig:
    """Return the config with the base model's name in it, and its class where no task type tells it."""
    config = for_stacked_experts(model, lora_config(config, "an adapted model"))
    name = config.base_model_name_or_path or getattr(model, "name_or_path", None) or None
    mapping = config.auto_mapping
    if config.task_type is None and mapping is None:
        mapping = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
    return dataclasses.replace(config, base_model_name_or_path=name, auto_mapping=mapping)
