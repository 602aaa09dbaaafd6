"""Every error as OpenAI's clients expect it: ``{"error": {message, type, param, code}}``."""

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from loralab.errors import LoralabError
from loralab.serving.errors import BadRequest, ServingError

__all__ = ["RESPONSES", "UNKNOWN", "UNSUPPORTED", "Failure", "Unauthorized", "add_handlers", "error_body"]

UNSUPPORTED = "unsupported"
"""Pydantic's type of an error that says: this field, or this value of it, would be without effect here."""

UNKNOWN = "unknown_field"
"""And of one that says: there is no such field."""


class Failure(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = Field(default=None, description="The field that is at fault.")
    code: str | int | None = None


class ErrorBody(BaseModel):
    """An error as OpenAI's clients expect it."""

    error: Failure


class Unauthorized(ServingError):
    """No key, or one that is not in the file."""

    status, kind, code = 401, "authentication_error", "invalid_api_key"


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": HTTPStatus(status).phrase}
    for status in (400, 401, 403, 404, 409, 413, 422, 429, 500, 503, 507)
}
"""What any route may answer besides its own."""

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def add_handlers(app: FastAPI) -> None:
    """Answer every kind of exception in that shape."""
    app.add_exception_handler(ServingError, _of_serving)
    app.add_exception_handler(LoralabError, _of_loralab)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(Exception, _of_a_bug)


def error_body(error: LoralabError) -> dict[str, Any]:
    """Return the body for an error, as also the frames of a stream have it."""
    if not isinstance(error, ServingError):
        # What the engine says of an adapter or of a setting is about what was asked for.
        error = BadRequest(str(error))
    message = " ".join(str(error).split())
    # It is the field "model" that names what is not there.
    param = "model" if error.code == "model_not_found" else None
    return {"error": {"message": message, "type": error.kind, "param": param, "code": error.code}}


def _answer(
    request: Request, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> JSONResponse:
    record = getattr(request.state, "record", None)
    if record is not None:
        record.error = body["error"]["message"]
    return JSONResponse(body, status, headers=dict(headers or {}))


async def _of_serving(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServingError)
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return _answer(request, error.status, error_body(error), headers)


async def _of_loralab(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LoralabError)
    return _answer(request, 400, error_body(error))


async def _of_validation(request: Request, error: Exception) -> JSONResponse:
    """A fault of the body: 400 if it is no JSON or asks for what is not done here, else 422."""
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    first = next((fault for fault in faults if fault["type"] in (UNSUPPORTED, UNKNOWN)), faults[0])
    message, about = str(first["msg"]), first.get("ctx", {})
    place = [str(part) for part in (*first["loc"], *_named(about)) if _is_place(part)]
    param = ".".join(place) or None
    status, code = 422, "invalid_value"
    if first["type"] == "json_invalid":
        status, param, code = 400, None, "invalid_json"
        message = f"the body is no JSON: {about['error']}."
    elif first["type"] in (UNSUPPORTED, UNKNOWN):
        status, code = 400, "unsupported_value" if first["type"] == UNSUPPORTED else UNKNOWN
        message = f"{param}: {message}" if param else message
    elif param:
        message = f"{param}: {message[0].lower()}{message[1:]}."
    else:
        message = "the body is no JSON object; send one, with the header 'content-type: application/json'."
    failure = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return _answer(request, status, {"error": failure})


def _is_place(part: object) -> bool:
    """Whether a part of a fault's place is a field or a number, not pydantic's name of a type."""
    return part not in ("body", "str") and "[" not in str(part)


def _named(about: Mapping[str, Any]) -> tuple[str, ...]:
    return (str(about["field"]),) if "field" in about else ()


async def _of_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind = _KINDS.get(
        error.status_code, "server_error" if error.status_code >= 500 else "invalid_request_error"
    )
    message = str(error.detail)
    if error.status_code in (404, 405):
        message = f"{request.method} {request.url.path}: {message.lower()}; the routes are in /openapi.json."
    code = HTTPStatus(error.status_code).name.lower()
    failure = {"message": message, "type": kind, "param": None, "code": code}
    return _answer(request, error.status_code, {"error": failure}, error.headers)


async def _of_a_bug(request: Request, error: Exception) -> JSONResponse:
    record = getattr(request.state, "record", None)
    known = f" Its id is {record.id}." if record is not None else ""
    failure = {
        "message": f"the server failed at this request.{known}",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    answer = _answer(request, 500, {"error": failure})
    if record is not None:
        record.error = f"{type(error).__name__}: {error}"
        answer.headers["x-request-id"] = record.id
    return answer
