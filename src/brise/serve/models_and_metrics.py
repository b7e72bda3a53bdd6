"""`/v1/models` and `/metrics` report the models and the metrics of the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message

from brise.errors import BriseError
from brise.gateway.gateway import Gateway
from brise.gateway.request import ClientRequest
from brise.serve.engine_models import base_of, fingerprint_of
from brise.serve.serving import ServerState


async def models(serving: ServerState, request: Request) -> Response:
    """The response with all models and their adapters."""
    await _find_bases(serving)
    return JSONResponse({"object": "list", "data": cards(serving)})


async def model(serving: ServerState, request: Request) -> Response:
    """The response with one model, or 404; without a name, with all of them."""
    if not request.path_params["name"]:
        return await models(serving, request)
    return await one_model(serving, request.path_params["name"])


async def one_model(serving: ServerState, name: str) -> JSONResponse:
    """The response with one model."""
    await _find_bases(serving)
    return JSONResponse(_card(serving, name))


async def metrics(serving: ServerState, request: Request) -> Response:
    """The metrics in Prometheus' text format."""
    return Response(serving.metrics.render(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def cards(serving: ServerState) -> list[dict[str, object]]:
    """The cards of all models and adapters."""
    return [_card(serving, name) for name in serving.names()]


async def all_models(serving: ServerState, gateway: Gateway, request: ClientRequest) -> JSONResponse:
    """The response with the models of this server, then those of every upstream that lists some."""
    await _find_bases(serving)
    readable = [(name, value) for name, value in request.headers if name != b"accept-encoding"]
    lists = await asyncio.gather(*(_upstream_cards(gateway, replace(request, upstream=name, headers=readable))
                                   for name in gateway.large.each))
    return JSONResponse({"object": "list", "data": [*cards(serving), *(card for each in lists for card in each)]})


async def _upstream_cards(gateway: Gateway, request: ClientRequest) -> list[object]:
    """The models of one upstream, by the names that requests have to give here."""
    answer = _CollectedResponse()
    await gateway.handle(request, answer.send)
    listed = answer.json.get("data") if answer.status == 200 else None
    names, routes = [], gateway.large.routes
    for card in listed if isinstance(listed, list) else ():
        if isinstance(card, dict) and isinstance(name := card.get("id"), str):
            card = {**card, "id": routes.name_of(request.upstream, name)}
        names.append(card)
    return names


def _card(serving: ServerState, name: str) -> dict[str, object]:
    """OpenAI's four fields, the longest context, the model's own sampling, what answers under this name, and for an
    adapter its base model."""
    if serving.remote is not None and serving.is_remote(name):
        return {**serving.remote.card(name), "created": serving.created}
    served = serving.find(name)
    card: dict[str, object] = {"id": name, "object": "model", "created": serving.created, "owned_by": "brise",
                               "max_context": served.worker.max_context}
    if base := serving.bases.get(served.worker):
        card["fingerprint"] = fingerprint_of(served.worker, served.adapter, base)
    generation = served.worker.model.generation
    if generation.sampling.given:
        card["sampling"] = {**generation.sampling.given, "source": generation.source}
    if served.adapter is not None:
        if (actions := served.worker.actions(served.adapter)) is not None:
            card["actions"] = json.loads(actions.space.as_json())
        card["parent"] = next(model for model, worker in serving.models.items() if worker is served.worker)
    return card


async def _find_bases(serving: ServerState) -> None:
    """The digests of the models' files, read once."""
    for worker in serving.models.values():
        if worker not in serving.bases:
            with suppress(BriseError, OSError):  # the files are gone: it has no fingerprint
                serving.bases[worker] = await asyncio.to_thread(base_of, worker)


class _CollectedResponse:
    """A response that is collected instead of sent."""

    def __init__(self) -> None:
        self.status, self._body = 0, bytearray()

    async def send(self, message: Message) -> None:
        self.status = message.get("status", self.status)
        self._body += message.get("body", b"")

    @property
    def json(self) -> Mapping[str, Any]:
        try:
            value = json.loads(self._body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}
