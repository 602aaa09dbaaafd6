"""The door of the formats: every entry keeps its contract, and a row is taken for what it is."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loralab.data import formats
from loralab.data.fields import Row
from loralab.data.templates import TEMPLATES
from loralab.data.types import Chat, Message, Text, ToolCall
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
    "question_answer": ({"question": "Hi", "answer": "Yes"}, Chat((USER, ANSWER))),
    "preference": (
        {"chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]},
        Chat((USER, ANSWER)),
    ),
}
SAID, YES = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}


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


CALLED = {"id": "c1", "type": "function", "function": {"name": "get", "arguments": '{"town": "Köln"}'}}
TOOL = {"name": "get", "parameters": {"type": "object"}}


def test_calls_tools_and_their_answers_are_read() -> None:
    said: list[object] = [
        {"role": "developer", "content": "Be brief.", "name": None, "tool_calls": None},
        {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALLED]},
        {"role": "tool", "tool_call_id": "c1", "name": "get", "content": "rain"},
        {"role": "assistant", "content": "Yes", "weight": 1},
    ]
    expected = (
        Message("system", "Be brief."),
        USER,
        Message("assistant", "", tool_calls=(ToolCall("get", {"town": "Köln"}, "c1"),)),
        Message("tool", "rain", tool_call_id="c1", name="get"),
        ANSWER,
    )
    wrapped = {"type": "function", "function": TOOL}
    parse = formats.get("messages").parse
    assert parse({"messages": said}, "") == Chat(expected)
    for tools in ([TOOL], [wrapped], json.dumps([wrapped])):
        assert parse({"messages": said, "tools": tools}, "") == Chat(expected, (wrapped,))
    for none in (None, "", [], "[]"):
        assert parse({"messages": said, "tools": none}, "") == Chat(expected)
    flat = {"role": "assistant", "content": "", "tool_calls": [{"name": "get", "arguments": None}]}
    assert parse({"messages": [SAID, flat]}, "").messages[1].tool_calls == (ToolCall("get", {}),)


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        (3, "'tools' must be a list of functions, found a number"),
        ("{", "'tools': a string that is no JSON"),
        ('{"name": "get"}', "'tools' must be a list of functions, found an object"),
        (["get"], "'tools' entry 1 must be a function with a name"),
        ([{"name": "get", "description": "\ud800"}], "'tools' entry 1 has half a surrogate pair"),
        ([{"name": "get", "since": b"1"}], "'tools' entry 1 cannot be written as JSON"),
        ([{"type": "function", "function": {"parameters": {}}}], "'tools' entry 1 must be a function with"),
    ],
)
def test_bad_tools_are_named(tools: object, message: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.jsonl:4: {message}"):
        formats.get("messages").parse({"messages": [SAID, YES], "tools": tools}, "a.jsonl:4")


def test_question_and_answer_with_a_context() -> None:
    row: Row = {"question": "Who?", "context": "Poe wrote.", "answer": "Poe", "system": "Be brief."}
    assert formats.get("question_answer").parse(row, "") == Chat(
        (
            Message("system", "Be brief."),
            Message("user", "Who?\n\nPoe wrote.", "Poe wrote."),
            Message("assistant", "Poe"),
        )
    )
    empty = {"question": "Hi", "context": None, "system": "", "answer": "Yes"}
    assert formats.get("question_answer").parse(empty, "") == Chat((USER, ANSWER))


words = st.sampled_from(["system", "user", "human", "gpt", "assistant", "tool", "get", "", "{}", "\ud800"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("role", "content", "from", "value", "type", "text", "tool_calls"),
                    "function",
                    "name",
                    "arguments",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("name", formats.names())
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_row_is_read_or_refused_in_one_line(name: str, data: st.DataObject) -> None:
    entry = formats.get(name)
    row = {column: data.draw(values) for column in (*entry.columns, *entry.optional)}
    item = outcome(entry, row)
    if isinstance(item, str):
        assert item.startswith("a.jsonl:1: ")
        assert "\n" not in item
    else:
        assert isinstance(item, Text) or any(message.role == "assistant" for message in item.messages)


def outcome(entry: formats.Format, row: Row) -> Text | Chat | str:
    """What becomes of a row: an item, or what is said against it."""
    try:
        return entry.parse(row, "a.jsonl:1")
    except DataError as error:
        return str(error)


HUMAN = "\n\nHuman: Hi\n\nAssistant: Yes"
MORE = "\n\nHuman: Hi\n\nAssistant: Well.\n\nHuman: So?\n\nAssistant:"


@pytest.mark.parametrize(
    ("row", "roles"),
    [
        ({"prompt": "Hi", "chosen": "Yes"}, "ua"),
        ({"prompt": "Hi", "chosen": [YES]}, "ua"),
        ({"prompt": "Hi", "chosen": [SAID, YES]}, "ua"),
        ({"prompt": "Hi", "chosen": [{"role": "system", "content": "S"}, SAID, YES]}, "sua"),
        ({"prompt": [SAID], "chosen": [YES]}, "ua"),
        ({"prompt": [SAID], "chosen": [SAID, YES]}, "ua"),
        ({"prompt": [SAID, YES, SAID], "chosen": [YES]}, "uaua"),
        ({"prompt": [SAID], "chosen": "Yes"}, "ua"),
        ({"prompt": None, "chosen": [SAID, YES]}, "ua"),
        ({"chosen": HUMAN}, "ua"),
        ({"chosen": MORE + " Yes"}, "uaua"),
        ({"prompt": MORE, "chosen": " Yes"}, "uaua"),
        ({"prompt": "Hi", "chosen": "Yes", "system": "S"}, "sua"),
    ],
)
def test_the_chosen_answer_is_learned_in_each_form(row: Row, roles: str) -> None:
    entry = formats.detect({**row, "rejected": "No", "score": 3}, "a.jsonl:1")
    assert entry.name == "preference"
    chat = entry.parse({**row, "rejected": "No"}, "a.jsonl:1")
    assert "".join(message.role[0] for message in chat.messages) == roles
    assert chat.messages[-1].content.strip() == "Yes"
    assert chat.messages[-2].content in ("Hi", "So?")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "Yes"}, "'chosen' is a text without a 'prompt'; name the column of the prompt"),
        ({"chosen": "\n\nHuman: Hi"}, "'chosen' is a text without a 'prompt'"),
        ({"chosen": [YES]}, "'chosen' begins with the assistant's turn, and there is no 'prompt'"),
        ({"chosen": [SAID]}, "'chosen' has no assistant turn"),
        (
            {"prompt": "Ho", "chosen": [SAID, YES]},
            "'chosen' begins with a turn of the user.*'Ho' of 'prompt'",
        ),
        ({"prompt": 3, "chosen": "Yes"}, "'prompt' must be a string, found a number"),
    ],
)
def test_a_preference_row_that_is_none(row: Row, message: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.jsonl:4: {message}"):
        formats.get("preference").parse(row, "a.jsonl:4")


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (["Hi"], "turn 1 must be an object, found a string"),
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
            "turn 1: tool call 1 has none; a function needs 'name', 'arguments'",
        ),
        ([{**SAID, "tool_calls": [CALLED]}], "only the assistant calls tools; its 'role' is 'user'"),
        ([{**YES, "tool_calls": "get"}], "turn 1: 'tool_calls' must be a list, found a string"),
        ([{**YES, "tool_calls": ["get"]}], "tool call 1 must be an object with 'function', found a string"),
        (
            [{**YES, "tool_calls": [{"name": "get", "arguments": "{x"}]}],
            "tool call 1: 'arguments': a string that is no JSON",
        ),
        (
            [{**YES, "tool_calls": [{"name": "get", "arguments": [1]}]}],
            "'arguments' must be an object, found a list",
        ),
        ([{**YES, "weight": 0}], "turn 1 has 'weight', which this format does not train; leave out"),
        ([{**YES, "reasoning_content": "Hm"}], "turn 1 has 'reasoning_content'"),
        ([{**YES, "function_call": {"name": "get"}}], "write it as 'tool_calls'"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "a.png"}]}],
            "turn 1: 'content' part 1 is of type 'image_url'; only 'text' can be trained",
        ),
        ([{"role": "user", "content": ["Hi"]}], "part 1 must be an object with 'type', 'text'"),
    ],
)
def test_a_bad_turn_is_named(turns: list[object], message: str) -> None:
    with pytest.raises(DataError) as caught:
        formats.get("messages").parse({"messages": turns}, "a.jsonl:4")
    assert str(caught.value).startswith("a.jsonl:4: 'messages'")
    assert message in str(caught.value)
