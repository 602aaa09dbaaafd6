"""What a request may say: what changes nothing is taken, what would change the answer is refused by name."""

from typing import Any

import pytest

from loralab.serving.errors import BadRequest
from loralab.serving.http.chat_body import ChatBody

ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0}


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        {"n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}},
        {"n": None, "frequency_penalty": None, "stop": None, "seed": None, "tools": None, "stream": None},
        {"response_format": {"type": "text"}, "parallel_tool_calls": True, "tool_choice": "auto"},
        {"safety_identifier": "x", "prompt_cache_key": "y", "modalities": ["text"]},
        {"max_tokens": None, "max_completion_tokens": 2},
        {"top_k": -1, "top_p": 1, "stop": []},
    ],
)
def test_fields_that_change_nothing_are_taken(server: Any, fields: dict[str, Any]) -> None:
    plain = server.post("/v1/chat/completions", ASKED).json()["choices"]
    reply = server.post("/v1/chat/completions", {**ASKED, **fields})
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"] == plain


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": -1}, "presence_penalty"),
        ({"logit_bias": {"5": 10}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": []}, "functions"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"top_logprobs": 3}, None),
        ({"stream_options": {"include_usage": True}}, None),
        ({"max_tokens": 3, "max_completion_tokens": 4}, None),
    ],
)
def test_a_chat_refuses_by_name(server: Any, fields: dict[str, Any], param: str | None) -> None:
    reply = server.post("/v1/chat/completions", {**ASKED, **fields})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert next(iter(fields)) in error["message"]


@pytest.mark.parametrize(
    "fields", [{"echo": True}, {"suffix": "end"}, {"best_of": 2}, {"n": 3}, {"prompt": ["x"] * 65}]
)
def test_a_completion_refuses_by_name(server: Any, fields: dict[str, Any]) -> None:
    reply = server.write(**fields)
    assert reply.status_code == 400, reply.text
    assert next(iter(fields)) in reply.json()["error"]["message"]


@pytest.mark.parametrize("fields", [{"echo": False}, {"suffix": None}, {"suffix": ""}, {"best_of": 1}])
def test_a_completion_takes_what_changes_nothing(server: Any, fields: dict[str, Any]) -> None:
    assert server.text(**fields) == server.text()


@pytest.mark.parametrize(
    ("prompt", "status"),
    [
        ("", 400),
        ([], 422),
        ([[]], 422),
        ([1.5], 422),
        ([-1], 422),
        ([10**9], 400),
        ([[1], "a"], 422),
        (None, 422),
    ],
    ids=repr,
)
def test_prompts_that_are_none(server: Any, prompt: Any, status: int) -> None:
    reply = server.write(prompt=prompt)
    assert reply.status_code == status, reply.text
    assert status == 400 or "prompt: expected a text, a list of texts" in reply.json()["error"]["message"]
    assert server.write().status_code == 200, "it still works"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"[]", 422),
        (b"[" * 100_000, 400),
        (b"\xff\xfe", 400),
        (b'{"model": "tiny", "prompt": "\\ud800"}', 422),
        (b'{"model": "tiny", "prompt": "a", "temperature": NaN}', 422),
        (b'{"model": "tiny", "prompt": "a", "max_tokens": 1e400}', 422),
        (b'{"model": "tiny", "prompt": "a", "seed": ' + b"9" * 400 + b"}", 422),
    ],
    ids=["torn", "list", "deep", "binary", "surrogate", "nan", "infinite", "long"],
)
def test_bodies_that_are_none(server: Any, content: bytes, status: int) -> None:
    with server.http as http:
        reply = http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert reply.status_code == status, reply.text
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_a_tool_call_comes_to_the_template_as_an_object() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "rain", "arguments": '{"city": "Ulm"}'}}
    body = ChatBody.model_validate(
        {
            "model": "tiny",
            "messages": [
                {"role": "developer", "content": "Be short."},
                {"role": "user", "content": "Rain?"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": "yes"},
            ],
            "tools": [{"type": "function", "function": {"name": "rain", "parameters": {"type": "object"}}}],
        }
    )
    turns = body.conversation()
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "tool"]
    assert (turns[2].tool_calls[0].name, turns[2].tool_calls[0].arguments) == ("rain", {"city": "Ulm"})
    assert turns[3].tool_call_id == "c1"
    assert [tool["function"]["name"] for tool in body.functions_offered()] == ["rain"]
    assert body.model_copy(update={"tool_choice": "none"}).functions_offered() == ()


@pytest.mark.parametrize("arguments", ["{", "[]", "3"])
def test_a_tool_call_without_an_object_is_refused(arguments: str) -> None:
    call = {"function": {"name": "rain", "arguments": arguments}}
    body = ChatBody.model_validate(
        {"model": "tiny", "messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]}
    )
    with pytest.raises(BadRequest, match=r"messages\.0: the arguments of 'rain' are no JSON"):
        body.conversation()
