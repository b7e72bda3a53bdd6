"""KeyMiddleware holds requests with virtual keys to their limits, on a server without an upstream.

It reads the body before the route does, because the limits depend on the model and on the length of the answer.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from brise.errors import RequestError
from brise.files.long_json import is_long
from brise.gateway import request as client_request
from brise.serve.body import Replay, read_bytes
from brise.serve.error_response import respond
from brise.serve.key_admission import KeyAdmission, KeyCaller, check_admin
from brise.serve.serving import ServerState


class KeyMiddleware:
    """ASGI middleware around the routes. What AccessMiddleware let through without a virtual key passes."""

    def __init__(self, app: ASGIApp, serving: ServerState, admission: KeyAdmission) -> None:
        self._app, self._serving, self._admission = app, serving, admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = scope.get("brise.caller")
        try:
            check_admin(caller, scope)
            if caller is None or scope["method"] != "POST" or self._serving.is_page(scope["path"]):
                await self._app(scope, receive, send)
                return
            body = await self._admit(caller, scope, receive)
        except RequestError as error:
            await respond(error, scope["path"])(scope, receive, send)
            return
        await self._app(scope, Replay(body, receive).receive, send)

    async def _admit(self, caller: KeyCaller, scope: Scope, receive: Receive) -> bytes:
        settings = self._serving.settings
        body = await read_bytes(Request(scope, receive), settings.max_body_bytes, settings.body_timeout_s)
        arguments = (scope["method"], scope["path"], scope["raw_path"], scope["headers"], body)
        request = (await asyncio.to_thread(client_request.read, *arguments) if is_long(body) else
                   client_request.read(*arguments))
        await self._admission.admit_read(caller, request, request.model, is_local=True)
        return body
