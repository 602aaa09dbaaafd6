"""The application: the routes, what is around them, and the watch over the adapters' folders."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

import loralab
from loralab.errors import LoralabError
from loralab.serving.engine import Engine
from loralab.serving.http.envelope import Envelope
from loralab.serving.http.errors import RESPONSES, add_handlers
from loralab.serving.http.log import event
from loralab.serving.http.metrics import Metrics
from loralab.serving.http.routes import REGISTRY
from loralab.serving.http.running import ClientGone
from loralab.serving.http.site import HttpSettings, Site

__all__ = ["HttpSettings", "make_app"]

_CLIENT_GONE = 499


def make_app(
    engine: Engine,
    settings: HttpSettings = HttpSettings(),  # noqa: B008
    metrics: Metrics | None = None,
) -> FastAPI:
    """Return the application over an engine that was started.

    To have the engine's own doings in the metrics as well, make `Metrics()` first, give it to the engine as
    its observer, and here.
    """
    site = Site(engine, settings, metrics or Metrics())
    site.metrics.watch(engine)
    app = FastAPI(
        title="loralab",
        summary="One base, any number of adapters.",
        version=loralab.__version__,
        responses=RESPONSES,
        lifespan=_watched,
        # Their pages would load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    app.state.site = site
    for name in REGISTRY.names:
        app.include_router(REGISTRY.get(name).router)
    add_handlers(app)
    app.add_exception_handler(ClientGone, _of_nobody)
    app.add_middleware(Envelope, max_body=settings.max_body, log=settings.log, metrics=site.metrics)
    return app


async def _of_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)


@contextlib.asynccontextmanager
async def _watched(app: FastAPI) -> AsyncIterator[None]:
    site: Site = app.state.site
    watch = asyncio.create_task(_watch(site)) if site.settings.watch_seconds > 0 else None
    try:
        yield
    finally:
        if watch is not None:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch


async def _watch(site: Site) -> None:
    """Look at the folders from time to time: a finished run appears, one that was removed goes."""
    while True:
        await asyncio.sleep(site.settings.watch_seconds)
        try:
            changed = await run_in_threadpool(site.engine.library.rescan)
        except (LoralabError, OSError) as error:
            site.settings.log(event("adapters", "error", error=str(error)))
            continue
        if changed:
            site.settings.log(event("adapters", changed=changed))
