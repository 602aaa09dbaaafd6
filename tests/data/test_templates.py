"""What a conversation looks like as text, and which of it is trained."""

from collections.abc import Iterator

import pytest
from transformers import PreTrainedTokenizerFast

from loralab.data.templates import Template, choose_template
from loralab.data.types import Chat, Message
from loralab.errors import ConfigError, DataError, ModelError

SYSTEM, USER, ANSWER = Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Yes")
MORE, LAST = Message("user", "Sure?"), Message("assistant", "No")
INPUT = Message("user", "Sum up.\n\nLong text.\n\nMore.", "Long text.\n\nMore.")
ASIDE = Message("tool", "7")


@pytest.fixture
def altered(chatml: PreTrainedTokenizerFast) -> Iterator[PreTrainedTokenizerFast]:
    """A tokenizer whose chat template and end of sequence a test may change."""
    kept = chatml.chat_template, chatml.eos_token
    yield chatml
    chatml.chat_template, chatml.eos_token = kept


def show(template: Template, *messages: Message) -> str:
    """The text of a conversation with [ ] around what is trained."""
    segments = template.render(Chat(messages))
    return "".join(f"[{segment.text}]" if segment.trained else segment.text for segment in segments)


def test_plain(chatml: PreTrainedTokenizerFast) -> None:
    template = choose_template(chatml, "plain", "plain")
    assert (
        show(template, SYSTEM, USER, ANSWER, MORE, LAST)
        == "Be brief.\nHi\n[Yes<|im_end|>]Sure?\n[No<|im_end|>]"
    )


def test_alpaca(chatml: PreTrainedTokenizerFast) -> None:
    template = choose_template(chatml, "plain", "alpaca")
    assert show(template, USER, ANSWER, MORE, LAST) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nHi\n\n### Response:\n[Yes<|im_end|>]\n\n"
        "### Instruction:\nSure?\n\n### Response:\n[No<|im_end|>]\n\n"
    )
    assert show(template, SYSTEM, USER, ASIDE, ANSWER) == (
        "Be brief.\n\n### Instruction:\nHi\n\n### Tool:\n7\n\n### Response:\n[Yes<|im_end|>]\n\n"
    )


def test_alpaca_sets_the_input_apart(chatml: PreTrainedTokenizerFast) -> None:
    assert show(choose_template(chatml, "alpaca", "alpaca"), INPUT, ANSWER) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSum up.\n\n### Input:\nLong text.\n\nMore.\n\n### Response:\n[Yes<|im_end|>]\n\n"
    )


def test_chatml(chatml: PreTrainedTokenizerFast) -> None:
    template = choose_template(chatml, "plain", "chatml")
    assert show(template, SYSTEM, USER, ANSWER) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n[Yes<|im_end|>]\n"
    )


def test_chatml_without_its_mark_ends_turns_with_the_tokenizers_own(gpt2: PreTrainedTokenizerFast) -> None:
    assert show(choose_template(gpt2, "chatml"), USER, ANSWER) == (
        "<|im_start|>user\nHi<|endoftext|>\n<|im_start|>assistant\n[Yes<|endoftext|>]\n"
    )


def test_vicuna(chatml: PreTrainedTokenizerFast) -> None:
    template = choose_template(chatml, "plain", "vicuna")
    assert show(template, SYSTEM, USER, ANSWER, ASIDE, LAST) == (
        "Be brief. USER: Hi ASSISTANT:[ Yes<|im_end|>]TOOL: 7 ASSISTANT:[ No<|im_end|>]"
    )
    assert show(template, USER, ANSWER).endswith(
        "to the user's questions. USER: Hi ASSISTANT:[ Yes<|im_end|>]"
    )


def test_the_tokenizers_own_is_its_text_with_the_answers_marked(chatml: PreTrainedTokenizerFast) -> None:
    template = choose_template(chatml, "plain")
    messages = (SYSTEM, USER, ANSWER, MORE, LAST)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    shown = show(template, *messages)
    assert template.name == "tokenizer"
    assert shown.replace("[", "").replace("]", "") == chatml.apply_chat_template(turns, tokenize=False)
    assert shown.count("[Yes<|im_end|>]\n") == shown.count("[No<|im_end|>]\n") == 1


@pytest.mark.parametrize("name", ["tokenizer", "plain", "alpaca", "chatml", "vicuna"])
def test_a_blank_answer_is_not_trained(chatml: PreTrainedTokenizerFast, name: str) -> None:
    template = choose_template(chatml, "plain", name)
    assert "[" not in show(template, USER, Message("assistant", " \n"))


@pytest.mark.parametrize("name", ["tokenizer", "plain", "alpaca", "chatml", "vicuna"])
def test_a_prompt_is_the_text_before_the_answer(chatml: PreTrainedTokenizerFast, name: str) -> None:
    template = choose_template(chatml, "plain", name)
    messages = (INPUT, ANSWER, ASIDE, Message("assistant", "\nYes"), Message("assistant", " No "), MORE, LAST)
    text, starts = "", []
    for segment in template.render(Chat(messages)):
        if segment.trained:
            starts.append(text)
        text += segment.text
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    assert starts == [template.prompt_text(messages[:index]) for index in answers]


def test_a_line_break_that_ends_an_answer_is_trained_if_there_is_no_other_mark(
    altered: PreTrainedTokenizerFast,
) -> None:
    altered.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    assert show(choose_template(altered, "plain"), USER, ANSWER) == "Hi\n[Yes\n]"


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% if loop.last %}!{% endif %}{{ m['content'] }}{% endfor %}",
        "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}?{% endif %}",
    ],
)
def test_a_template_that_rewrites_earlier_text_is_refused(
    altered: PreTrainedTokenizerFast, source: str
) -> None:
    altered.chat_template = source
    with pytest.raises(DataError, match=r"writes the text before turn .* differently"):
        choose_template(altered, "plain").render(Chat((USER, ANSWER, MORE, LAST)))


def test_a_template_that_refuses_a_conversation_says_why(altered: PreTrainedTokenizerFast) -> None:
    altered.chat_template = "{{ raise_exception('no system turn,\nplease') }}"
    with pytest.raises(DataError, match="refuses this conversation: no system turn, please"):
        choose_template(altered, "plain").prompt_text([SYSTEM])


def test_the_tokenizers_own_cannot_begin_with_the_assistant(chatml: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="needs a turn before the assistant's first"):
        choose_template(chatml, "plain").render(Chat((ANSWER,)))


def test_names(altered: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match=r"unknown template 'vicunna'.*Did you mean 'vicuna'"):
        choose_template(altered, "plain", "vicunna")
    altered.chat_template = None
    assert choose_template(altered, "vicuna").name == "vicuna"
    with pytest.raises(
        ConfigError, match="has no chat template; choose one of plain, alpaca, chatml, vicuna"
    ):
        choose_template(altered, "plain", "tokenizer")
    altered.eos_token = None
    with pytest.raises(ModelError, match="template 'plain' ends an answer with"):
        choose_template(altered, "plain")
