"""``/v1/models``: the base and the adapters."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from loralab.serving.errors import UnknownModel
from loralab.serving.http.keys import Tenant
from loralab.serving.http.site import CallerOf, Site, SiteOf

router = APIRouter(prefix="/v1/models", tags=["OpenAI"])


class ModelCard(BaseModel):
    """A name that a request's field "model" may have."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "loralab"
    root: str
    parent: str | None
    """Of an adapter: the base."""
    max_model_len: int | None


class ModelList(BaseModel):
    """The base and the adapters."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


@router.get("")
async def models(site: SiteOf, caller: CallerOf) -> ModelList:
    """List the base, and the adapters that the key may use."""
    return ModelList(data=await run_in_threadpool(_cards, site, caller))


@router.get("/{model:path}")
async def model(model: str, site: SiteOf, caller: CallerOf) -> ModelCard:
    """Tell of one of them."""
    cards = await run_in_threadpool(_cards, site, caller)
    found = next((card for card in cards if card.id == model), None)
    if found is None:
        raise UnknownModel(f"there is no model {model!r}; /v1/models has a list.")
    return found


def _cards(site: Site, caller: Tenant) -> list[ModelCard]:
    engine = site.engine
    base, most = engine.base_name, engine.max_positions

    def card(name: str, parent: str | None = None) -> ModelCard:
        return ModelCard(id=name, created=site.began, root=name, parent=parent, max_model_len=most)

    names = [entry.name for entry in engine.library.entries() if caller.may_use(entry.name)]
    return [card(base), *(card(name, base) for name in names)]
