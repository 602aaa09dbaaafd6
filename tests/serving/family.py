"""Small bases of several kinds, adapters that peft made for them, and what peft writes with each.

Not a test: `conftest.py` beside it reads it.
"""

import contextlib
import runpy
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from loralab.models.load import BaseModel, load_base
from loralab.serving.engine import Engine, EngineSettings
from loralab.serving.requests import Answer, Piece, Request
from loralab.serving.sampling import Sampling

TINY = runpy.run_path(str(Path(__file__).parents[1] / "models" / "tiny.py"))
POSITIONS, WORDS = 256, 300
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
ALL = "all-linear"
KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "four": {},
        "five": {},
        "eight": {"r": 8, "target_modules": ["q_proj", "v_proj"]},
        "twelve": {"r": 12, "use_rslora": True},
        "uneven": {"rank_pattern": {"q_proj": 2, "down_proj": 7}, "alpha_pattern": {"up_proj": 3}},
        "dora": {"use_dora": True},
        "embeds": {"target_modules": ["embed_tokens", "q_proj", "lm_head"]},
        "shift": {"lora_bias": True, "target_modules": ["q_proj", "up_proj"]},
        "whole": {"modules_to_save": ["lm_head"]},
    },
    "tied": {
        "plain": {},
        "both": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
        "first": {"target_modules": ["embed_tokens", "q_proj"]},
        "last": {"target_modules": ["lm_head", "up_proj"]},
        "saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        "saved-both": {
            "target_modules": ["q_proj"],
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
    },
    "qwen": {
        "plain": {},
        "dora": {"use_dora": True, "r": 8},
        "shift": {"lora_bias": True, "target_modules": ["q_proj", "k_proj"]},
        "biases": {"bias": "lora_only", "target_modules": ["q_proj", "v_proj"]},
    },
    "gemma": {
        "plain": {},
        "dora": {"use_dora": True},
        "words": {"target_modules": ["embed_tokens", "q_proj"]},
    },
    "gpt2": {
        "plain": {},
        "dora": {"use_dora": True, "r": 8},
        "attention": {"target_modules": ["c_attn"]},
        "words": {"target_modules": ["wte", "c_fc"]},
    },
}
"""By base and name: what makes an adapter's config differ from r=4, lora_alpha=8 on all linear layers."""


def make_base(kind: str) -> Any:
    """A random model of one kind."""
    torch.manual_seed(0)
    if kind == "gpt2":
        sizes = {"vocab_size": WORDS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}
        model = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.2, eos_token_id=1, bos_token_id=1))
    elif kind == "gemma":
        windows = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
        model = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, **windows, head_dim=8))
    elif kind == "qwen":
        model = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=False))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=kind == "tied"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.2)
    return model.eval()


def fill(model: Any, seed: int) -> None:
    """Give an adapter numbers that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "magnitude" in name:
                parameter.mul_(1 + 0.3 * noise.abs())
            elif "lora_" in name:
                parameter.copy_(0.3 * noise)
            elif parameter.requires_grad:
                parameter.add_(0.3 * noise)


def make_adapter(base_dir: Path, folder: Path, seed: int, **settings: Any) -> Path:
    """Have peft write an adapter."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ALL, **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(**settings, task_type="CAUSAL_LM")
        model = peft.get_peft_model(load_base(str(base_dir), "float32").model, config)
        fill(model, seed)
        model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def prompt(seed: int, tokens: int) -> list[int]:
    """Token ids at random, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, WORDS, (tokens,), generator=generator).tolist()


@dataclass(frozen=True)
class Relative:
    """A base, and a folder of adapters."""

    base_dir: Path
    adapters: Path
    names: tuple[str, ...]
    _written: dict[Any, Any] = field(default_factory=dict)

    def load(self, dtype: str = "float32") -> BaseModel:
        """The base, in memory of its own."""
        return load_base(str(self.base_dir), dtype)

    @cached_property
    def _models(self) -> dict[str, Any]:
        return {}

    def peft_model(self, name: str) -> Any:
        """The base with an adapter as peft has them; "" for the base alone."""
        if name not in self._models:
            model = self.load().model
            if name:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    model = peft.PeftModel.from_pretrained(model, str(self.adapters / name))
            self._models[name] = model.eval()
        return self._models[name]

    @torch.no_grad()
    def logits(self, name: str, ids: Sequence[int]) -> Tensor:
        """The scores after each token, [T, V], as peft has them."""
        return self.peft_model(name)(input_ids=torch.tensor([list(ids)])).logits[0].float()

    def write(self, name: str, ids: Sequence[int], count: int) -> list[int]:
        """The likeliest tokens after a prompt, one by one, as peft has them."""
        key = name, tuple(ids)
        written = self._written.setdefault(key, [])
        while len(written) < count:
            written.append(int(self.logits(name, [*ids, *written])[-1].argmax()))
        return list(written[:count])


def write_all(folder: Path) -> dict[str, Relative]:
    """Write all bases and their adapters."""
    found = {}
    for kind, adapters in KINDS.items():
        base_dir = folder / kind / "base"
        make_base(kind).save_pretrained(base_dir)
        TINY["make_tokenizer"]().save_pretrained(base_dir)
        for seed, (name, settings) in enumerate(adapters.items(), 1):
            make_adapter(base_dir, folder / kind / "adapters" / name, seed, **settings)
        found[kind] = Relative(base_dir, folder / kind / "adapters", tuple(adapters))
    return found


def start(engines: contextlib.ExitStack, base: BaseModel, roots: Any, settings: dict[str, Any]) -> Engine:
    """Start an engine that is closed with `engines`."""
    settings = {"backend": "continuous", "cache_tokens": 4096, **settings}
    engine = Engine(base, roots, EngineSettings(**settings))
    engine.start()
    engines.callback(engine.close, 0.0)
    return engine


def ask(engine: Engine, model: str, ids: Sequence[int], count: int = 12, **sampling: Any) -> Answer:
    """Submit one request for `count` tokens."""
    sampling = {"ignore_eos": True, **sampling}
    return engine.submit(Request(list(ids), model, Sampling(count, **sampling)))


def pieces(answer: Answer, seconds: float = 60) -> list[Piece]:
    """Wait for all pieces of an answer, but not for ever."""
    found: list[Piece] = []
    done = threading.Event()

    def call(piece: Piece) -> None:
        found.append(piece)
        if piece.finish:
            done.set()

    answer.listen(call)
    assert done.wait(seconds), f"no end after {seconds} s; {len(found)} pieces came"
    return found


def tokens(answer: Answer, seconds: float = 60) -> list[int]:
    """Wait for an answer that must succeed and return its tokens."""
    last = pieces(answer, seconds)[-1]
    assert last.finish in ("stop", "length"), f"{last.finish}: {last.error}"
    return list(answer.tokens)


def fingerprint(model: Any) -> str:
    """The sha256 of all that a model shows, and of where it lies."""
    import hashlib

    sha = hashlib.sha256()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        data = parameter.detach().contiguous().flatten().view(torch.uint8)
        sha.update(f"{name} {parameter.data_ptr()} {type(parameter).__name__}".encode())
        sha.update(data.numpy().tobytes())
    return sha.hexdigest()


class Gate:
    """Holds a model's steps back until it is opened."""

    def __init__(self, model: Any) -> None:
        self.opened = threading.Event()
        self.reached = threading.Event()
        self.opened.set()
        self._hook = model.register_forward_pre_hook(self._wait)

    def _wait(self, module: Any, args: Any) -> None:
        self.reached.set()
        assert self.opened.wait(60)

    def shut(self) -> None:
        """Let no step begin."""
        self.reached.clear()
        self.opened.clear()

    def open(self) -> None:
        """Let them go on."""
        self.opened.set()


class Steps:
    """What each step of an engine ran with: by request id, how many tokens; and the mode."""

    def __init__(self, engine: Engine) -> None:
        self.batches: list[dict[str, int]] = []
        self.models: list[set[str]] = []
        self.seated: list[int] = []
        enter, place = engine.desk.enter, engine.placement.enter

        def watched(batch: Any, only_last: bool) -> None:
            self.batches.append({answer_id: tokens for answer_id, tokens, _ in batch})
            enter(batch, only_last)
            self.seated.append(len(engine.placement.mixed.seats))

        def placed(runs: Any, last: Any, present: Any) -> str:
            self.models.append({fitted.name if fitted else "" for fitted, _ in runs})
            return place(runs, last, present)

        engine.desk.enter = watched
        engine.placement.enter = placed

    def tokens_of(self, answer: Answer) -> list[int]:
        """How many tokens of a request each of its steps had."""
        return [batch[answer.id] for batch in self.batches if answer.id in batch]
