"""The outermost layer: lets a request in or not, gives it an id, and writes down how it ended."""

from __future__ import annotations

import re
import time
import traceback
import uuid
from datetime import UTC, datetime

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from brise.errors import QueueFullError, RequestError
from brise.serve.access import LOCAL_NAMES, host_name
from brise.serve.error_response import ForeignHostError, GenerationError, UnauthorizedError, UnavailableError, respond
from brise.serve.in_flight import Ticket
from brise.serve.serving import ServerState
from brise.serve.sse import ClientGoneError

ENDPOINTS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses",
                       "/v1/models", "/v1/adapters", "/health", "/metrics"})
PARENTS = ("/v1/models", "/v1/adapters")  # of paths that end in a name
GIVEN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
CLIENT_GONE = 499  # nginx's number; no client ever sees it


class AccessMiddleware:
    """ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp, serving: ServerState) -> None:
        self._app, self._serving = app, serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        ticket = scope["brise.ticket"] = Ticket()
        answer = _Answer(send, _request_id(headers))
        with self._serving.traffic.running():
            try:
                refusal = self._refuse(scope["path"], scope["method"], headers)
                app = self._app if refusal is None else respond(refusal)
                await app(scope, receive, answer.send)
            except ClientGoneError:
                answer.status = CLIENT_GONE
            except Exception:
                await self._fail(scope, receive, answer)
            finally:
                self._record(scope, answer, ticket)

    def _refuse(self, path: str, method: str, headers: Headers) -> RequestError | None:
        serving = self._serving
        if serving.local_only and host_name(headers.get("host", "localhost")) not in LOCAL_NAMES:
            return ForeignHostError(headers["host"])
        if serving.keys is not None and path != "/health":
            if not serving.keys.accept(_key(headers)):
                return UnauthorizedError()
        if serving.traffic.closed and method == "POST":
            return UnavailableError("the server is shutting down", code="shutting_down")
        limit = serving.settings.max_requests
        if limit is not None and serving.traffic.num_running > limit and method == "POST":
            return QueueFullError(serving.traffic.num_running - 1, limit)
        return None

    async def _fail(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        """A defect of ours: the trace goes to the log, to the client goes only that it happened."""
        print(f"{answer.request_id} failed:\n{traceback.format_exc()}", file=self._serving.log, flush=True)
        if answer.status == 0:
            error = GenerationError("the server failed; its log has the details", code="internal_error")
            await respond(error)(scope, receive, answer.send)

    def _record(self, scope: Scope, answer: _Answer, ticket: Ticket) -> None:
        seconds = time.monotonic() - ticket.started_s
        path = scope["path"]
        parent = next((parent for parent in PARENTS if path.startswith(f"{parent}/")), "other")
        endpoint = path if path in ENDPOINTS else parent
        # Bounded: an adapter that was removed meanwhile does not bring its label back.
        label = None if ticket.model is None else ticket.model if self._serving.is_taken(ticket.model) else "removed"
        self._serving.metrics.record(endpoint, answer.status, seconds, ticket, label)
        if not self._serving.settings.access_log:
            return
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        # The raw path is percent-encoded, so a client cannot write lines of its own; its query is not shown.
        shown = scope["raw_path"].decode("ascii", "replace")[:200]
        line = f"{stamp} {scope['method']} {shown} {answer.status} {seconds:.3f}s"
        if ticket.mode is not None:
            line += f" mode={ticket.mode}"
        if ticket.model is not None:
            line += (f" model={ticket.model} prompt={ticket.prompt_tokens} cached={ticket.cached_tokens}"
                     f" completion={ticket.completion_tokens}")
        if ticket.first_token_s is not None:
            line += f" first={ticket.first_token_s:.3f}s"
        print(f"{line} id={answer.request_id}", file=self._serving.log, flush=True)


class _Answer:
    """Watches an answer go out: adds the request's id, remembers the status (0: not begun)."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self.request_id, self.status = send, request_id, 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            # An answer that comes from an upstream has its id, by which that server's makers know it.
            MutableHeaders(scope=message).setdefault("x-request-id", self.request_id)
        await self._send(message)


def _key(headers: Headers) -> str:
    """As OpenAI's clients send it, or as Anthropic's do."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _request_id(headers: Headers) -> str:
    """The client's own id, if it is one that can stand in a log line."""
    given = headers.get("x-request-id", "")
    return given if GIVEN_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
