"""``/v1/adapters``: which there are, where they live, and what is done with them."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from loralab.serving.errors import UnknownModel
from loralab.serving.http.fields import Body
from loralab.serving.http.site import AdminOf, CallerOf, SiteOf
from loralab.serving.library import Entry

router = APIRouter(prefix="/v1/adapters", tags=["loralab"])

_Name = Annotated[str, Path(max_length=128)]


class AdapterCard(BaseModel):
    """An adapter."""

    name: str
    digest: str
    """The sha256 of what it is; "" until it was read."""
    where: Literal["disk", "ram", "slot", "merged"]
    bytes: int
    rank: int
    pinned: bool
    hits: int
    """Requests that found it in memory."""
    in_use: int
    """Requests that run with it now."""


class CacheCard(BaseModel):
    """The memory for adapters."""

    bytes: int
    max_bytes: int | None
    hits: int
    misses: int
    evictions: int
    disk_reads: int


class AdapterList(BaseModel):
    """The adapters, and their memory."""

    object: Literal["list"] = "list"
    data: list[AdapterCard]
    cache: CacheCard


class LoadBody(Body):
    """How to load an adapter."""

    path: str | None = None
    """A folder below one of those that are served; left out, the one of that name."""
    replace: bool = False
    pin: bool = False


@router.get("")
async def adapters(site: SiteOf, caller: CallerOf) -> AdapterList:
    """List the adapters that the key may use."""
    engine = site.engine
    entries = await run_in_threadpool(engine.library.entries)
    cache, stats = engine.cache, engine.cache.stats
    return AdapterList(
        data=[_card(entry) for entry in entries if caller.may_use(entry.name)],
        cache=CacheCard(
            bytes=cache.bytes,
            max_bytes=cache.max_bytes,
            hits=stats.hits,
            misses=stats.misses,
            evictions=stats.evictions,
            disk_reads=stats.disk_reads,
        ),
    )


@router.get("/{name}")
async def adapter(name: _Name, site: SiteOf, caller: CallerOf) -> AdapterCard:
    """Tell of one."""
    entries = await run_in_threadpool(site.engine.library.entries)
    found = next((entry for entry in entries if entry.name == name and caller.may_use(name)), None)
    if found is None:
        raise UnknownModel(f"there is no adapter {name!r}; /v1/adapters has a list.")
    return _card(found)


@router.post("/{name}/load")
async def load(name: _Name, site: SiteOf, admin: AdminOf, body: LoadBody | None = None) -> AdapterCard:
    """Read an adapter into memory, before a request asks for it."""
    how = body or LoadBody()
    load = site.engine.library.load
    return _card(await run_in_threadpool(load, name, how.path, replace=how.replace, pin=how.pin))


@router.post("/{name}/unload", status_code=204)
async def unload(name: _Name, site: SiteOf, admin: AdminOf) -> None:
    """Forget an adapter; requests that run with it are finished."""
    await run_in_threadpool(site.engine.library.unload, name)


@router.post("/{name}/pin")
async def pin(name: _Name, site: SiteOf, admin: AdminOf) -> AdapterCard:
    """Keep an adapter in memory, whatever else is asked for."""
    return _card(await run_in_threadpool(site.engine.library.pin, name, True))


@router.post("/{name}/unpin")
async def unpin(name: _Name, site: SiteOf, admin: AdminOf) -> AdapterCard:
    """Let an adapter leave memory when others need the room."""
    return _card(await run_in_threadpool(site.engine.library.pin, name, False))


def _card(entry: Entry) -> AdapterCard:
    return AdapterCard(
        name=entry.name,
        digest=entry.identity,
        where=entry.where,
        bytes=entry.bytes,
        rank=entry.rank,
        pinned=entry.pinned,
        hits=entry.hits,
        in_use=entry.in_use,
    )
