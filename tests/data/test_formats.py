"""The door of the formats: every entry keeps its contract, and a row is taken for what it is."""

import pytest

from loralab.data import formats
from loralab.data.fields import Row
from loralab.data.templates import TEMPLATES
from loralab.data.types import Chat, Message, Text
from loralab.errors import ConfigError, DataError

USER, ANSWER = Message("user", "Hi"), Message("assistant", "Yes")
ROWS: dict[str, tuple[Row, Text | Chat]] = {
    "text": ({"text": "Once"}, Text("Once")),
    "completion": ({"prompt": "Hi", "completion": "Yes"}, Chat((USER, ANSWER))),
    "alpaca": ({"instruction": "Hi", "output": "Yes"}, Chat((USER, ANSWER))),
    "messages": (
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]},
        Chat((USER, ANSWER)),
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]},
        Chat((USER, ANSWER)),
    ),
}


def test_every_format_has_a_row_here() -> None:
    assert formats.names() == sorted(ROWS)


@pytest.mark.parametrize("name", formats.names())
def test_an_entry_keeps_the_contract(name: str) -> None:
    entry = formats.get(name)
    row, expected = ROWS[name]
    assert entry.columns
    assert not set(entry.columns) & set(entry.optional)
    assert entry.template in TEMPLATES
    assert entry.template not in ("auto", "tokenizer")
    assert entry.parse(row, "a.jsonl:1") == expected


@pytest.mark.parametrize("name", formats.names())
def test_a_format_is_detected_whatever_other_columns_there_are(name: str) -> None:
    row, _ = ROWS[name]
    assert formats.detect({*row, "id", "lang"}, "a.jsonl:1").name == name


@pytest.mark.parametrize("name", formats.names())
@pytest.mark.parametrize("value", [None, 3, True, {"a": 1}, ["a"], "\ud800", []])
def test_a_column_of_another_type_names_the_row_and_the_column(name: str, value: object) -> None:
    entry = formats.get(name)
    row, _ = ROWS[name]
    for column in entry.columns:
        with pytest.raises(DataError, match=rf"^a\.jsonl:7: '{column}'"):
            entry.parse({**row, column: value}, "a.jsonl:7")


def test_two_matches_ask_which() -> None:
    with pytest.raises(
        DataError, match=r"'completion', 'text'; say which: --format completion or --format text"
    ):
        formats.detect({"text", "prompt", "completion"}, "a.jsonl:1")


def test_no_match_names_the_columns_and_the_nearest_ones() -> None:
    with pytest.raises(DataError) as caught:
        formats.detect(["promt", "completion"], "train.jsonl:118")
    message = str(caught.value)
    assert message.startswith("train.jsonl:118: row has columns 'promt', 'completion'; ")
    assert "format 'completion' needs 'prompt', 'completion'" in message
    assert message.endswith("'promt'? Did you mean 'prompt'?")


def test_a_row_that_departs_from_its_format_is_told_so() -> None:
    entry = formats.get("completion")
    formats.check_columns(entry, ["completion", "id", "prompt"], "a.jsonl:2")
    with pytest.raises(DataError) as caught:
        formats.check_columns(entry, ["promt", "completion"], "a.jsonl:3")
    assert str(caught.value) == (
        "a.jsonl:3: row has columns 'promt', 'completion'; format 'completion' needs 'prompt', 'completion'. "
        "'promt'? Did you mean 'prompt'?"
    )


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown data format 'alpacca'.*Did you mean 'alpaca'"):
        formats.get("alpacca")


@pytest.mark.parametrize("empty", [{}, {"input": ""}, {"input": None}, {"input": None, "system": None}])
def test_alpaca_without_an_input(empty: Row) -> None:
    row, expected = ROWS["alpaca"]
    assert formats.get("alpaca").parse({**row, **empty}, "") == expected


def test_alpaca_with_an_input_and_a_system_turn() -> None:
    row: Row = {"instruction": "Sum.", "input": "1 2", "output": "3", "system": "Be brief."}
    chat = formats.get("alpaca").parse(row, "")
    assert chat == Chat(
        (Message("system", "Be brief."), Message("user", "Sum.\n\n1 2", "1 2"), Message("assistant", "3"))
    )
    with pytest.raises(DataError, match="'input' must be a string, found a number"):
        formats.get("alpaca").parse({**row, "input": 3}, "a.json:row 1")


def test_sharegpt_knows_its_speakers() -> None:
    speakers = ["system", "human", "function_call", "observation", "gpt", "user", "tool", "assistant"]
    turns = [{"from": name, "value": name} for name in speakers]
    chat = formats.get("sharegpt").parse({"conversations": turns}, "")
    assert isinstance(chat, Chat)
    assert [message.role for message in chat.messages] == [
        *("system", "user", "assistant", "tool", "assistant", "user", "tool", "assistant")
    ]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (["Hi"], "turn 1 must be an object with 'role', 'content', found a string"),
        ([{"role": "user"}], "turn 1 has 'role'; it needs 'role', 'content'"),
        ([{"role": "asistant", "content": "Hi"}], "Did you mean 'assistant'"),
        ([{"role": None, "content": "Hi"}], "turn 1: 'role' must be a string, found null"),
        (
            [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}],
            "turn 2: 'content' must",
        ),
        ([{"role": "user", "content": "Hi"}], "has no assistant turn, so there is nothing to train"),
        (
            [{"role": "assistant", "content": "", "tool_calls": [{}]}],
            "turn 1 has 'tool_calls', which no template",
        ),
    ],
)
def test_a_bad_turn_is_named(turns: list[object], message: str) -> None:
    with pytest.raises(DataError) as caught:
        formats.get("messages").parse({"messages": turns}, "a.jsonl:4")
    assert str(caught.value).startswith("a.jsonl:4: 'messages'")
    assert message in str(caught.value)
