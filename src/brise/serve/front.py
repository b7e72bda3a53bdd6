"""Before the routes: which requests this server's own models answer, and which ones go through the gateway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from brise.errors import RequestError
from brise.gateway import asked
from brise.gateway.asked import Asked
from brise.gateway.gateway import Gateway
from brise.serve.body import read_bytes
from brise.serve.refusal import respond
from brise.serve.serving import Serving
from brise.serve.sse import unless_gone

OURS = frozenset({"/health", "/metrics", "/v1/adapters"})
LOCAL_KINDS = frozenset({"chat", "completion", "embedding", "responses"})


class Front:
    """ASGI middleware around the routes of a server with an upstream."""

    def __init__(self, app: ASGIApp, serving: Serving, gateway: Gateway) -> None:
        self._app, self._serving, self._gateway = app, serving, gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if scope["type"] != "http" or path in OURS or path.startswith("/v1/adapters/"):
            await self._app(scope, receive, send)
            return
        try:
            wanted = await self._read(scope, receive)
        except RequestError as error:
            await respond(error)(scope, receive, send)
            return
        if self._is_local(wanted):
            await self._app(scope, _Replay(wanted.body, receive).receive, send)
            return
        scope["brise.ticket"].mode = (await unless_gone(receive, self._gateway.handle(wanted, send))).mode

    async def _read(self, scope: Scope, receive: Receive) -> Asked:
        settings = self._serving.settings
        body = await read_bytes(Request(scope, receive), settings.max_body_bytes, settings.body_timeout_s)
        query: bytes = scope["query_string"]
        target = scope["raw_path"] + (b"?" + query if query else b"")
        return asked.read(scope["method"], scope["path"], target, scope["headers"], body)

    def _is_local(self, wanted: Asked) -> bool:
        if wanted.kind in LOCAL_KINDS:
            return self._serving.is_taken(wanted.model)
        name = wanted.path.removeprefix("/v1/models/")
        return wanted.method == "GET" and name != wanted.path and self._serving.is_taken(name)


class _Replay:
    """Gives a body that was read already to who comes next."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._message: Mapping[str, Any] | None = {"type": "http.request", "body": body, "more_body": False}
        self._receive = receive

    async def receive(self) -> Message:
        message, self._message = self._message, None
        return dict(message) if message is not None else await self._receive()
