"""Small models of every kind that both libraries adapt, and PEFT as the oracle."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loralab import LoraConfig, PeftModel, get_peft_model

IDS = torch.tensor([[5, 9, 2, 31, 7, 1], [8, 8, 3, 0, 12, 30]])
TINY: dict[str, dict[str, Any]] = {
    "Llama": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
    "GPT2": {
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "Bert": {
        **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 3},
    },
    "T5": {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0},
}


@dataclass(frozen=True)
class Case:
    """How to build one model, the same every time, and what to give to it."""

    build: Callable[[], nn.Module]
    inputs: dict[str, Tensor]

    def base(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build()

    def theirs(self, settings: dict[str, Any]) -> Any:
        """PEFT's model with a fresh adapter from seed 1."""
        base = self.base()
        torch.manual_seed(1)
        with quiet():
            return peft.get_peft_model(base, peft.LoraConfig(**settings))

    def ours(self, settings: dict[str, Any]) -> PeftModel:
        """Our model with a fresh adapter from seed 1."""
        base = self.base()
        torch.manual_seed(1)
        return get_peft_model(base, LoraConfig(**settings))

    def theirs_from(self, folder: Path) -> Any:
        with quiet():
            return peft.PeftModel.from_pretrained(self.base(), folder)

    @staticmethod
    def save_theirs(model: Any, folder: Path, **options: Any) -> None:
        """Let PEFT write its adapter; it warns of lora_bias as of a broken shard."""
        with quiet():
            model.save_pretrained(folder, **options)

    def ours_from(self, folder: Path) -> PeftModel:
        return PeftModel.from_pretrained(self.base(), folder)

    def output(self, model: nn.Module) -> Tensor:
        result = model(**self.inputs)
        return result if isinstance(result, Tensor) else result.logits


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """PEFT warns of things that are no fault of these tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Layers(nn.Module):
    """The layers of one kind in a row, "first" and "second"."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def layers(make: Callable[[], nn.Module], second: Callable[[], nn.Module], x: Tensor) -> Case:
    return Case(lambda: Layers(make(), second()), {"x": x})


def model(name: str, head: str) -> Case:
    config = getattr(transformers, f"{name}Config")(vocab_size=32, initializer_range=0.2, **TINY[name])
    inputs = {"input_ids": IDS} | ({"decoder_input_ids": IDS.flip(1)} if name == "T5" else {})
    return Case(lambda: getattr(transformers, name + head)(config), inputs)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


LAYERS = {
    "linear": layers(lambda: nn.Linear(8, 6), lambda: nn.Linear(6, 5), noise(2, 3, 8)),
    "linear-no-bias": layers(lambda: nn.Linear(8, 6, False), lambda: nn.Linear(6, 5, False), noise(4, 8)),
    "gpt2-conv1d": layers(lambda: Conv1D(6, 8), lambda: Conv1D(5, 6), noise(2, 3, 8)),
    "embedding": layers(lambda: nn.Embedding(32, 6, padding_idx=1), lambda: nn.Linear(6, 5), IDS),
    "conv1d": layers(lambda: nn.Conv1d(4, 6, 3, 2, 1), lambda: nn.Conv1d(6, 4, 2), noise(2, 4, 9)),
    "conv2d": layers(
        lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0)),
        lambda: nn.Conv2d(6, 4, 1, bias=False),
        noise(2, 4, 9, 7),
    ),
    "conv3d": layers(
        lambda: nn.Conv3d(2, 4, 2), lambda: nn.Conv3d(4, 2, (2, 1, 3), padding=1), noise(2, 2, 4, 4, 5)
    ),
}
MODELS = {
    "llama": model("Llama", "ForCausalLM"),
    "gpt2": model("GPT2", "LMHeadModel"),
    "bert": model("Bert", "ForMaskedLM"),
    "bert-classifier": model("Bert", "ForSequenceClassification"),
    "t5": model("T5", "ForConditionalGeneration"),
}
BOTH: dict[str, Any] = {"target_modules": ["first", "second"], "r": 4}
LAYER_SETTINGS: dict[str, dict[str, Any]] = {
    "plain": BOTH,
    "alpha": BOTH | {"lora_alpha": 32, "use_rslora": True},
    "patterns": BOTH | {"rank_pattern": {"first": 2}, "alpha_pattern": {"sec.*": 3}},
    "bias-all": BOTH | {"bias": "all"},
    "bias-lora-only": BOTH | {"target_modules": ["first"], "bias": "lora_only"},
    "random": BOTH | {"init_lora_weights": False},
    "gaussian": BOTH | {"init_lora_weights": "gaussian"},
    "saved": {"target_modules": r"fir.+", "modules_to_save": ["second"]},
    "dora": BOTH | {"use_dora": True},
    "dora-rslora": BOTH | {"use_dora": True, "use_rslora": True, "lora_alpha": 3},
    "lora-bias": BOTH | {"lora_bias": True},
    "pissa": BOTH | {"init_lora_weights": "pissa", "lora_alpha": 2},
    "olora": BOTH | {"init_lora_weights": "olora"},
    "orthogonal": BOTH | {"init_lora_weights": "orthogonal"},
}
# What PEFT cannot do there, or does wrongly: no bias to merge into; an embedding's initialisation passed over
# in silence; a convolution's refused; OLoRA on GPT-2's layers takes the weight the wrong way round.
NOT_IN_PEFT = {
    "lora-bias": {"embedding", "linear-no-bias", "conv2d"},
    "pissa": {"embedding", "conv1d", "conv2d", "conv3d"},
    "orthogonal": {"embedding", "conv1d", "conv2d", "conv3d"},
    "olora": {"embedding", "conv1d", "conv2d", "conv3d", "gpt2-conv1d"},
}
MODEL_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-default": ("llama", {}),
    "llama-task": ("llama", {"task_type": "CAUSAL_LM"}),
    "llama-all-linear": ("llama", {"target_modules": "all-linear", "r": 3, "use_rslora": True}),
    "llama-list": (
        "llama",
        {
            **{"target_modules": ["q_proj", "up_proj"], "layers_to_transform": 1},
            **{"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\.mlp\.up_proj": 5}},
        },
    ),
    "llama-excluded": (
        "llama",
        {"target_modules": "all-linear", "exclude_modules": ["k_proj", "0.mlp.up_proj"]},
    ),
    "llama-regex": ("llama", {"target_modules": r".*\.1\..*_proj", "modules_to_save": ["lm_head"]}),
    "llama-embeddings": ("llama", {"target_modules": ["embed_tokens", "q_proj", "lm_head"]}),
    "llama-saved-embeddings": ("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "gpt2-default": ("gpt2", {}),
    "gpt2-all-linear": ("gpt2", {"target_modules": "all-linear", "bias": "lora_only"}),
    "bert-default": ("bert", {}),
    "bert-bias": ("bert", {"target_modules": "all-linear", "bias": "all"}),
    "classifier": ("bert-classifier", {"task_type": "SEQ_CLS"}),
    "classifier-saved": ("bert-classifier", {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "t5-default": ("t5", {"task_type": "SEQ_2_SEQ_LM"}),
    "t5-all-linear": ("t5", {"target_modules": "all-linear", "init_lora_weights": "gaussian"}),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        pairs = {
            f"{kind}-{name}": (LAYERS[kind], settings)
            for kind in LAYERS
            for name, settings in LAYER_SETTINGS.items()
            if kind not in NOT_IN_PEFT.get(name, ())
        }
        pairs |= {name: (MODELS[kind], settings) for name, (kind, settings) in MODEL_SETTINGS.items()}
        metafunc.parametrize(("case", "settings"), pairs.values(), ids=pairs)
