"""Write docs/peft-table.md: every name of PEFT's LoRA, and whether it is here, better here, or refused.

Run ``python scripts/peft_table.py`` with PEFT installed. What is there is read off both libraries; what is
said about it stands below. A name of PEFT's that is neither here nor explained stops the script.
"""

import dataclasses
import inspect
import typing
from pathlib import Path
from typing import Any

import peft
from peft.tuners import lora as their_lora
from peft.tuners.lora.layer import Linear as TheirLinear
from torch import nn

import loralab.peft as ours
from loralab import LoraConfig, LoraModel, PeftModel
from loralab.core import config as our_config
from loralab.core.inits import find_init
from loralab.core.layers import REGISTRY
from loralab.core.layers.linear import Layer as OurLinear
from loralab.core.weighted import COMBINATION_TYPES
from loralab.errors import ConfigError
from loralab.peft import others

PAGE = Path(__file__).parents[1] / "docs" / "peft-table.md"
Row = tuple[str, str, str]

SAME, BETTER, REFUSED, NOT_HERE = "same", "better", "refused", "not here"

SETTINGS = {
    "target_modules": (
        "an entry that matches nothing is refused; also `attention` and `feed-forward`; a regex that names "
        "experts reaches no other layers than those it matches"
    ),
    "exclude_modules": "if it takes all targets away, the message says so",
    "fan_in_fan_out": "which way a weight lies is read off the layer; nothing to set, no warning",
    "ensure_weight_tying": "one parameter under two names, not two in one memory",
    "layer_replication": "a merge gives each copy of a layer its own delta",
    "use_dora": "merging several gives what the forward pass computes",
    "loftq_config": "factors fit `lora_alpha`; runs on every kind of layer and on the CPU",
    "lora_ga_config": "every kind of layer; a stored adapter is not run without its changed base",
    "target_parameters": "adapters of releases before 0.19 are known and turned round",
}
MIXED = (
    "refused in them: merged adapters, `bias`, `target_parameters`, `MultiheadAttention`, initialisations "
    "that change the base, a number of names other than that of the rows"
)
LIMITED = {
    "runtime_config": "`ephemeral_gpu_offload=True` is refused: there is nothing it would move",
    "megatron_core": "of use with `megatron_config` alone, which is refused",
    "qalora_group_size": "of use with `use_qalora` alone, which is refused",
}
METHODS = {
    "add_weighted_adapter": "exact sums, no cross terms; rsLoRA, biases and all kinds of layers",
    "disable_adapter": "shows the base's own weights while merged, then the merged ones again",
    "from_pretrained": (
        "a tensor that does not fit is an error, not a warning; a keyword that would do nothing is refused, "
        "`device_map` of one device taken"
    ),
    "load_adapter": "a tensor that does not fit is an error, not a warning",
    "merge_adapter": "summed in fp32 and rounded once, in any order; says what rounding took; `rounding`",
    "merge_and_unload": "as `merge_adapter`",
    "unmerge_adapter": "the original tensors come back bit for bit",
    "unload": "as `unmerge_adapter`",
    "save_pretrained": (
        "the same adapter gives the same bytes; safetensors only; never asks the network; `max_shard_size` "
        "and `save_function` are taken, for there is one file"
    ),
    "set_adapter": "one step, however many layers; lists too",
    "delete_adapter": "",
    "forward": f"mixed batches in training too, with DoRA and different ranks; {MIXED}",
    "generate": f"mixed batches with DoRA and different ranks; {MIXED}",
    "merge": "as `merge_adapter`, for one layer",
    "unmerge": "the original tensor comes back bit for bit",
    "get_model_status": "",
}
PROMPTS = "there are no trained prompts"
INNER = "an inner part of how PEFT wraps layers"
INIT = "initialisations are files in `core/inits`"
VARIANT = "variants are files in `core/variants`"
ABSENT = {
    "get_prompt": PROMPTS,
    "get_prompt_embedding_to_save": PROMPTS,
    "subtract_mutated_init": "`save_pretrained` does it",
    **dict.fromkeys(
        ("get_model_config", "inject_adapter", "target_module_mapping", "tuner_layer_cls"), INNER
    ),
    **dict.fromkeys(
        ("uses_shared_state", "reset_lora_parameters", "update_layer", "other_param_names"), INNER
    ),
    **dict.fromkeys(("get_base_weight", "set_base_weight"), INNER),
    **dict.fromkeys([f"{kind}_init" for kind in ("corda", "loftq", "lora_ga", "mica", "olora")], INIT),
    **dict.fromkeys(("orthogonal_init", "pissa_init"), INIT),
    **dict.fromkeys(("lora_variants", "resolve_lora_variant", "frozen_peft_weight_names"), VARIANT),
}
LAYERS = {
    "Linear": "one fused function; no copy of the input in fp32",
    "Embedding": "takes every initialisation, or refuses it by name",
    "Conv1d": "keeps dilation and padding mode",
    "Conv2d": "keeps dilation and padding mode; grouped ones merge",
    "Conv3d": "keeps dilation and padding mode; kernels of (1, 1, k) merge",
    "MultiheadAttention": "the output projection's delta is added once; nothing is merged to compute",
    "ParamWrapper": "both layouts of old files; dropout and variants are refused by name",
    "Linear8bitLt": "merge reports what rounding took; bit-exact unmerge",
    "Linear4bit": "merge reports what rounding took; bit-exact unmerge",
    "TorchaoLoraLinear": "passes gradients on through quantized inputs",
}
NO_LAYER = "no layer for it here"
INITS = {
    "pissa": "every kind of layer, quantized ones too",
    "olora": "every kind of layer",
    "orthogonal": "every kind of layer",
    "loftq": "every kind of layer; fits `lora_alpha`",
    "lora_ga": "every kind of layer",
    "eva": "batches of few tokens are put together; refused where it cannot work",
}
COMBINED = {
    "linear": "rsLoRA right; still mixes A and B apart, as its name says in PEFT: use `exact`",
    "svd": "found in factor space: no O x I matrix; rsLoRA right",
    "cat": "rsLoRA right",
}
FUNCTIONS = {
    "inject_adapter_in_model": "",
    "set_peft_model_state_dict": "a shape that differs is refused before anything is changed",
    "get_peft_model_state_dict": "never asks the network",
    "convert_to_lora": "in factor space",
    "prepare_model_for_kbit_training": "",
}
NOTED = {
    "get_peft_model": (
        "with `low_cpu_mem_usage` the factors are where their layers are, not on meta: what is loaded into "
        "them next is copied there. `mixed` asks for nothing: every model runs several adapters at once"
    ),
}
"""What is the same for who uses it, though not inside."""


def row(name: str, note: str | None) -> Row:
    return (name, BETTER, note) if note else (name, SAME, "")


def settings() -> list[Row]:
    """Every field of LoraConfig."""
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    rows = []
    for field in dataclasses.fields(peft.LoraConfig):
        if field.name not in known:
            raise SystemExit(f"LoraConfig.{field.name} is neither here nor refused")
        off = our_config._OFF.get(field.name)
        refused = (field.name, REFUSED, f"accepted at {off[0]!r}" if off else "")
        here = row(field.name, SETTINGS.get(field.name))
        if field.name in LIMITED:
            here = (field.name, SAME, LIMITED[field.name])
        rows.append(refused if off else here)
    return rows


def members(theirs: type, mine: tuple[type, ...]) -> list[Row]:
    """Every public member that PEFT gives to a class."""
    rows = []
    for name in sorted(name for name in dir(theirs) if name[0] != "_" and name not in dir(nn.Module)):
        instance = name in ("merged_adapters",)  # set when a layer is made
        if any(hasattr(kind, name) for kind in mine) or instance:
            rows.append(row(name, METHODS.get(name)))
        elif name in ABSENT:
            rows.append((name, NOT_HERE, ABSENT[name]))
        else:
            raise SystemExit(f"{theirs.__name__}.{name} is neither here nor explained")
    for name in ("forward", "generate"):
        if theirs is peft.PeftModel and name not in [known for known, _, _ in rows]:
            rows.append(row(name, METHODS[name]))
    return sorted(rows)


def layers() -> list[Row]:
    """Every kind of LoRA layer that PEFT has."""
    mine = {
        entry.Layer.peft_name
        for entry in map(REGISTRY.get, REGISTRY.names)
        if hasattr(entry.Layer, "peft_name")
    }
    mine |= {"Conv1d", "Conv2d", "Conv3d", "ParamWrapper"}  # named when made; made by target_parameters
    theirs = {
        *(n for n, kind in vars(their_lora.layer).items() if _is_layer(kind)),
        *(
            "Linear8bitLt",
            "Linear4bit",
            "GPTQLoraLinear",
            "AwqLoraLinear",
            "AqlmLoraLinear",
            "EetqLoraLinear",
        ),
        *("HqqLoraLinear", "IncLoraLinear", "TorchaoLoraLinear", "LoraParallelLinear", "TeLinear"),
    }
    return [row(n, LAYERS[n]) if n in mine else (n, REFUSED, NO_LAYER) for n in sorted(theirs)]


def _is_layer(kind: Any) -> bool:
    layer = their_lora.layer.LoraLayer
    return (
        isinstance(kind, type) and issubclass(kind, layer) and kind is not layer and kind.__name__[0] != "_"
    )


def inits() -> list[Row]:
    """Every value of init_lora_weights."""
    hints = typing.get_type_hints(peft.LoraConfig)["init_lora_weights"]
    names = [name for kind in typing.get_args(hints) for name in typing.get_args(kind)]
    names = [name.replace("[number of iters]", "4") for name in names]
    rows = [("True", SAME, ""), ("False", SAME, "")]
    for name in sorted({*names, "lora_ga"}):
        try:
            find_init(name)
        except ConfigError:
            rows.append((name, REFUSED, "named when the adapter is made"))
        else:
            rows.append(row(name, INITS.get(name.partition("_niter")[0])))
    return rows


def combinations() -> list[Row]:
    """Every combination_type of add_weighted_adapter."""
    hint = inspect.signature(peft.LoraModel.add_weighted_adapter).parameters["combination_type"].annotation
    names = typing.get_args(eval(hint, {"Literal": typing.Literal}))
    rows = [row(n, COMBINED.get(n)) if n in COMBINATION_TYPES else (n, REFUSED, "") for n in names]
    return [*rows, *((n, BETTER, "not in PEFT") for n in COMBINATION_TYPES if n not in names)]


def public() -> list[Row]:
    """Every other name that ``from peft import ...`` gives."""
    rows = []
    for name in sorted(peft.__all__, key=str.lower):
        if hasattr(others, name):
            what = "a part of LoRA that is missing" if _is_part(name) else "another method than LoRA"
            rows.append((name, REFUSED, what))
        elif name in NOTED:
            rows.append((name, SAME, NOTED[name]))
        else:
            rows.append(row(name, FUNCTIONS.get(name)))
    if missing := [name for name in peft.__all__ if not hasattr(ours, name)]:
        raise SystemExit(f"{missing[0]} is neither here nor refused")
    return rows


def _is_part(name: str) -> bool:
    return name in (
        "ArrowConfig",
        "BdLoraConfig",
        "KasaConfig",
        "MontecloraConfig",
        "VeloraConfig",
    ) or name in (
        "create_arrow_model",
        "find_kappa_target_modules",
    )


SECTIONS = {
    "Settings": ("Fields of `LoraConfig`.", settings),
    "Initialisations": ("Values of `init_lora_weights`.", inits),
    "Layers": ("Kinds of LoRA layers.", layers),
    "PeftModel": (
        "Members of `PeftModel`; those of `LoraModel` answer through it.",
        lambda: members(peft.PeftModel, (PeftModel, LoraModel)),
    ),
    "LoraModel": ("Members of `LoraModel`.", lambda: members(peft.LoraModel, (LoraModel,))),
    "LoRA layers": ("Members of a LoRA layer.", lambda: members(TheirLinear, (OurLinear,))),
    "Weighted combinations": ("Values of `combination_type`.", combinations),
    "Names": ("All that `from peft import ...` gives.", public),
}


def page() -> str:
    """Return the whole page."""
    lines = [
        "# PEFT, name by name",
        "",
        f"Every name of LoRA in PEFT {peft.__version__}. *same* means the same; *better* says how; *refused*",
        "is a name that is there and says in one line why it cannot be used; *not here* is no name here.",
        "What it is like to move is in [Moving from PEFT](peft.md).",
        "",
        "```python",
        "from loralab.errors import ConfigError",
        "from loralab.peft import LoraConfig, PrefixTuningConfig",
        "",
        "assert not isinstance(LoraConfig(), PrefixTuningConfig)",
        "try:",
        "    PrefixTuningConfig(num_virtual_tokens=20)",
        "except ConfigError as error:",
        "    print(error)",
        "```",
        "",
        "`python scripts/peft_table.py` writes this page from both libraries.",
    ]
    for title, (text, make) in SECTIONS.items():
        lines += ["", f"## {title}", "", text, "", "| name | here | |", "|---|---|---|"]
        lines += [f"| `{name}` | {here} | {note} |" for name, here, note in make()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf8")
    print(f"wrote {PAGE}")
