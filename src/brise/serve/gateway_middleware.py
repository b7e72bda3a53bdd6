"""GatewayMiddleware sends requests for this server's own models to the routes, and all others to the gateway."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from brise.errors import RequestError
from brise.gateway import request
from brise.gateway.gateway import Gateway
from brise.gateway.request import ClientRequest
from brise.serve import models_and_health
from brise.serve.body import read_bytes
from brise.serve.error_response import CrossSiteError, MethodError, respond
from brise.serve.serving import ServerState
from brise.serve.sse import unless_gone

LOCAL_PATHS = frozenset({"/health", "/metrics", "/v1/adapters"})
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})  # not TRACE, not CONNECT


class GatewayMiddleware:
    """ASGI middleware around the routes of a server with an upstream."""

    def __init__(self, app: ASGIApp, serving: ServerState, gateway: Gateway) -> None:
        self._app, self._serving, self._gateway = app, serving, gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if scope["type"] != "http" or path in LOCAL_PATHS or path.startswith("/v1/adapters/"):
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
            request = await self._read(scope, receive)
        except RequestError as error:
            await respond(error)(scope, receive, send)
            return
        if self._is_local(request):
            await self._app(scope, _Replay(request.body, receive).receive, send)
        elif request.method == "GET" and path == "/v1/models" and self._serving.models:
            answer = await unless_gone(receive, self._models(request))
            await answer(scope, receive, send)
        else:
            outcome = await unless_gone(receive, self._gateway.handle(request, send))
            scope["brise.stats"].mode = outcome.mode

    def _check(self, scope: Scope) -> None:
        if scope["method"] not in METHODS:
            raise MethodError(f"the method is {scope['method'][:32]!r}, allowed are {', '.join(sorted(METHODS))}")
        has_own_key = self._gateway.large.upstream.settings.key is not None
        if self._serving.local_only and has_own_key and _is_foreign(Headers(scope=scope)):
            raise CrossSiteError

    async def _read(self, scope: Scope, receive: Receive) -> ClientRequest:
        settings = self._serving.settings
        body = await read_bytes(Request(scope, receive), settings.max_body_bytes, settings.body_timeout_s)
        query: bytes = scope["query_string"]
        target = scope["raw_path"] + (b"?" + query if query else b"")
        return request.read(scope["method"], scope["path"], target, scope["headers"], body,
                            self._gateway.large.upstream.settings.secrets)

    def _is_local(self, request: ClientRequest) -> bool:
        if request.dialect.is_served:
            return self._serving.is_taken(request.model)
        name = request.path.removeprefix("/v1/models/")
        return request.method == "GET" and name != request.path and self._serving.is_taken(name)

    async def _models(self, request: ClientRequest) -> JSONResponse:
        """The models of this server, then those of the upstream if it lists them."""
        answer = _CollectedResponse()
        readable = [(name, value) for name, value in request.headers if name != b"accept-encoding"]
        await self._gateway.handle(replace(request, headers=readable), answer.send)
        local = models_and_health.cards(self._serving)
        upstream = answer.json.get("data") if answer.status == 200 else None
        return JSONResponse({"object": "list", "data": [*local, *(upstream if isinstance(upstream, list) else ())]})


def _is_foreign(headers: Headers) -> bool:
    """Whether a browser sent the request for another site's page. Programs send no such headers."""
    origin = headers.get("origin")
    return headers.get("sec-fetch-site", "none") not in ("none", "same-origin") or (
        origin is not None and origin.partition("//")[2] != headers.get("host"))


class _Replay:
    """Replays a body that was already read to the next application."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._message: Mapping[str, Any] | None = {"type": "http.request", "body": body, "more_body": False}
        self._receive = receive

    async def receive(self) -> Message:
        message, self._message = self._message, None
        return dict(message) if message is not None else await self._receive()


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
