"""text-generation-webui's format files: rows become a prompt and an answer as the file writes them."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from loralab.data import formats
from loralab.data.encode import encode_chat
from loralab.data.fields import Row
from loralab.data.templates import choose_template
from loralab.data.types import Chat
from loralab.errors import ConfigError, DataError

WRITTEN = {
    "instruction,output": "Do: %instruction%\nDone: %output%",
    "instruction,input,output": "Do: %instruction%\nWith: %input%\nDone: %output%\n--",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my-format.json"
    path.write_text(json.dumps(WRITTEN), encoding="utf8")
    return path


def prompt_and_answer(file: Path, row: Row) -> tuple[str, str]:
    chat = formats.get(str(file)).parse(row, "a.json:row 1")
    assert isinstance(chat, Chat)
    question, answer = chat.messages
    assert (question.role, answer.role) == ("user", "assistant")
    return question.content, answer.content


def test_a_format_file_writes_prompt_and_answer(file: Path) -> None:
    entry = formats.get(str(file))
    assert (entry.columns, entry.template) == ((), "bare")
    assert entry.optional == ("input", "instruction", "output")
    formats.check_columns(entry, ["anything"], "a.json:row 1")
    row: Row = {"instruction": "add", "output": "3", "id": 7, "input": "1 2"}
    assert prompt_and_answer(file, row) == ("Do: add\nWith: 1 2\nDone:", " 3\n--")
    for blank in ({}, {"input": ""}, {"input": " \n"}, {"input": None}):
        kept = {key: value for key, value in row.items() if key != "input"}
        assert prompt_and_answer(file, {**kept, **blank}) == ("Do: add\nDone:", " 3")


def test_a_value_is_not_substituted_again(file: Path) -> None:
    row: Row = {"instruction": "say %output% and %instruction%", "output": "%instruction% 100%"}
    assert prompt_and_answer(file, row) == (
        "Do: say %output% and %instruction%\nDone:",
        " %instruction% 100%",
    )


def test_a_blank_answer_is_left_to_be_rejected(file: Path, chatml: PreTrainedTokenizerFast) -> None:
    chat = formats.get(str(file)).parse({"instruction": "add", "output": " "}, "")
    assert isinstance(chat, Chat)
    assert encode_chat(chat, choose_template(chatml, "bare"), chatml).trained == 0


def test_what_a_format_file_gives_is_trained_from_the_answer_to_the_end(
    file: Path, chatml: PreTrainedTokenizerFast
) -> None:
    chat = formats.get(str(file)).parse({"instruction": "add", "output": "3"}, "")
    assert isinstance(chat, Chat)
    example = encode_chat(chat, choose_template(chatml, "bare"), chatml)
    assert chatml.decode(list(example.ids)) == "Do: add\nDone: 3<|im_end|>"
    start = example.weights.index(1.0)
    assert chatml.decode(list(example.ids[start:])) == " 3<|im_end|>"
    assert set(example.weights[start:]) == {1.0}


def test_a_users_words_go_where_the_format_file_has_them(file: Path) -> None:
    assert "add".join(formats.get(str(file)).prompt) == "Do: add\nDone:"
    twice = {"a,b": "%a%, I said %a%: %b%"}
    file.write_text(json.dumps(twice), encoding="utf8")
    assert "go".join(formats.get(str(file)).prompt) == "go, I said go:"
    file.write_text(json.dumps({"a,b,c": "%a%%b%%c%"}), encoding="utf8")
    assert formats.get(str(file)).prompt == ()
    assert prompt_and_answer(file, {"a": "1", "b": "2", "c": "3"}) == ("12", "3")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"instrucion": "a", "output": "b"},
            "columns 'instrucion', 'output'; my-format.json has the entries",
        ),
        ({"instrucion": "a", "output": "b"}, "'instrucion'. Did you mean 'instruction'"),
        ({"instruction": " ", "output": "b"}, r"\(blank: 'instruction'\)"),
        ({"instruction": "a", "input": 3, "output": "b"}, "'input' must be a string, found a number"),
    ],
)
def test_a_row_that_fits_no_entry(file: Path, row: Row, message: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.json:row 9: .*{message}"):
        formats.get(str(file)).parse(row, "a.json:row 9")


def test_a_row_that_fits_two_entries(file: Path) -> None:
    file.write_text(json.dumps({"a,b": "%a%%b%", "a,c": "%a%%c%"}), encoding="utf8")
    with pytest.raises(
        DataError, match=r"row fits the entries 'a,b', 'a,c' of .* equally; leave one of them"
    ):
        formats.get(str(file)).parse({"a": "1", "b": "2", "c": "3"}, "a.json:row 9")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"my-format\.json:1: malformed JSON"),
        ('{\n"a,b": }', r"my-format\.json:2: malformed JSON at column"),
        ("[]", "expected an object such as .* found a list"),
        ("{}", "expected an object such as"),
        ('{"a,b": 3}', "entry 'a,b': expected how the columns are written, a string; found a number"),
        ('{"a,out": "%a% %ouT%"}', "%out% is not in its text '%a% %ouT%'. Did you mean 'ouT'"),
        ('{"a": "%a%\\ud800"}', "entry 'a' has half a surrogate pair"),
        ('{"": "text"}', "the name of a column is not in its text"),
        ("\xff", "cannot be read"),
    ],
)
def test_a_format_file_that_is_none(file: Path, text: str, message: str) -> None:
    file.write_text(text, encoding="latin1")
    with pytest.raises(ConfigError, match=message) as caught:
        formats.get(str(file))
    assert "\n" not in str(caught.value)


def test_an_unknown_format_is_told_of_files() -> None:
    with pytest.raises(ConfigError, match=r"known are 'alpaca', .*and the path of a \.json file of text-gen"):
        formats.get("webui")
    with pytest.raises(ConfigError, match=r"format none\.json: no such file"):
        formats.get("none.json")
