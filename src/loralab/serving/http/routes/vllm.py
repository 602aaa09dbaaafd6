"""vLLM's routes to load and unload adapters, with its texts and codes."""

from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse

from loralab.serving.errors import BadRequest, Conflict, UnknownModel
from loralab.serving.http.fields import Body
from loralab.serving.http.site import AdminOf, SiteOf

router = APIRouter(prefix="/v1", tags=["vLLM"])

_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "It is done."}
}


class LoadBody(Body):
    """An adapter to load."""

    lora_name: str | None = None
    lora_path: str | None = None
    """A folder, below one of those that are served."""
    load_inplace: bool = False
    """Put it in the place of the adapter of that name."""


class UnloadBody(Body):
    """An adapter to unload."""

    lora_name: str | None = None
    lora_int_id: int | None = None
    """vLLM's own number; here the name says all."""


class _BadInput(BadRequest):
    kind = "InvalidUserInput"


class _NotFound(UnknownModel):
    kind = "NotFoundError"


@router.post("/load_lora_adapter", responses=_TEXT)
async def load_lora_adapter(body: LoadBody, site: SiteOf, admin: AdminOf) -> PlainTextResponse:
    """Load an adapter under a name."""
    name, path = body.lora_name, body.lora_path
    if not name or not path:
        raise _BadInput("Both 'lora_name' and 'lora_path' must be provided.")
    try:
        await run_in_threadpool(site.engine.library.load, name, path, replace=body.load_inplace)
    except Conflict:
        raise _BadInput(
            f"The lora adapter '{name}' has already been loaded. "
            "If you want to load the adapter in place, set 'load_inplace' to True."
        ) from None
    except UnknownModel as error:
        raise _NotFound(str(error)) from None
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


@router.post("/unload_lora_adapter", responses=_TEXT)
async def unload_lora_adapter(body: UnloadBody, site: SiteOf, admin: AdminOf) -> PlainTextResponse:
    """Unload an adapter; requests that run with it are finished."""
    name = body.lora_name
    if not name:
        raise _BadInput("'lora_name' needs to be provided to unload a LoRA adapter.")
    try:
        await run_in_threadpool(site.engine.library.unload, name)
    except UnknownModel:
        raise _NotFound(f"The lora adapter '{name}' cannot be found.") from None
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")
