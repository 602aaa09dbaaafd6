"""What the model is given, and that a packed example gets the logits that it gets alone."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from loralab.data.batch import Batch, Isolation, collate, collate_parts
from loralab.data.types import Example
from loralab.errors import DataError

ISOLATIONS: list[Isolation] = ["positions", "mask", "rows"]
LENGTHS = [9, 4, 1, 5, 3, 6]


def example(length: int, first: int) -> Example:
    return Example(tuple(range(first, first + length)), (0.0,) + (1.0,) * (length - 1))


EXAMPLES = [example(length, 20 * number + 10) for number, length in enumerate(LENGTHS)]


def documents_of(batch: Batch) -> list[tuple[list[int], list[float], list[int]]]:
    """The ids, weights and positions of each document in the batch, in the order of its rows."""
    found = []
    for row in range(len(batch.input_ids_BT)):
        for number in range(int(batch.documents_BT[row].max()) + 1):
            inside = batch.documents_BT[row] == number
            tensors = (batch.input_ids_BT, batch.weights_BT, batch.position_ids_BT)
            found.append(tuple(tensor[row][inside].tolist() for tensor in tensors))
    return found


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_batch_holds_every_example_once(isolation: Isolation) -> None:
    batch = collate(EXAMPLES, 0, isolation)
    expected = [(list(one.ids), list(one.weights), list(range(len(one.ids)))) for one in EXAMPLES]
    assert sorted(documents_of(batch)) == sorted(expected)
    assert batch.tokens == sum(LENGTHS)
    assert batch.trained_weight == sum(one.trained for one in EXAMPLES)
    assert batch.fill == batch.tokens / batch.input_ids_BT.numel()
    assert batch.input_ids_BT.shape[1] == max(LENGTHS)
    padding = batch.documents_BT < 0
    assert not batch.input_ids_BT[padding].any()
    assert not batch.weights_BT[padding].any()
    # The first token of a document has nothing to be predicted from.
    assert not batch.weights_BT[batch.position_ids_BT == 0].any()


def test_packing_fills_rows() -> None:
    assert collate(EXAMPLES, 0, "rows").input_ids_BT.shape == (6, 9)
    assert collate(EXAMPLES, 0, "positions").input_ids_BT.shape == (4, 9)


def test_documents_stand_one_behind_the_other() -> None:
    batch = collate([example(2, 5), example(4, 9)], 3, "documents")
    assert batch.input_ids_BT.tolist() == [[9, 10, 11, 12, 5, 6]]
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert batch.bounds.tolist() == [0, 4, 6]
    inputs = batch.model_inputs("documents", torch.bfloat16)
    assert inputs["cu_seq_lens_q"].tolist() == [0, 4, 6]
    assert inputs["attention_mask"].shape == (1, 1, 1, 1)


def test_rows_of_documents_are_full_and_of_few_widths() -> None:
    widths, fills = set(), []
    for tokens in range(1, 2050):
        batch = collate(
            [example(tokens - tokens // 3, 5), example(tokens // 3, 9)][: 1 + (tokens > 2)], 0, "documents"
        )
        if tokens > 2:
            assert batch.bounds.tolist() == [0, tokens - tokens // 3, batch.input_ids_BT.shape[1]]
            widths.add(batch.input_ids_BT.shape[1])
            fills.append(batch.fill)
    assert sum(fills) / len(fills) > 0.98
    assert min(fills) > 0.98
    assert len(widths) < 460


def test_types_and_padding() -> None:
    batch = collate([example(2, 5), example(4, 9)], 3, "rows")
    assert batch.input_ids_BT.tolist() == [[5, 6, 3, 3], [9, 10, 11, 12]]
    assert batch.position_ids_BT.tolist() == [[0, 1, 0, 1], [0, 1, 2, 3]]
    assert batch.documents_BT.tolist() == [[0, 0, -1, -1], [0, 0, 0, 0]]
    tensors = (batch.input_ids_BT, batch.position_ids_BT, batch.weights_BT, batch.documents_BT)
    assert [tensor.dtype for tensor in tensors] == [torch.int64, torch.int64, torch.float32, torch.int64]
    assert batch.to("meta").weights_BT.device.type == "meta"


def test_what_the_model_is_given() -> None:
    batch = collate([example(3, 5), example(1, 9), example(1, 11)], 0, "mask")
    assert set(batch.model_inputs("positions", torch.float32)) == {"input_ids", "position_ids"}
    mask = batch.model_inputs("mask", torch.bfloat16)["attention_mask"]
    low = torch.finfo(torch.bfloat16).min
    assert mask.dtype == torch.bfloat16
    assert mask.shape == (2, 1, 3, 3)
    assert mask[0, 0].tolist() == [[0, low, low], [0, 0, low], [0, 0, 0]]
    assert mask[1, 0].tolist() == [[0, low, low], [low, 0, low], [low, low, 0]]
    rows = collate([example(3, 5), example(1, 9)], 0, "rows").model_inputs("rows", torch.float32)
    assert set(rows) == {"input_ids", "attention_mask"}
    assert rows["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_no_examples_make_no_batch() -> None:
    with pytest.raises(DataError, match="at least one example"):
        collate([], 0, "rows")
    with pytest.raises(DataError, match="at least one example"):
        collate_parts([EXAMPLES, []], 0, "documents")


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_parts_have_rows_of_their_own(isolation: Isolation) -> None:
    parts = [EXAMPLES[3:], EXAMPLES[:1], EXAMPLES[1:3]]
    batch, counts = collate_parts(parts, 0, isolation)
    assert batch.input_ids_BT.shape == (sum(counts), max(LENGTHS))
    start = 0
    for part, count in zip(parts, counts, strict=True):
        alone = collate(part, 0, isolation)
        width = alone.input_ids_BT.shape[1]
        assert len(alone.input_ids_BT) == count or width < max(LENGTHS)
        rows = slice(start, start + count)
        own = Batch(*(getattr(batch, name)[rows] for name in Batch.__slots__))
        assert sorted(documents_of(own)) == sorted(documents_of(alone))
        start += count


def test_parts_of_one_row_stand_one_behind_the_other() -> None:
    parts = [[example(2, 5), example(40, 50)], [example(87, 100)]]
    batch, counts = collate_parts(parts, 3, "documents")
    assert counts == [42, 88], "the padding is the last one's"
    assert batch.bounds.tolist() == [0, 40, 42, 130]
    ids = [*range(50, 90), 5, 6, *range(100, 187), 3]
    assert batch.input_ids_BT.tolist() == [ids]
    assert batch.weights_BT[0, [0, 40, 42, 129]].tolist() == [0, 0, 0, 0]


@pytest.fixture(scope="module")
def model(stories_model_dir: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(stories_model_dir, dtype=torch.float32).eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_an_example_gets_the_logits_that_it_gets_alone(
    model: PreTrainedModel, isolation: Isolation, attention: str
) -> None:
    model.set_attn_implementation(attention)
    batch = collate(EXAMPLES, 0, isolation)
    with torch.no_grad():
        together = model(**batch.model_inputs(isolation, torch.float32), use_cache=False).logits
        for row in range(len(together)):
            for number in range(int(batch.documents_BT[row].max()) + 1):
                inside = batch.documents_BT[row] == number
                alone = model(input_ids=batch.input_ids_BT[row][inside][None], use_cache=False).logits[0]
                torch.testing.assert_close(together[row][inside], alone, rtol=0, atol=2e-5)
