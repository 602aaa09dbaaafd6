"""The models of the benchmarks: random ones at real shapes, and a real small one grown to real shapes.

A grown model computes what the small one did, so its loss means something at the cost of a large one. The
small one, and the tool that grows it, come with the test assets.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

GROWN = {"85M": "110m", "1.1B": "1.1b"}
"""Names of grown models, and what the tool calls them."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a random model."""

    vocabulary: int = 8192
    width: int = 768
    inner: int = 2048
    layers: int = 8
    heads: int = 12


LLAMA = Shape()
GPT2 = Shape(vocabulary=50257, inner=3072, layers=12)
QWEN2 = Shape(vocabulary=32768, width=896, inner=4864, layers=6, heads=14)
"""Qwen2-0.5B with a quarter of its layers and a fifth of its vocabulary."""
TINY = Shape(256, 64, 128, 2, 4)


def random_llama(shape: Shape, dtype: torch.dtype) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype).train()


def random_gpt2(shape: Shape, dtype: torch.dtype) -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_embd=shape.width,
        n_inner=shape.inner,
        n_layer=shape.layers,
        n_head=shape.heads,
        embd_pdrop=0.0,  # the base's own dropout would give every contestant another loss
        resid_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    return GPT2LMHeadModel(config).to(dtype).train()


def random_qwen2(shape: Shape, dtype: torch.dtype) -> PreTrainedModel:
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config).to(dtype).train()


def assets() -> Path | None:
    """The folder of test assets, if there is one."""
    folder = os.environ.get("LORALAB_ASSETS")
    return Path(folder) if folder else None


def grown(name: str) -> Path:
    """Return the folder of stories260K grown to "85M" or "1.1B", made if it is not there yet.

    Folders stand in $LORALAB_CACHE/bench, or in the system's folder for temporary files.
    """
    where = assets()
    if where is None:
        raise SystemExit(
            f"the model {name} is grown from stories260K: set LORALAB_ASSETS to the folder of test assets."
        )
    tool = where.parent / "tools" / "inflate_llama.py"
    if not tool.is_file():
        raise SystemExit(f"the model {name} is grown by {tool}, which is not there.")
    cache = os.environ.get("LORALAB_CACHE")
    folder = (Path(cache) / "bench" if cache else Path(tempfile.gettempdir()) / "loralab-bench") / name
    if not (folder / "config.json").is_file():  # the tool writes it after the weights
        source = where / "models" / "stories260K"
        command = [sys.executable, str(tool), str(source), str(folder), "--preset", GROWN[name]]
        subprocess.run([*command, "--dtype", "bfloat16"], check=True, stdout=subprocess.DEVNULL)
    return folder
