"""Checks on the values of a row, each answered with one line that names the row."""

from collections.abc import Mapping, Sequence

from loralab.data.types import Message
from loralab.errors import DataError, did_you_mean

__all__ = ["Row", "kind", "quoted", "read_text", "read_turns"]

Row = dict[str, object]

_UNTRAINABLE = ("tool_calls", "function_call", "weight")


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


def read_turns(
    row: Mapping[str, object], column: str, keys: tuple[str, str], roles: Mapping[str, str], source: str
) -> tuple[Message, ...]:
    """Return the conversation in a column, each turn an object of a speaker and a text.

    Args:
        keys: the names under which a turn keeps its speaker and its text.
        roles: what a speaker is called in the file -> the role of a `Message`.

    Raises:
        DataError: the column is no list of such objects, a speaker is unknown, or the assistant never speaks.
    """
    turns = row[column]
    if not isinstance(turns, list):
        raise DataError(f"{source}: '{column}' must be a list of turns, found {kind(turns)}.")
    if not turns:
        raise DataError(f"{source}: '{column}' is empty; a conversation needs at least one turn.")
    messages = tuple(
        _read_turn(turn, keys, roles, f"{source}: '{column}' turn {number}")
        for number, turn in enumerate(turns, start=1)
    )
    if all(message.role != "assistant" for message in messages):
        spoken = [name for name, role in roles.items() if role == "assistant"]
        raise DataError(
            f"{source}: '{column}' has no assistant turn, so there is nothing to train; "
            f"one turn needs '{keys[0]}' {' or '.join(map(repr, spoken))}."
        )
    return messages


def _read_turn(turn: object, keys: tuple[str, str], roles: Mapping[str, str], where: str) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"{where} must be an object with {quoted(keys)}, found {kind(turn)}.")
    missing = [key for key in keys if key not in turn]
    if missing:
        raise DataError(f"{where} has {quoted(list(turn))}; it needs {quoted(keys)}.")
    for key in _UNTRAINABLE:
        if turn.get(key) not in (None, []):
            raise DataError(f"{where} has '{key}', which no template shows; move it into '{keys[1]}' or out.")
    speaker = read_text(turn, keys[0], where)
    if speaker not in roles:
        hint = did_you_mean(speaker, roles)
        raise DataError(f"{where}: unknown '{keys[0]}' {speaker!r}; known are {quoted(list(roles))}.{hint}")
    return Message(roles[speaker], read_text(turn, keys[1], where))
