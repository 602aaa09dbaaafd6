"""Golden prompts: the same tokenizer and template give the same ids, and another is found out."""

import copy
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from loralab.data.golden import compare_golden, golden_ids, template_digest
from loralab.data.templates import choose_template, from_jinja

REFUSES_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


def test_the_same_is_the_same(tokenizer: PreTrainedTokenizerFast) -> None:
    for name in ("plain", "alpaca", "vicuna"):
        template = choose_template(tokenizer, name, name)
        kept = golden_ids(template, tokenizer)
        assert list(kept) == ["text", "question", "conversation"]
        assert compare_golden(kept, template, copy.deepcopy(tokenizer)) is None


def test_another_tokenizer_is_found_out(
    chatml: PreTrainedTokenizerFast, gpt2: PreTrainedTokenizerFast
) -> None:
    kept = golden_ids(None, chatml)
    assert list(kept) == ["text"]
    found = compare_golden(kept, None, gpt2)
    assert found is not None
    assert (found.code, found.severity) == ("A301", "warning")
    assert "token 1 of a probe" in found.text


def test_another_template_is_found_out(chatml: PreTrainedTokenizerFast) -> None:
    template = choose_template(chatml, "chatml", "tokenizer")
    kept = golden_ids(template, chatml)
    changed = copy.deepcopy(chatml)
    changed.chat_template = changed.chat_template.replace("assistant\n", "assistant:\n")
    other = choose_template(changed, "chatml", "tokenizer")
    found = compare_golden(kept, other, changed)
    assert found is not None
    assert found.code == "A302"
    assert template_digest(template) != template_digest(other)


def test_a_template_in_other_words_that_writes_the_same_is_no_fault(chatml: PreTrainedTokenizerFast) -> None:
    template = choose_template(chatml, "chatml", "tokenizer")
    worded = from_jinja(chatml, "{# the same #}" + chatml.chat_template, "mine.jinja")
    assert template_digest(template) != template_digest(worded)
    assert compare_golden(golden_ids(template, chatml), worded, chatml) is None


def test_what_a_template_refuses_is_left_out(chatml: PreTrainedTokenizerFast) -> None:
    kept = golden_ids(from_jinja(chatml, REFUSES_SYSTEM, "mine.jinja"), chatml)
    assert list(kept) == ["text", "question"]


@pytest.mark.parametrize("own", [True, False])
def test_a_template_that_reads_the_clock_is_not_compared(
    chatml: PreTrainedTokenizerFast, tmp_path: Path, own: bool
) -> None:
    text = "{{ strftime_now('%d %B %Y') }}" + chatml.chat_template
    clock = copy.deepcopy(chatml)
    clock.chat_template = text
    template = (
        choose_template(clock, "chatml", "tokenizer") if own else from_jinja(chatml, text, "mine.jinja")
    )
    assert list(golden_ids(template, clock)) == ["text"]
