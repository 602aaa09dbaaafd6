"""EVA: A from what the layers' inputs are like, and more rank where they vary in more ways.

Paischer et al. 2024, arXiv 2410.07170, algorithm 1: the rows of A are the principal directions of a layer's
input over the data, and the ranks go to the directions that explain most variance, over all layers together.
`loralab.core.eva_search` finds the directions. Shape key: I in, R rank.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from loralab.core.calibrate import no_linear_layer, targeted, undisturbed
from loralab.core.config import LoraConfig
from loralab.core.eva_search import PrepareBatch, PrepareRows, Reading, find_directions
from loralab.core.init_config import EvaConfig
from loralab.core.layers import LoraLayer, is_linear
from loralab.core.model import LoraModel
from loralab.core.targets import shorten, walk
from loralab.errors import AdapterError, ConfigError, did_you_mean

__all__ = [
    "forward_fn_dict",
    "get_eva_state_dict",
    "initialize_lora_eva_weights",
    "prepare_layer_inputs_fn_language_modeling",
    "prepare_model_inputs_fn_language_modeling",
]

_PREFIX = "base_model.model."


_PrepareRows = PrepareRows | Mapping[str, PrepareRows] | None


def forward_fn_dict(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Run `model` on a batch that is a dictionary."""
    return model(**inputs)


def prepare_model_inputs_fn_language_modeling(
    model_input: Mapping[str, Tensor], peft_config: LoraConfig
) -> Tensor:
    """Return the positions [N, 2] of a batch that count: not padding, and not masked out of the labels.

    Raises:
        ConfigError: the batch is no dictionary with "input_ids".
    """
    if not isinstance(model_input, Mapping) or "input_ids" not in model_input:
        raise ConfigError(
            "eva: a batch is expected to be a dictionary with 'input_ids'; for other data pass "
            "prepare_model_inputs_fn=None and prepare_layer_inputs_fn=None, or functions of your own."
        )
    mask = model_input.get("attention_mask")
    mask = torch.ones_like(model_input["input_ids"]) if mask is None else mask
    settings = peft_config.eva_config
    settings = settings if isinstance(settings, EvaConfig) else EvaConfig()
    if settings.use_label_mask and "labels" in model_input:
        mask = mask.bool() & (model_input["labels"] != settings.label_mask_value)
    return mask.nonzero()


def prepare_layer_inputs_fn_language_modeling(
    layer_input: Tensor | tuple[Any, ...], model_input: Tensor, layer_name: str
) -> Tensor:
    """Return the rows [N, I] of a layer's input at the positions `model_input`, [N, 2].

    Raises:
        ConfigError: the layer's input has not the batch's shape.
    """
    x = layer_input if isinstance(layer_input, Tensor) else layer_input[0]
    positions = model_input.to(x.device).unbind(1)
    beyond = (len(p) and int(p.max()) >= size for p, size in zip(positions, x.shape, strict=False))
    if x.dim() < 3 or any(beyond):
        raise ConfigError(
            f"eva: the input of {layer_name!r} is {list(x.shape)}, not [rows, tokens, width] as the batch; "
            "pass a prepare_layer_inputs_fn that picks its rows, or None for all of them."
        )
    return x[positions]


@torch.no_grad()
def get_eva_state_dict(
    model: nn.Module,
    dataloader: Iterable[Any],
    peft_config: LoraConfig | None = None,
    forward_fn: Callable[[nn.Module, Any], Any] = forward_fn_dict,
    prepare_model_inputs_fn: PrepareBatch | None = prepare_model_inputs_fn_language_modeling,
    prepare_layer_inputs_fn: _PrepareRows = prepare_layer_inputs_fn_language_modeling,
    adapter_name: str = "default",
    gather_distributed_inputs: bool = True,
    show_progress_bar: bool = True,
) -> dict[str, Tensor]:
    """Return A by layer: [R, I] with the rank that EVA gives to the layer, which may be 0.

    `model` is a base model, then `peft_config` is needed, or one with adapters, which are off meanwhile. The
    arguments are PEFT's: `forward_fn` runs the model on a batch; `prepare_model_inputs_fn(batch, config)` and
    `prepare_layer_inputs_fn(layer_input, what_that_returned, layer_name)` choose the rows that count; a
    mapping has one function for each layer that it names; None takes all rows. `gather_distributed_inputs`
    adds up the inputs of all processes. `show_progress_bar` logs how many layers are settled.

    Raises:
        TargetError: a targeted module is no linear layer.
        ConfigError: the data is empty, too little, or does not settle.
    """
    lora = _lora_model(model)
    if lora is None and peft_config is None:
        raise ConfigError("get_eva_state_dict needs peft_config for a model without adapters.")
    config = peft_config or _adapter_config(lora, adapter_name)
    prefix = _PREFIX if lora is not None and lora is not model else ""
    modules: Mapping[str, nn.Module]
    if lora is None:
        modules = targeted(model, config, linear=True)
    else:
        modules = _linear_layers(lora, adapter_name, config)
    per_layer = prepare_layer_inputs_fn if isinstance(prepare_layer_inputs_fn, Mapping) else {}
    by_path = {name.removeprefix(_PREFIX): function for name, function in per_layer.items()}
    _check_known("prepare_layer_inputs_fn", by_path, modules)
    shared = prepare_layer_inputs_fn if callable(prepare_layer_inputs_fn) else None
    reading = Reading(
        run=lambda batch: forward_fn(model, batch),
        prepare_batch=prepare_model_inputs_fn,
        prepare_rows={path: by_path.get(path, shared) for path in modules},
        names={path: prefix + path for path in modules},
        gather=gather_distributed_inputs,
        log=show_progress_bar,
    )
    with _without_adapters(lora), undisturbed(model, training=False):
        found = find_directions(modules, dataloader, config, reading)
    return {prefix + path: a_RI for path, a_RI in found.items()}


@torch.no_grad()
def initialize_lora_eva_weights(
    model: nn.Module,
    dataloader: Iterable[Any] | None = None,
    eva_state_dict: Mapping[str, Tensor] | None = None,
    forward_fn: Callable[[nn.Module, Any], Any] = forward_fn_dict,
    prepare_model_inputs_fn: PrepareBatch | None = prepare_model_inputs_fn_language_modeling,
    prepare_layer_inputs_fn: _PrepareRows = prepare_layer_inputs_fn_language_modeling,
    adapter_name: str = "default",
    gather_distributed_inputs: bool = True,
    show_progress_bar: bool = True,
) -> None:
    """Give every layer of an adapter the A, and the rank, that EVA finds for it; B becomes zero.

    Either `dataloader`, see `get_eva_state_dict` for the other arguments, or what that function returned. A
    layer whose rank is 0 loses its adapter. The config gets the ranks as `rank_pattern` and, with
    `adjust_scaling_factors`, such alphas that every layer's scaling stays, with `use_rslora` too.

    Raises:
        ConfigError: no data, or not an adapter with ``init_lora_weights="eva"``.
        AdapterError: `eva_state_dict` does not fit the adapter.
    """
    lora = _lora_model(model)
    config = _adapter_config(lora, adapter_name)
    if lora is None or str(config.init_lora_weights).lower() != "eva":
        raise ConfigError(
            f"adapter {adapter_name!r} has init_lora_weights={config.init_lora_weights!r}; "
            "initialize_lora_eva_weights is for 'eva'."
        )
    if eva_state_dict is None:
        if dataloader is None:
            raise ConfigError("initialize_lora_eva_weights needs a dataloader or an eva_state_dict.")
        eva_state_dict = get_eva_state_dict(
            model,
            dataloader,
            None,
            forward_fn,
            prepare_model_inputs_fn,
            prepare_layer_inputs_fn,
            adapter_name,
            gather_distributed_inputs,
            show_progress_bar,
        )
    found = {name.removeprefix(_PREFIX): a_RI for name, a_RI in eva_state_dict.items()}
    layers = _linear_layers(lora, adapter_name, config)
    _check_fit(found, layers)
    _rebuild(lora, adapter_name, layers, found)


@contextlib.contextmanager
def _without_adapters(lora: LoraModel | None) -> Iterator[None]:
    enabled = lora is not None and lora.adapters_enabled
    if lora is not None and enabled:
        lora.disable_adapter_layers()
    try:
        yield
    finally:
        if lora is not None and enabled:
            lora.enable_adapter_layers()


def _rebuild(
    lora: LoraModel, name: str, layers: Mapping[str, LoraLayer], found: Mapping[str, Tensor]
) -> None:
    active = lora.active_adapters
    old = lora.peft_config[name]
    new = _redistributed(old, lora, {path: a_RI.shape[0] for path, a_RI in found.items()})
    for path, layer in layers.items():
        layer.delete_adapter(name)
        if len(found[path]):
            # Kaiming's numbers are drawn and thrown away; nobody else should notice.
            with undisturbed(layer, training=layer.training):
                layer.add_adapter(name, path, new)
            layer.factors(name)[0].copy_(found[path])
    lora.peft_config[name] = new
    lora.set_adapter(active, inference_mode=new.inference_mode)


def _redistributed(config: LoraConfig, lora: LoraModel, ranks: Mapping[str, int]) -> LoraConfig:
    """Return the config with these ranks, in words that PEFT reads too."""
    kept = [path for path, rank in ranks.items() if rank]
    if not kept:
        raise AdapterError("eva_state_dict gives every layer the rank 0, which leaves no adapter.")
    adjust = not isinstance(config.eva_config, EvaConfig) or config.eva_config.adjust_scaling_factors
    alphas = {}
    for path in kept:
        growth = ranks[path] / config.rank_of(path) if adjust else 1
        alphas[path] = config.alpha_of(path) * (growth**0.5 if config.use_rslora else growth)
    changes: dict[str, Any] = {
        "rank_pattern": {_key(p, kept): ranks[p] for p in kept if ranks[p] != config.r},
        "alpha_pattern": {_key(p, kept): alphas[p] for p in kept if alphas[p] != config.lora_alpha},
    }
    if len(kept) < len(ranks):
        names = shorten(kept, [path for path, _ in walk(lora.model)])
        changes |= {"target_modules": names, "layers_to_transform": None, "layers_pattern": None}
    return dataclasses.replace(config, **changes)


def _key(path: str, paths: Collection[str]) -> str:
    """Return a pattern for one path: the path itself, as PEFT writes it, unless it matches another too."""
    others = (other for other in paths if other != path and re.match(rf"(.*\.)?({path})$", other))
    return path if next(others, None) is None else f"^{re.escape(path)}"


def _lora_model(model: nn.Module) -> LoraModel | None:
    if isinstance(model, LoraModel):
        return model
    inner = getattr(model, "base_model", None)
    return inner if isinstance(inner, LoraModel) else None


def _adapter_config(lora: LoraModel | None, name: str) -> LoraConfig:
    known = lora.peft_config if lora is not None else {}
    if name not in known:
        raise ConfigError(
            f"there is no adapter {name!r}; call get_peft_model(model, config) first."
            + did_you_mean(name, known)
        )
    return known[name]


def _linear_layers(lora: LoraModel, name: str, config: LoraConfig) -> dict[str, LoraLayer]:
    layers = {path: layer for path, layer in lora.lora_layers.items() if name in layer.adapters}
    for path, layer in layers.items():
        if not is_linear(layer.base_layer):
            raise no_linear_layer(path, layer.base_layer, config)
    return layers


def _check_known(what: str, names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{what}: {name!r} is no targeted layer.{did_you_mean(name, known)}")


def _check_fit(found: Mapping[str, Tensor], layers: Mapping[str, LoraLayer]) -> None:
    _check_known("eva_state_dict", found, layers)
    for path, layer in layers.items():
        if path not in found:
            raise AdapterError(
                f"eva_state_dict has nothing for {path!r}; make it with this config, or exclude the module."
            )
        width = layer.factor_shapes(1)[0][1]
        if found[path].dim() != 2 or found[path].shape[1] != width:
            raise AdapterError(
                f"eva_state_dict: {path!r} is {list(found[path].shape)}, the layer needs [rank, {width}]. "
                "Was it made with another base?"
            )
