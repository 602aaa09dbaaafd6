"""``/health``: whether the server works, and whether it takes requests. No key is needed."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from loralab.serving.errors import Unavailable
from loralab.serving.http.site import SiteOf

router = APIRouter(prefix="/health", tags=["loralab"])


class Health(BaseModel):
    """How the server is."""

    status: Literal["ready", "draining"]


@router.get("")
async def health(site: SiteOf) -> Health:
    """Tell whether requests are taken: 503 while the server stops, or if its engine is dead."""
    state = site.engine.state
    if state != "ready":
        raise Unavailable(f"the server is {state}.")
    return Health(status="ready")


@router.get("/ready")
async def ready(site: SiteOf) -> Health:
    """Tell the same: for a balancer, which sends requests elsewhere."""
    return await health(site)


@router.get("/live")
async def live(site: SiteOf) -> Health:
    """Tell whether the engine works, also while it stops: for a supervisor, which starts it anew."""
    state = site.engine.state
    if state == "dead":
        raise Unavailable("the server is dead.")
    return Health(status=state)
