"""Three real tokenizers that differ in what matters: how they open a text, and how they split it."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_chatml_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 300 tokens with the marks of ChatML and a chat template of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(
        ["once upon a time\n\nthe answer\n\nthe user asked the assistant\n\n"] * 4, trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )


@pytest.fixture(scope="session")
def chatml() -> PreTrainedTokenizerFast:
    """Made here; it opens a text with nothing and has a chat template."""
    return build_chatml_tokenizer()


@pytest.fixture(scope="session")
def stories(stories_model_dir: Path) -> PreTrainedTokenizerFast:
    """SentencePiece-like: opens a text with <s> and a space that the text does not have."""
    return AutoTokenizer.from_pretrained(stories_model_dir)


@pytest.fixture(scope="session")
def gpt2(assets: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 50,257 tokens; opens a text with nothing."""
    return AutoTokenizer.from_pretrained(assets / "tokenizers" / "gpt2")


@pytest.fixture(params=["chatml", "stories", "gpt2"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """Each of the three."""
    return request.getfixturevalue(request.param)
