"""`/v1/models`, `/health` and `/metrics` report the models, the state and the metrics of the server."""

from __future__ import annotations

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brise.serve.serving import ServerState


async def models(serving: ServerState, request: Request) -> Response:
    """The response with all models and their adapters."""
    return JSONResponse({"object": "list", "data": cards(serving)})


async def model(serving: ServerState, request: Request) -> Response:
    """The response with one model, or 404."""
    return JSONResponse(_card(serving, request.path_params["name"]))


async def health(serving: ServerState, request: Request) -> Response:
    """200 while new requests can be answered. It needs no key, so it names no models."""
    if serving.traffic.closed:
        return JSONResponse({"status": "draining"}, 503, {"Retry-After": "1"})
    if not all(worker.is_open for worker in serving.models.values()):
        return JSONResponse({"status": "failed"}, 503)
    return JSONResponse({"status": "ok"})


async def metrics(serving: ServerState, request: Request) -> Response:
    """The metrics in Prometheus' text format."""
    return Response(serving.metrics.render(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def cards(serving: ServerState) -> list[dict[str, object]]:
    """The cards of all models and adapters."""
    return [_card(serving, name) for model, worker in serving.models.items()
            for name in (model, *(info.name for info in worker.adapters))]


def _card(serving: ServerState, name: str) -> dict[str, object]:
    """OpenAI's four fields, the longest context, and for an adapter its base model."""
    served = serving.find(name)
    card: dict[str, object] = {"id": name, "object": "model", "created": serving.created, "owned_by": "brise",
                               "max_context": served.worker.max_context}
    if served.adapter is not None:
        card["parent"] = next(model for model, worker in serving.models.items() if worker is served.worker)
    return card
