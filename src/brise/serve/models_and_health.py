"""`/v1/models`, `/health` and `/metrics`: what is here and how it is doing."""

from __future__ import annotations

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brise.serve.serving import ServerState


async def models(serving: ServerState, request: Request) -> Response:
    """All models, and their adapters."""
    return JSONResponse({"object": "list", "data": cards(serving)})


async def model(serving: ServerState, request: Request) -> Response:
    """One model, or 404."""
    return JSONResponse(_card(serving, request.path_params["name"]))


async def health(serving: ServerState, request: Request) -> Response:
    """200 as long as new requests are let in and can be answered; needs no key, so it names no models."""
    if serving.traffic.closed:
        return JSONResponse({"status": "draining"}, 503, {"Retry-After": "1"})
    if not all(worker.is_open for worker in serving.models.values()):
        return JSONResponse({"status": "failed"}, 503)
    return JSONResponse({"status": "ok"})


async def metrics(serving: ServerState, request: Request) -> Response:
    """Prometheus' text format."""
    return Response(serving.metrics.render(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def cards(serving: ServerState) -> list[dict[str, object]]:
    """What there is to say of every model and adapter."""
    return [_card(serving, name) for model, worker in serving.models.items()
            for name in (model, *(info.name for info in worker.adapters))]


def _card(serving: ServerState, name: str) -> dict[str, object]:
    """OpenAI's four fields, how long a context may be, and of an adapter the model that it is on."""
    served = serving.find(name)
    card: dict[str, object] = {"id": name, "object": "model", "created": serving.created, "owned_by": "brise",
                               "max_context": served.worker.max_context}
    if served.adapter is not None:
        card["parent"] = next(model for model, worker in serving.models.items() if worker is served.worker)
    return card
