"""Generated answers: the same alone and in a batch, up to what ends them, with all references of a prompt."""

import pytest
import torch

from loralab.data.dataset import load_dataset
from loralab.data.encode import encode_prompt
from loralab.data.reading import Reading
from loralab.data.templates import choose_template
from loralab.data.types import Message
from loralab.models import load_base
from loralab.training.evaluation.generate import Ends, Question, answer, find_ends, find_questions
from loralab.training.prepare import causal_lm


@pytest.fixture(scope="module")
def base(tiny_dir):
    found = load_base(str(tiny_dir), "float32")
    causal_lm(found)
    return found


@pytest.fixture(scope="module")
def plain(base):
    return find_ends(choose_template(base.tokenizer, "plain"), base.model, base.tokenizer)


@pytest.fixture(scope="module")
def questions(base, train_file, plain):
    return find_questions(load_dataset(train_file, base.tokenizer).examples, base.tokenizer, plain)


def test_rows_with_one_prompt_are_one_question(base, tiny, tmp_path, plain):
    rows = [
        {"prompt": "the dog", "completion": "ran"},
        {"prompt": "a tree", "completion": " big "},
        {"prompt": "the dog", "completion": "saw a bird"},
    ]
    data = load_dataset(tiny.write_jsonl(tmp_path / "d.jsonl", rows), base.tokenizer)
    found = find_questions(data.examples, base.tokenizer, plain)
    assert [question.references for question in found] == [("ran", "saw a bird"), ("big",)]
    assert [question.source for question in found] == ["d.jsonl:1", "d.jsonl:2"]
    template = choose_template(base.tokenizer, "plain")
    prompt = encode_prompt([Message("user", "the dog")], template, base.tokenizer)
    assert list(found[0].ids) == prompt


def test_every_answer_of_a_conversation_is_asked_for_behind_the_turns_before_it(base, tiny, tmp_path, plain):
    turns = [("user", "the dog"), ("assistant", "ran"), ("user", "to"), ("assistant", "a tree")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]}]
    file = tiny.write_jsonl(tmp_path / "d.jsonl", rows)
    reading = Reading(template="plain")
    found = find_questions(load_dataset(file, base.tokenizer, reading).examples, base.tokenizer, plain)
    assert [question.references for question in found] == [("ran",), ("a tree",)]
    template = choose_template(base.tokenizer, "plain")
    for count, question in zip((1, 3), found, strict=True):
        messages = [Message(role, text) for role, text in turns[:count]]
        assert list(question.ids) == encode_prompt(messages, template, base.tokenizer)


def alone(base, question: Question, ends: Ends, room: int) -> str:
    """Greedy generation as transformers alone does it, one prompt and no padding."""
    prompt = torch.tensor([question.ids])
    said = base.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=room,
        do_sample=False,
        eos_token_id=list(ends.ids) or None,
        pad_token_id=base.tokenizer.pad_token_id,
    )
    return base.tokenizer.decode(said[0, prompt.shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_an_answer_does_not_depend_on_who_is_beside_it(base, plain, questions, batch, finish):
    said, told = finish(answer(base.model, base.tokenizer, questions, plain, (12, batch)))
    assert said == [alone(base, question, plain, 12) for question in questions]
    assert len(set(said)) > 3
    assert told[-1] == len(questions)
    assert told == sorted(told)


def test_a_long_prompt_is_answered_as_far_as_the_positions_go(base, tiny, finish):
    long, short = (Question(tuple([40] * length), ("x",), "") for length in (tiny.POSITIONS - 3, 5))
    never = Ends(())
    said, _ = finish(answer(base.model, base.tokenizer, [long, short], never, (20, 8)))
    assert said == [alone(base, long, never, 3), alone(base, short, never, 20)]
    assert said[0] != alone(base, long, never, 2)


def test_an_answer_ends_where_the_mark_of_the_template_is_text(base, questions, finish):
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}~END~{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    tokenizer = base.tokenizer
    tokenizer.chat_template = template
    try:
        ends = find_ends(choose_template(tokenizer, "plain"), base.model, tokenizer)
    finally:
        tokenizer.chat_template = None
    assert ends.text == "~END~"
    never = Ends(())
    whole, _ = finish(answer(base.model, tokenizer, questions[:4], never, (12, 4)))
    # What the model says anyway is taken for the mark.
    mark = whole[0][len(whole[0]) // 2 :][:2]
    cut, _ = finish(answer(base.model, tokenizer, questions[:4], Ends((), mark), (12, 4)))
    assert cut == [text.partition(mark)[0].strip() for text in whole]
    assert cut[0] != whole[0]


def test_what_ends_an_answer_is_in_no_answer_and_no_reference(base, plain, questions, finish):
    marks = base.tokenizer.all_special_tokens
    said, _ = finish(answer(base.model, base.tokenizer, questions, plain, (30, 8)))
    for text in (*said, *(text for question in questions for text in question.references)):
        assert not any(mark in text for mark in marks)
    assert plain.ids
    assert plain.text == ""
