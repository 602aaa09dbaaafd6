"""Loss over windows: every token once, weighted alike, as a plain loop over the same windows finds it."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loralab.data.chunk import chunk
from loralab.data.encode import encode_text
from loralab.data.types import Example, Text
from loralab.models import load_base
from loralab.training.evaluation.perplexity import measure_loss, slide
from loralab.training.loop import evaluate
from loralab.training.prepare import causal_lm

ASSETS = os.environ.get("LORALAB_ASSETS")


def document(length: int, seed: int = 0) -> Example:
    ids = torch.randint(4, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Example(tuple(ids), (0.0,) + (1.0,) * (length - 1), "d.txt:1")


@pytest.fixture(scope="module")
def base(tiny_dir):
    return load_base(str(tiny_dir), "float32")


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 200), st.integers(2, 64), st.integers(1, 64))
def test_every_token_but_the_first_is_scored_once(length, max_length, stride):
    stride = min(stride, max_length)
    whole = document(length)
    windows = slide([whole], max_length, stride)
    scored = []
    start = 0
    for index, window in enumerate(windows):
        assert len(window.ids) <= max_length
        assert window.ids == whole.ids[start : start + len(window.ids)]
        scored += [start + i for i, weight in enumerate(window.weights) if weight]
        # All but the last are full, and go on by the stride: one less where no context would be left.
        if index < len(windows) - 1:
            assert len(window.ids) == max_length
        start += min(stride, max_length - 1)
    assert scored == list(range(1, length))


def test_windows_do_not_reach_from_one_document_into_the_next():
    first, second = document(30), document(25, seed=1)
    assert slide([first, second], 16, 8) == slide([first], 16, 8) + slide([second], 16, 8)


def test_the_loss_is_that_of_all_examples_at_once(base, finish):
    task = causal_lm(base)
    windows = slide([document(500)], 20, 7)
    (loss, tokens), told = finish(measure_loss(base.model, task, windows, 2))
    assert (loss, tokens) == (pytest.approx(evaluate(base.model, task, windows, 2)[0], rel=1e-12), 499)
    assert told == sorted(set(told))
    assert told[-1] == tokens
    assert len(told) > 3


def test_stride_as_long_as_the_window_is_evaluation_by_blocks(base, finish):
    task = causal_lm(base)
    text = document(333)
    blocks = chunk(text, (), cutoff_length=32, newline_favor_length=0)
    assert slide([text], 32, 32) == blocks
    assert finish(measure_loss(base.model, task, slide([text], 32, 32), 4))[0] == pytest.approx(
        evaluate(base.model, task, blocks, 4), rel=1e-6
    )


@torch.no_grad()
def sliding_loss(model, ids: list[int], max_length: int, stride: int) -> tuple[float, int]:
    """The loop that people write with transformers alone, but weighted by tokens."""
    total, count, scored = 0.0, 0, 1
    for begin in range(0, len(ids), stride):
        end = min(begin + max_length, len(ids))
        if end > scored:
            input_ids = torch.tensor([ids[begin:end]])
            labels = input_ids.clone()
            labels[:, : scored - begin] = -100
            new = end - scored
            total += float(model(input_ids=input_ids, labels=labels).loss) * new
            count, scored = count + new, end
        if end == len(ids):
            break
    return total / count, count


@pytest.mark.parametrize(("max_length", "stride"), [(64, 1), (64, 16), (64, 63), (128, 50), (10, 3)])
def test_it_agrees_with_a_plain_loop_over_transformers(base, max_length, stride, finish):
    text = document(261)
    expected = sliding_loss(base.model, list(text.ids), max_length, stride)
    found = finish(measure_loss(base.model, causal_lm(base), slide([text], max_length, stride), 3))[0]
    assert found == (pytest.approx(expected[0], rel=1e-5), expected[1])


@pytest.mark.skipif(ASSETS is None, reason="needs LORALAB_ASSETS, for a model that knows its text")
def test_more_context_makes_real_text_likelier(finish):
    base = load_base(str(Path(ASSETS) / "models" / "stories260K"), "float32")
    prompt = base.tokenizer("Once upon a time", return_tensors="pt").input_ids
    torch.manual_seed(0)
    story = base.model.generate(prompt, max_new_tokens=300, do_sample=True, min_new_tokens=300)
    text = encode_text(Text(base.tokenizer.decode(story[0], skip_special_tokens=True)), base.tokenizer)
    task = causal_lm(base)
    losses = [
        finish(measure_loss(base.model, task, slide([text], 32, stride), 8))[0][0] for stride in (32, 16, 8)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.05
