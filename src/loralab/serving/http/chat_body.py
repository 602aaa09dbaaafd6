"""What /v1/chat/completions takes."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from loralab.data.types import Message, ToolCall
from loralab.serving.errors import BadRequest
from loralab.serving.http.fields import Body, GenerationBody, Only, refuse

__all__ = ["ChatBody"]


class _TextPart(Body):
    type: Literal["text"]
    text: str


def _text(part: Any) -> Any:
    if isinstance(part, dict) and part.get("type", "text") != "text":
        raise refuse(f"this server reads text only, not {part['type']!r}.")
    return part


class _Function(Body):
    name: str
    arguments: str = "{}"
    """An object, as JSON text."""


class _Call(Body):
    id: str = ""
    type: Literal["function"] = "function"
    function: _Function

    def call(self, where: str) -> ToolCall:
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except ValueError as error:
            raise BadRequest(
                f"{where}: the arguments of {self.function.name!r} are no JSON: {error}."
            ) from None
        if not isinstance(arguments, dict):
            raise BadRequest(f"{where}: the arguments of {self.function.name!r} are no JSON object.")
        return ToolCall(self.function.name, arguments, self.id)


_Content = str | list[Annotated[_TextPart, BeforeValidator(_text)]]
"""A text, or its parts."""


def _joined(content: _Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class _Said(Body):
    role: Literal["system", "developer", "user"]
    content: _Content
    name: str | None = None

    def message(self, where: str) -> Message:
        role = "user" if self.role == "user" else "system"
        return Message(role, _joined(self.content), name=self.name or "")


class _ToolsAnswer(Body):
    role: Literal["tool"]
    content: _Content
    tool_call_id: str | None = None
    name: str | None = None

    def message(self, where: str) -> Message:
        call, name = self.tool_call_id or "", self.name or ""
        return Message("tool", _joined(self.content), tool_call_id=call, name=name)


class _Answer(Body):
    role: Literal["assistant"]
    content: _Content | None = None
    """Null if it only calls tools."""
    tool_calls: list[_Call] | None = None
    name: str | None = None
    refusal: Annotated[Any, Only()] = None
    function_call: Annotated[Any, Only()] = None
    audio: Annotated[Any, Only()] = None

    def message(self, where: str) -> Message:
        calls = tuple(call.call(where) for call in self.tool_calls or ())
        return Message("assistant", _joined(self.content or ""), tool_calls=calls, name=self.name or "")


_Turn = Annotated[_Said | _ToolsAnswer | _Answer, Field(discriminator="role")]


class _ToolFunction(Body):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Annotated[Any, Only(False)] = None


class _Tool(Body):
    type: Literal["function"]
    function: _ToolFunction


class _ResponseFormat(Body):
    type: str


def _text_only(format: _ResponseFormat | None) -> _ResponseFormat | None:
    if format is not None and format.type != "text":
        raise refuse(f"this server writes text, not {format.type!r}; leave the field out.")
    return format


class ChatBody(GenerationBody):
    """A conversation to go on with."""

    messages: list[_Turn] = Field(min_length=1)
    tools: list[_Tool] | None = None
    """Functions, for the adapter's template. What the model writes of calls comes back as text."""
    tool_choice: Annotated[Any, Only("auto", "none")] = None
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    parallel_tool_calls: Annotated[Any, Only(True)] = None
    response_format: Annotated[_ResponseFormat | None, AfterValidator(_text_only)] = None
    modalities: Annotated[Any, Only(["text"])] = None
    reasoning_effort: Annotated[Any, Only()] = None
    verbosity: Annotated[Any, Only()] = None
    functions: Annotated[Any, Only()] = None
    function_call: Annotated[Any, Only()] = None
    audio: Annotated[Any, Only()] = None
    prediction: Any = None
    web_search_options: Annotated[Any, Only()] = None

    @model_validator(mode="after")
    def _no_contradiction(self) -> "ChatBody":
        if self.top_logprobs is not None and not self.logprobs:
            raise refuse("top_logprobs has an effect with logprobs only; leave it out, or set logprobs.")
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise refuse("max_tokens and max_completion_tokens say the same; give one of them.")
        return self

    @property
    def wanted(self) -> int | None:
        """The longest answer asked for."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """How many likely tokens to tell beside each; None: tell no probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def conversation(self) -> list[Message]:
        """Return the turns. Raises BadRequest for one that makes no sense."""
        return [turn.message(f"messages.{index}") for index, turn in enumerate(self.messages)]

    def functions_offered(self) -> Sequence[dict[str, Any]]:
        """Return the tools for the template."""
        if self.tool_choice == "none":
            return ()
        return [tool.model_dump(exclude_none=True) for tool in self.tools or ()]
