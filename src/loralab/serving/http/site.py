"""What the routes share, and who asks."""

import time
from dataclasses import dataclass, field
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request

from loralab.serving.engine import Engine
from loralab.serving.errors import Forbidden
from loralab.serving.http.keys import ADMIN, ANYONE, Keys, Tenant
from loralab.serving.http.log import Log, Record, say_nothing
from loralab.serving.http.metrics import Metrics
from loralab.serving.http.quota import Quotas

__all__ = ["AdminOf", "CallerOf", "HttpSettings", "RecordOf", "Site", "SiteOf"]

_THREADS = 256


@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """What a server allows."""

    keys: Keys | None = None
    """Who may ask; None: anyone, anything."""
    max_body: int = 8 << 20
    """Largest body of a request, in bytes."""
    max_prompts: int = 64
    """Most prompts in one request to /v1/completions."""
    max_tokens: int = 1024
    """Longest answer to a chat that does not say how long."""
    max_behind: int = 1024
    """So many pieces may wait for a client that reads slowly; then its request is given up."""
    watch_seconds: float = 2.0
    """How often the adapters' folders are looked at; 0: never."""
    log: Log = say_nothing


@dataclass(frozen=True)
class Site:
    """What the routes share."""

    engine: Engine
    settings: HttpSettings
    metrics: Metrics
    quotas: Quotas = field(default_factory=Quotas)
    threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_THREADS))
    """Where requests wait for adapters that are read from disk."""
    began: int = field(default_factory=lambda: int(time.time()))
    numbers: dict[str, int] = field(default_factory=dict)
    """llama.cpp's numbers of the adapters. A name keeps its number, whatever comes and goes."""


def _site(request: Request) -> Site:
    site: Site = request.app.state.site
    return site


SiteOf = Annotated[Site, Depends(_site)]


def _record(request: Request) -> Record:
    record: Record = request.state.record
    return record


RecordOf = Annotated[Record, Depends(_record)]


def _caller(request: Request, site: SiteOf, record: RecordOf) -> Tenant:
    keys = site.settings.keys
    if keys is None:
        return ANYONE
    tenant = keys.find(request.headers.get("authorization", ""))
    record.tenant = tenant.name
    return tenant


CallerOf = Annotated[Tenant, Depends(_caller)]


def _admin(caller: CallerOf) -> Tenant:
    # By what it is, not by what it says: a tenant may have any name.
    if caller is not ADMIN and caller is not ANYONE:
        raise Forbidden(f"this needs the admin key; the key given is that of {caller.name!r}.")
    return caller


AdminOf = Annotated[Tenant, Depends(_admin)]
