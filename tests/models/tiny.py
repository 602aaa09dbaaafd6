"""A base model small enough to train in milliseconds, made on the spot: a random Llama and a real tokenizer.

Not a test: `conftest.py` of the folders beside this one reads it.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = [
    "the",
    "little",
    "dog",
    "ran",
    "to",
    "a",
    "big",
    "tree",
    "and",
    "saw",
    "one",
    "red",
    "bird",
    "sing",
    "in",
    "the",
    "sun",
]
POSITIONS = 128


def make_tokenizer(*, chat: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 300 tokens, with a chat template and its marks if `chat`."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=["<|pad|>", "<|end|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>" if chat else "<|end|>",
        chat_template=CHATML if chat else None,
    )


def make_model(width: int = 16, seed: int = 0) -> LlamaForCausalLM:
    """A random Llama of two layers with 128 positions."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=POSITIONS,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


def write_base(folder: Path, *, width: int = 16, chat: bool = False, seed: int = 0) -> Path:
    """Write a model folder and return it."""
    make_model(width, seed).save_pretrained(folder)
    make_tokenizer(chat=chat).save_pretrained(folder)
    return folder


def make_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows of prompt and completion, of very uneven lengths."""
    generator = torch.Generator().manual_seed(seed)

    def words(most: int) -> str:
        size = int(torch.randint(1, most + 1, (), generator=generator))
        picks = torch.randint(0, len(WORDS), (size,), generator=generator).tolist()
        return " ".join(WORDS[pick] for pick in picks)

    return [{"prompt": words(12), "completion": words(20)} for _ in range(count)]


def write_jsonl(path: Path, rows: Sequence[object]) -> Path:
    """Write one JSON value a line and return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    return path
