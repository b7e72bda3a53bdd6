"""`/v1/models`, `/health` and `/metrics`: what is here and how it is doing."""

from __future__ import annotations

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brise.engine.runner import EngineThread
from brise.serve.serving import Serving


async def models(serving: Serving, request: Request) -> Response:
    """All models."""
    return JSONResponse({"object": "list", "data": [_card(serving, name, worker)
                                                    for name, worker in serving.models.items()]})


async def model(serving: Serving, request: Request) -> Response:
    """One model, or 404."""
    name = request.path_params["name"]
    return JSONResponse(_card(serving, name, serving.find(name)))


async def health(serving: Serving, request: Request) -> Response:
    """200 as long as new requests are let in and can be answered; needs no key, so it names no models."""
    if serving.traffic.closed:
        return JSONResponse({"status": "draining"}, 503, {"Retry-After": "1"})
    if not all(worker.is_open for worker in serving.models.values()):
        return JSONResponse({"status": "failed"}, 503)
    return JSONResponse({"status": "ok"})


async def metrics(serving: Serving, request: Request) -> Response:
    """Prometheus' text format."""
    return Response(serving.metrics.render(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _card(serving: Serving, name: str, worker: EngineThread) -> dict[str, object]:
    """OpenAI's four fields, and how long a context may be."""
    return {"id": name, "object": "model", "created": serving.created, "owned_by": "brise",
            "max_context": worker.max_context}
