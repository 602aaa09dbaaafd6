"""Checks on the values of a row, each answered with one line that names the row."""

import json
from collections.abc import Iterator, Mapping, Sequence

from loralab.data.types import Message
from loralab.errors import DataError, did_you_mean

__all__ = [
    "Row",
    "Turn",
    "check_answered",
    "check_json",
    "check_trainable",
    "kind",
    "optional_text",
    "quoted",
    "read_role",
    "read_text",
    "read_turns",
]

Row = dict[str, object]
Turn = Mapping[str, object]

_MARKED = "in the marks that the model writes it in"
_UNTRAINED = {
    "tool_calls": "write the rows in the format 'messages'",
    "function_call": "write it as 'tool_calls', in the format 'messages'",
    "weight": "leave out the turns that are not to be trained, or train on the last answer alone",
    "reasoning_content": f"move it into the turn's text, {_MARKED}, or out",
    "thinking": f"move it into the turn's text, {_MARKED}, or out",
}


def kind(value: object) -> str:
    """Return what `value` is, in JSON's words: "an object", "a list", "null"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}
    return names.get(type(value), "a number")


def quoted(names: Sequence[str]) -> str:
    """Return the names in quotes with commas between them."""
    return ", ".join(repr(name) for name in names) or "none"


def read_text(row: Mapping[str, object], column: str, source: str) -> str:
    """Return the string in a column.

    Raises:
        DataError: it is not a string, or not one that UTF-8 can hold.
    """
    value = row[column]
    if not isinstance(value, str):
        raise DataError(f"{source}: '{column}' must be a string, found {kind(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise DataError(
            f"{source}: '{column}' has half a surrogate pair, \\u{code:04x}, at character {error.start + 1}; "
            "write the whole character."
        ) from None
    return value


def optional_text(row: Mapping[str, object], column: str, source: str) -> str:
    """Return the string in a column, "" where the column is missing or null; raises as `read_text`."""
    return read_text(row, column, source) if row.get(column) is not None else ""


def check_json(value: object, where: str) -> None:
    """Hold a nested value to be one that a template can write as JSON.

    Raises:
        DataError: it has half a character, is no JSON, or is nested too deep.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError(f"{where} has half a surrogate pair; write the whole character.") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{where} cannot be written as JSON: {error}.") from None


def read_turns(row: Mapping[str, object], column: str, source: str) -> Iterator[tuple[Turn, str]]:
    """Yield the turns of the conversation in a column, each with where it stands.

    Raises:
        DataError: the column is no list of objects, or an empty one.
    """
    turns = row[column]
    if not isinstance(turns, list):
        raise DataError(f"{source}: '{column}' must be a list of turns, found {kind(turns)}.")
    if not turns:
        raise DataError(f"{source}: '{column}' is empty; a conversation needs at least one turn.")
    for number, turn in enumerate(turns, start=1):
        where = f"{source}: '{column}' turn {number}"
        if not isinstance(turn, dict):
            raise DataError(f"{where} must be an object, found {kind(turn)}.")
        yield turn, where


def read_role(turn: Turn, keys: tuple[str, str], roles: Mapping[str, str], where: str) -> str:
    """Return the role of a `Message` for the speaker of a turn.

    Args:
        keys: the names under which a turn keeps its speaker and its text.
        roles: what a speaker is called in the file -> the role.

    Raises:
        DataError: the turn has not both, or its speaker is unknown.
    """
    if any(key not in turn for key in keys):
        raise DataError(f"{where} has {quoted(list(turn))}; it needs {quoted(keys)}.")
    speaker = read_text(turn, keys[0], where)
    if speaker not in roles:
        hint = did_you_mean(speaker, roles)
        raise DataError(f"{where}: unknown '{keys[0]}' {speaker!r}; known are {quoted(list(roles))}.{hint}")
    return roles[speaker]


def check_trainable(turn: Turn, where: str, *, but: Sequence[str] = ()) -> None:
    """Hold a turn to have nothing that would be lost without a word; `but` are keys that the format reads.

    Raises:
        DataError: it has.
    """
    for key, advice in _UNTRAINED.items():
        if key not in but and turn.get(key) not in (None, "", [], 1):
            raise DataError(f"{where} has '{key}', which this format does not train; {advice}.")


def check_answered(messages: Sequence[Message], where: str, spoken: str) -> None:
    """Hold a conversation to have an answer; `spoken` is how a turn of the assistant is written.

    Raises:
        DataError: the assistant never speaks.
    """
    if all(message.role != "assistant" for message in messages):
        raise DataError(
            f"{where} has no assistant turn, so there is nothing to train; one turn needs {spoken}."
        )
