"""Training and generation see the same ids before an answer; each text is opened once and ended."""

from copy import deepcopy
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from loralab.data.encode import (
    encode_chat,
    encode_chats,
    encode_prompt,
    encode_text,
    encode_texts,
    end_id,
    stop_ids,
)
from loralab.data.templates import choose_template, names
from loralab.data.types import Chat, Example, Message, Text
from loralab.errors import ConfigError, DataError

TEMPLATES = [*names(), "tokenizer"]
LEADS = {"vicuna": " ", "mistral": " "}
STRIPS = ("gemma", "llama-3", "mistral")

awkward = st.text(alphabet="ab \n.é猫<", max_size=12)
answers = awkward.filter(lambda text: bool(text.strip()))
turns = st.lists(st.tuples(awkward, answers), min_size=1, max_size=3)


def converse(pairs: list[tuple[str, str]]) -> Chat:
    messages = [
        Message(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return Chat(tuple(messages))


def answer_starts(example: Example) -> list[int]:
    weights = (0.0, *example.weights)
    return [index for index in range(len(example.ids)) if weights[index + 1] and not weights[index]]


def named(tokenizer: PreTrainedTokenizerFast, name: str) -> str:
    return "auto" if name == "tokenizer" and not tokenizer.chat_template else name


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=turns)
def test_ids_before_an_answer_are_those_of_the_prompt(
    tokenizer: PreTrainedTokenizerFast, name: str, pairs: list[tuple[str, str]]
) -> None:
    template = choose_template(tokenizer, "plain", named(tokenizer, name))
    chat = converse(pairs)
    example = encode_chat(chat, template, tokenizer)
    expected = [
        encode_prompt(chat.messages[: 2 * turn + 1], template, tokenizer) for turn in range(len(pairs))
    ]
    for prompt in expected:
        assert list(example.ids[: len(prompt)]) == prompt
    # With an empty user turn between them, two answers of the plain template may touch.
    starts = answer_starts(example)
    lengths = [max(len(prompt), 1) for prompt in expected]
    assert set(starts) <= set(lengths)
    assert starts[0] == lengths[0]
    assert all(example.weights[length] == 1.0 for length in lengths if length < len(example.ids))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("answer", ["Yes.", "\nYes", "\n\nYes", " Yes", "猫"])
def test_what_is_trained_is_the_answer_and_its_end(
    tokenizer: PreTrainedTokenizerFast, name: str, answer: str
) -> None:
    template = choose_template(tokenizer, "plain", named(tokenizer, name))
    example = encode_chat(converse([("Hi", answer), ("Sure?", answer)]), template, tokenizer)
    lead = LEADS.get(name, "")
    answer = answer.strip() if name in STRIPS else answer
    starts = answer_starts(example)
    assert len(starts) == 2
    for start in starts:
        end = example.ids.index(tokenizer.eos_token_id, start)
        assert set(example.weights[start : end + 1]) == {1.0}
        before, both = (tokenizer.decode(list(example.ids[:stop])) for stop in (start, end))
        assert both[len(before) :] == lead + answer
    assert example.ids[-1] == tokenizer.eos_token_id
    assert example.weights[0] == 0.0


def test_plain_is_prompt_line_break_completion_and_end(stories: PreTrainedTokenizerFast) -> None:
    example = encode_chat(converse([("Hi", "Yes")]), choose_template(stories, "plain"), stories)
    assert list(example.ids) == [*stories("Hi\nYes")["input_ids"], stories.eos_token_id]
    assert example.ids[0] == stories.bos_token_id


def test_a_single_prompt_is_tokenized_as_it_stands(tokenizer: PreTrainedTokenizerFast) -> None:
    template = choose_template(tokenizer, "plain", "vicuna")
    messages = [Message("user", "Hi")]
    assert (
        encode_prompt(messages, template, tokenizer) == tokenizer(template.prompt_text(messages))["input_ids"]
    )
    assert encode_prompt("Once upon", None, tokenizer) == tokenizer("Once upon")["input_ids"]


@pytest.mark.parametrize("name", ["plain", "alpaca", "chatml", "vicuna"])
def test_a_long_conversation_has_the_tokens_of_its_whole_text(
    tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    turn = (
        "Once upon a time the user asked the assistant. " * 3,
        "The answer, and then 3.14 more of it. " * 4,
    )
    template = choose_template(tokenizer, "plain", name)
    chat = converse(
        [(f"{question}{number}?", answer + "Yes.") for number, (question, answer) in enumerate([turn] * 6)]
    )
    example = encode_chat(chat, template, tokenizer)
    text = "".join(segment.text for segment in template.render(chat)).rstrip()
    whole = tokenizer(text)["input_ids"]
    assert list(example.ids) == whole[: len(example.ids)]
    assert len(whole) - len(example.ids) <= 1


def test_a_merge_over_the_border_is_undone(gpt2: PreTrainedTokenizerFast) -> None:
    template = choose_template(gpt2, "plain", "plain")
    example = encode_chat(converse([("Hi", "\n\nYes")]), template, gpt2)
    together = gpt2("Hi\n\n\nYes")["input_ids"]
    assert list(example.ids[: len(together)]) != together
    assert gpt2.decode(list(example.ids)) == "Hi\n\n\nYes<|endoftext|>"


def test_an_answer_tokenized_by_itself_gets_no_space_of_its_own(stories: PreTrainedTokenizerFast) -> None:
    joining = deepcopy(stories)
    joining.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    messages = (Message("user", "ther"), Message("assistant", "e was"))
    template = choose_template(joining, "plain")
    prompt = encode_prompt(messages[:1], template, joining)
    assert joining("there was")["input_ids"][: len(prompt)] != prompt
    example = encode_chat(Chat(messages), template, joining)
    assert list(example.ids[: len(prompt)]) == prompt
    assert joining.decode(list(example.ids)) == "<s> there was"


def test_the_first_token_is_never_trained(chatml: PreTrainedTokenizerFast) -> None:
    template = choose_template(chatml, "plain", "plain")
    example = encode_chat(Chat((Message("assistant", "Yes"),)), template, chatml)
    assert example.weights == (0.0,) + (1.0,) * (len(example.ids) - 1)


def test_the_opening_is_not_doubled(stories: PreTrainedTokenizerFast) -> None:
    template = choose_template(stories, "plain", "plain")
    for text in ("Hi", "<s>Hi"):
        assert encode_prompt([Message("user", text)], template, stories).count(stories.bos_token_id) == 1
        assert encode_text(Text(text), stories).ids.count(stories.bos_token_id) == 1
    assert encode_text(Text("Hi"), stories) == encode_text(Text("<s>Hi</s>"), stories)


def test_a_document_is_opened_ended_and_all_trained(tokenizer: PreTrainedTokenizerFast) -> None:
    example = encode_text(Text("Once upon a time"), tokenizer, "tale.txt:1")
    assert list(example.ids) == [*tokenizer("Once upon a time")["input_ids"], tokenizer.eos_token_id]
    assert example.weights == (0.0,) + (1.0,) * (len(example.ids) - 1)
    assert example.source == "tale.txt:1"


def test_a_blank_text_or_answer_trains_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    template = choose_template(tokenizer, "plain", "alpaca")
    blank = [encode_text(Text(text), tokenizer) for text in ("", " \n")]
    blank.append(encode_chat(converse([("Hi", " \n")]), template, tokenizer))
    for example in blank:
        assert example.trained == 0
        assert len(example.ids) == len(example.weights)


def test_only_the_blank_answer_of_several_is_left_out(tokenizer: PreTrainedTokenizerFast) -> None:
    template = choose_template(tokenizer, "plain", "alpaca")
    example = encode_chat(converse([("Hi", ""), ("Sure?", "Yes")]), template, tokenizer)
    assert len(answer_starts(example)) == 1


def test_a_batch_is_one_at_a_time(tokenizer: PreTrainedTokenizerFast) -> None:
    template = choose_template(tokenizer, "plain")
    chats = [converse([("Hi", "Yes"), ("Sure?", "\nNo")]), converse([("", "Go on.")])]
    single = [encode_chat(chat, template, tokenizer, "a") for chat in chats]
    assert encode_chats(chats, template, tokenizer, ["a", "b"]) == single
    assert encode_chats([], template, tokenizer, []) == []


def test_stop_ids_are_the_end_of_sequence_and_the_mark(chatml: PreTrainedTokenizerFast) -> None:
    template = choose_template(chatml, "plain", "chatml")
    mark, end = chatml.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert stop_ids(template, chatml) == [mark]
    chatml.eos_token = "<|endoftext|>"
    try:
        assert stop_ids(template, chatml) == sorted([mark, end])
    finally:
        chatml.eos_token = "<|im_end|>"


def test_errors_name_the_row(chatml: PreTrainedTokenizerFast) -> None:
    template = choose_template(chatml, "plain")
    with pytest.raises(DataError, match=r"^a\.jsonl:3: the tokenizer's chat template needs a turn before"):
        encode_chat(Chat((Message("assistant", "Yes"),)), template, chatml, "a.jsonl:3")
    with pytest.raises(ConfigError, match="messages need a template"):
        encode_prompt([Message("user", "Hi")], None, chatml)


@pytest.mark.parametrize("name", TEMPLATES)
def test_of_the_last_answer_alone_the_rest_is_as_it_was(
    tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    template = choose_template(tokenizer, "plain", named(tokenizer, name))
    chat = converse([("Hi", "\nYes"), ("Sure?", "No é"), ("So?", "\n\nWell")])
    every = encode_chat(chat, template, tokenizer)
    last = encode_chats([chat], template, tokenizer, [""], last_only=True)[0]
    assert last.ids == every.ids
    start = answer_starts(every)[-1]
    assert answer_starts(last) == [start]
    assert last.weights == (0.0,) * start + every.weights[start:]
    assert list(last.ids[:start]) == encode_prompt(chat.messages[:-1], template, tokenizer)


def test_a_last_answer_that_is_blank_trains_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    template = choose_template(tokenizer, "plain", "chatml")
    chat = converse([("Hi", "Yes"), ("Sure?", " ")])
    assert encode_chat(chat, template, tokenizer).trained
    assert not encode_chats([chat], template, tokenizer, [""], last_only=True)[0].trained


def test_a_document_without_opening_or_end(stories: PreTrainedTokenizerFast) -> None:
    def ids(add_bos: bool, add_eos: bool) -> list[int]:
        return list(encode_texts([Text("Once upon")], stories, [""], add_bos=add_bos, add_eos=add_eos)[0].ids)

    whole = ids(True, True)
    assert [whole[0], whole[-1]] == [stories.bos_token_id, stories.eos_token_id]
    assert ids(False, True) == whole[1:]
    assert ids(True, False) == whole[:-1]
    assert ids(False, False) == whole[1:-1]
    example = encode_texts([Text("Once upon")], stories, [""], add_bos=False)[0]
    assert example.weights == (0.0,) + (1.0,) * (len(whole) - 2)


def test_an_opening_or_end_that_is_not_there_cannot_be_left_out(gpt2: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="add_bos false has no effect: this tokenizer has no such token"):
        encode_texts([Text("Once")], gpt2, [""], add_bos=False)
    endless = deepcopy(gpt2)
    endless.eos_token = None
    with pytest.raises(ConfigError, match="add_eos false has no effect"):
        encode_texts([Text("Once")], endless, [""], add_eos=False)


def test_the_end_of_an_answer_is_a_token_or_none(
    chatml: PreTrainedTokenizerFast, gpt2: PreTrainedTokenizerFast
) -> None:
    assert end_id(choose_template(chatml, "plain", "chatml"), chatml) == chatml.eos_token_id
    assert end_id(choose_template(gpt2, "plain", "gemma"), gpt2) == gpt2.eos_token_id
    spelled = deepcopy(gpt2)
    spelled.chat_template = "{% for m in messages %}{{ m.content }}<end>{% endfor %}"
    template = choose_template(spelled, "plain")
    assert end_id(template, spelled) is None
    assert stop_ids(template, spelled) == [spelled.eos_token_id]


def test_the_source_is_no_part_of_what_an_example_is(chatml: PreTrainedTokenizerFast) -> None:
    example = encode_text(Text("Once"), chatml, "a.txt:1")
    assert example == replace(example, source="b.txt:1")
