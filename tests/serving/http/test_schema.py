"""schemathesis: requests made from the OpenAPI document, valid and not, find no failure of the server."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis import checks as known

known.load_all_checks()
CHECKS = [
    known.not_a_server_error,
    *known.CHECKS.get_by_names(
        [
            "status_code_conformance",
            "content_type_conformance",
            "response_headers_conformance",
            "response_schema_conformance",
        ]
    ),
]
WRITES = ("/v1/completions", "/v1/chat/completions")


@pytest.fixture(scope="module")
def document(server: Any) -> Any:
    """The server's OpenAPI document."""
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def operations(document: Any) -> list[Any]:
    """What the document describes."""
    return [found.ok() for found in document.get_all_operations()]


def test_every_route_is_in_the_document(document: Any) -> None:
    found = {(operation.method.upper(), operation.path) for operation in operations(document)}
    assert found == {
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/{model}"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("GET", "/lora-adapters"),
        ("POST", "/lora-adapters"),
        ("GET", "/v1/adapters"),
        ("GET", "/v1/adapters/{name}"),
        ("POST", "/v1/adapters/{name}/load"),
        ("POST", "/v1/adapters/{name}/unload"),
        ("POST", "/v1/adapters/{name}/pin"),
        ("POST", "/v1/adapters/{name}/unpin"),
        ("GET", "/health"),
        ("GET", "/health/live"),
        ("GET", "/health/ready"),
        ("GET", "/metrics"),
    }


def send_many(operation: Any, mode: GenerationMode) -> set[int]:
    """Send requests to a route, hold the answers to the document, and return their codes."""
    seen: set[int] = set()
    writes = operation.path in WRITES

    @settings(
        max_examples=60 if writes else 15,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        if writes and mode is GenerationMode.POSITIVE:
            # A model that is there, a short answer, and no field that another one contradicts.
            case.body |= {"model": "poet", "max_tokens": 3}
            for name in ("max_completion_tokens", "top_logprobs", "stream_options"):
                case.body.pop(name, None)
        response = case.call(timeout=60)
        case.validate_response(response, checks=CHECKS)
        seen.add(response.status_code)

    send()
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_whatever_is_sent_the_answer_is_as_described(
    server: Any, document: Any, mode: GenerationMode
) -> None:
    wanted = {200} if mode is GenerationMode.POSITIVE else {400, 422}
    for operation in operations(document):
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue  # any text is a name
        seen = send_many(operation, mode)
        if operation.path in WRITES:
            assert wanted & seen, f"{operation.path}: {seen}"
    assert server.text(model="tiny")
