"""llama.cpp's route for scales: how strongly adapters act on requests that name the base."""

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from loralab.serving.errors import BadRequest
from loralab.serving.http.fields import Body
from loralab.serving.http.site import AdminOf, CallerOf, Site, SiteOf

router = APIRouter(tags=["llama.cpp"])


class ScaledAdapter(BaseModel):
    """An adapter, its number and its scale."""

    id: int
    path: str
    """Its name: where it lies is not told."""
    scale: float


class ScaleBody(Body):
    """A scale for the adapter of a number."""

    id: Annotated[int, Field(ge=0)]
    scale: Annotated[float, Field(allow_inf_nan=False)]


class Done(BaseModel):
    """That it is done."""

    success: Literal[True] = True


@router.get("/lora-adapters")
async def lora_adapters(site: SiteOf, caller: CallerOf) -> list[ScaledAdapter]:
    """List the adapters with their numbers and scales."""
    numbers = await run_in_threadpool(_numbers, site)
    scales = site.engine.library.scales
    return [
        ScaledAdapter(id=number, path=name, scale=scales.get(name, 0.0))
        for number, name in numbers.items()
        if caller.may_use(name)
    ]


@router.post("/lora-adapters")
async def set_scales(body: list[ScaleBody], site: SiteOf, admin: AdminOf) -> Done:
    """Set the scales; an adapter that is not in the list gets 0."""
    numbers = await run_in_threadpool(_numbers, site)
    unknown = next((entry.id for entry in body if entry.id not in numbers), None)
    if unknown is not None:
        raise BadRequest(f"there is no adapter of number {unknown}; GET /lora-adapters has a list.")
    # Put there as a whole: requests read it in their own threads.
    site.engine.library.scales = {numbers[entry.id]: entry.scale for entry in body if entry.scale}
    return Done()


def _numbers(site: Site) -> dict[int, str]:
    """Return the names of the adapters there are by their numbers."""
    names = [entry.name for entry in site.engine.library.entries()]
    # Copied before new ones are added: another thread may do the same.
    found = {site.numbers.setdefault(name, len(site.numbers)): name for name in names}
    return dict(sorted(found.items()))
