"""OpenAI's messages: turns of a role and a content, with tools, their calls and their answers."""

import json
from collections.abc import Mapping

from loralab.data.fields import (
    Turn,
    check_json,
    check_trainable,
    kind,
    optional_text,
    quoted,
    read_role,
    read_text,
    read_turns,
)
from loralab.data.types import Message, ToolCall
from loralab.errors import DataError

__all__ = ["SPOKEN", "read_messages", "read_tools"]

SPOKEN = "'role' 'assistant'"
"""How a turn of the assistant is written."""

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


def read_messages(row: Mapping[str, object], column: str, source: str) -> tuple[Message, ...]:
    """Return the conversation in a column.

    Raises:
        DataError: it is badly nested or empty, or has an unknown role.
    """
    return tuple(_read_message(turn, where) for turn, where in read_turns(row, column, source))


def read_tools(row: Mapping[str, object], source: str) -> tuple[Mapping[str, object], ...]:
    """Return the column `tools`, if the row has one: a list of functions, or that list as a string of JSON.

    Raises:
        DataError: it is neither, or a function has no name.
    """
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        tools = _parse(tools, f"{source}: 'tools'")
    if tools in (None, "", []):
        return ()
    if not isinstance(tools, list):
        raise DataError(f"{source}: 'tools' must be a list of functions, found {kind(tools)}.")
    return tuple(_read_tool(tool, f"{source}: 'tools' entry {n}") for n, tool in enumerate(tools, start=1))


def _read_tool(tool: object, where: str) -> Mapping[str, object]:
    function = tool.get("function", tool) if isinstance(tool, dict) else tool
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(
            f'{where} must be a function with a name: {{"type": "function", "function": {{"name": "..."}}}}.'
        )
    check_json(function, where)
    return {"type": "function", "function": function}


def _read_message(turn: Turn, where: str) -> Message:
    check_trainable(turn, where, but=("tool_calls",))
    calls = _read_calls(turn, where)
    # A turn that calls need not speak.
    spoken = {**turn, "content": turn.get("content") or ""} if calls else turn
    role = read_role(spoken, ("role", "content"), _ROLES, where)
    if calls and role != "assistant":
        raise DataError(
            f"{where} has 'tool_calls', but only the assistant calls tools; its 'role' is {role!r}."
        )
    content = _read_content(spoken, where)
    identity = {key: optional_text(turn, key, where) for key in ("tool_call_id", "name")}
    return Message(role, content, tool_calls=calls, **identity)


def _read_content(turn: Turn, where: str) -> str:
    """Return the text of a turn: a string, or the texts of a list of parts."""
    parts = turn["content"]
    if not isinstance(parts, list):
        return read_text(turn, "content", where)
    texts = []
    for number, part in enumerate(parts, start=1):
        place = f"{where}: 'content' part {number}"
        if not isinstance(part, dict):
            raise DataError(f"{place} must be an object with 'type', 'text', found {kind(part)}.")
        if part.get("type") != "text" or "text" not in part:
            raise DataError(f"{place} is of type {part.get('type')!r}; only 'text' can be trained.")
        texts.append(read_text(part, "text", place))
    return "".join(texts)


def _read_calls(turn: Turn, where: str) -> tuple[ToolCall, ...]:
    calls = turn.get("tool_calls")
    if calls in (None, []):
        return ()
    if not isinstance(calls, list):
        raise DataError(f"{where}: 'tool_calls' must be a list, found {kind(calls)}.")
    return tuple(_read_call(call, f"{where}: tool call {n}") for n, call in enumerate(calls, start=1))


def _read_call(call: object, where: str) -> ToolCall:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise DataError(f"{where} must be an object with 'function', found {kind(call)}.")
    if "name" not in function or "arguments" not in function:
        raise DataError(f"{where} has {quoted(list(function))}; a function needs 'name', 'arguments'.")
    arguments = function["arguments"]
    if isinstance(arguments, str):
        arguments = _parse(arguments or "{}", f"{where}: 'arguments'")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise DataError(f"{where}: 'arguments' must be an object, found {kind(arguments)}.")
    check_json(arguments, f"{where}: 'arguments'")
    return ToolCall(read_text(function, "name", where), arguments, optional_text(call, "id", where))


def _parse(text: str, where: str) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: a string that is no JSON: {' '.join(str(error).split())}.") from None
    return value
