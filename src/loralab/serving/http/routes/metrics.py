"""``/metrics``, for Prometheus. No key is needed."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from loralab.serving.http.site import SiteOf

router = APIRouter(tags=["loralab"])


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "The series."}
    },
)
async def metrics(site: SiteOf) -> Response:
    """Return all series in Prometheus' text format."""
    return Response(await run_in_threadpool(site.metrics.text), media_type=CONTENT_TYPE_LATEST)
