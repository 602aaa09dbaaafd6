"""Kohya's files (sd-scripts and its kin): ``lora_unet_X.lora_down.weight``, dots written as underscores."""

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from loralab.core.adapter import Adapter
from loralab.errors import AdapterError, did_you_mean
from loralab.tools.formats._build import Hints, Module, build, only_factors, refuse_others, sort_keys

_ENDINGS = {".lora_down.weight": "a", ".lora_up.weight": "b", ".alpha": "alpha"}
_COMPONENTS = {
    "lora_unet_": "unet",
    "lora_transformer_": "transformer",
    "lora_prior_unet_": "prior",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
}
_NUMBERED_ENCODERS = (".text_encoder_2.", ".double_blocks.", ".input_blocks.")
"""What only models have whose first text encoder kohya counts as 1 (SDXL, FLUX)."""
_WORDS = """
    adaln_modulation_cross_attn adaln_modulation_mlp adaln_modulation_self_attn add_k_proj add_q_proj
    add_v_proj attentions attn attn1 attn2 blocks conv conv1 conv2 conv_in conv_out conv_shortcut
    cross_attn double_blocks down down_blocks down_proj downsamplers emb_layers encoder fc1 fc2 ff
    ff_context final_layer first gate gate_proj guidance_in img_attn img_in img_mlp img_mod in_layer
    in_layers input_blocks k_proj key last layer1 layer2 layers layerwise_blocks lin linear linear1
    linear2 linear_1 linear_2 mid_block middle_block mlp model modulation net norm norm1 norm1_context
    norm2 norm_out o_proj op out_layer out_layers out_proj output_blocks output_proj proj proj_in
    proj_mlp proj_out projector q_proj qkv query refiner_blocks resnets self_attention self_attn
    single_blocks single_transformer_blocks skip_connection text_model time_emb_proj time_embed
    time_embedding time_in tmlp to_add_out to_k to_out to_q to_v tproj transformer_blocks txt_attn
    txt_in txt_mlp txt_mod txtfusion txtmlp up up_blocks up_proj upsamplers v_proj value vector_in wk wo
    wq wv
"""
_KNOWN = frozenset(_WORDS.split())
"""The parts of the paths of image models and their text encoders, for files that come without a base."""


def matches(keys: Collection[str]) -> bool:
    """Keys begin with kohya's names of components."""
    return any(key.startswith(tuple(_COMPONENTS)) for key in keys)


def read(tensors: Mapping[str, Tensor], hints: Hints) -> Adapter:
    """Return the adapter, each path led by its component: ``unet.``, ``text_encoder.`` and so on.

    Which underscores were dots is looked up in `hints.modules`; without them, in the words that the paths of
    known image models are made of.

    Raises:
        AdapterError: a name cannot be read that way, or as `build`.
    """
    refuse_others(tensors)
    named, rest = sort_keys(tensors, _ENDINGS)
    if rest:
        raise AdapterError(f"{min(rest)}: kohya files hold lora_down, lora_up and alpha only.")
    dotted = {path.replace(".", "_"): path for path in hints.modules}
    modules: dict[str, Module] = {}
    for name, module in named.items():
        prefix = next((p for p in _COMPONENTS if name.startswith(p)), None)
        if prefix is None:
            raise AdapterError(f"{name}: expected a name that begins with {', '.join(_COMPONENTS)}.")
        body = name.removeprefix(prefix)
        path = _looked_up(name, body, dotted) if dotted else _split(name, body)
        modules[f"{_COMPONENTS[prefix]}.{path}"] = module
    bare = frozenset(f"{c}.{path}" for c in set(_COMPONENTS.values()) for path in hints.modules)
    return build(modules, {}, Hints(hints.lora_alpha, hints.base, bare))


def write(adapter: Adapter) -> dict[str, Tensor]:
    """Return kohya's tensors; alpha is scaling * rank, so that alpha / rank is the scale.

    Raises:
        AdapterError: a path does not begin with a component, or it holds more than factors.
    """
    only_factors(adapter, "kohya")
    prefixes = {component: prefix for prefix, component in reversed(_COMPONENTS.items())}
    if any(mark in f".{path}" for path in adapter.modules() for mark in _NUMBERED_ENCODERS):
        prefixes["text_encoder"] = "lora_te1_"
    tensors: dict[str, Tensor] = {}
    for path, factors in adapter.modules().items():
        component, _, rest = path.partition(".")
        if component not in prefixes:
            raise AdapterError(
                f"{path}: kohya files need to know the component; give it: --component, one of "
                f"{', '.join(prefixes)}."
            )
        name = prefixes[component] + rest.replace(".", "_")
        tensors |= {
            f"{name}.lora_down.weight": adapter.tensors[f"{path}.lora_A.weight"],
            f"{name}.lora_up.weight": adapter.tensors[f"{path}.lora_B.weight"],
            f"{name}.alpha": torch.tensor(factors.scaling * factors.rank),
        }
    return tensors


def _looked_up(name: str, body: str, dotted: Mapping[str, str]) -> str:
    if body not in dotted:
        raise AdapterError(f"{name}: the base has no module of that name.{did_you_mean(body, dotted)}")
    return dotted[body]


def _split(name: str, body: str) -> str:
    """Return the path whose known words, joined by underscores, are `body`: the longest word first."""
    parts = body.split("_")
    path: list[str] = []
    while parts:
        length = next((n for n in range(len(parts), 0, -1) if _is_word("_".join(parts[:n]))), 0)
        if not length:
            raise AdapterError(
                f"{name}: which underscores after {'.'.join(path) or 'the prefix'!r} were dots cannot be "
                "told; name the base model, whose modules say it."
            )
        path.append("_".join(parts[:length]))
        parts = parts[length:]
    return ".".join(path)


def _is_word(word: str) -> bool:
    return word in _KNOWN or re.fullmatch(r"\d+", word) is not None
