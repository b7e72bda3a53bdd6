"""AccessMiddleware admits or refuses each request, gives it an id, and logs its outcome."""

from __future__ import annotations

import re
import time
import traceback
import uuid
from datetime import UTC, datetime
from urllib.parse import unquote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from brise.dialects import ollama
from brise.errors import QueueFullError, RequestError
from brise.gateway import targets
from brise.serve.access import LOCAL_NAMES, host_name
from brise.serve.error_response import (
    ForeignHostError,
    GenerationError,
    KeyEndedError,
    UnauthorizedError,
    UnavailableError,
    respond,
)
from brise.serve.in_flight import RequestStats
from brise.serve.key_admission import KeyCaller
from brise.serve.serving import ServerState
from brise.serve.silent_stream import SilentStream
from brise.serve.sse import ClientGoneError

ENDPOINTS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages",
                       "/v1/models", "/v1/actions", "/v1/adapters", "/health", "/livez", "/readyz", "/metrics",
                       *ollama.BY_PATH, *ollama.ABOUT_MODELS})
PARENTS = ("/v1/models", "/v1/adapters")  # paths under these end in a name
PROBES = frozenset({"/health", "/livez", "/readyz"})  # of balancers, which have no key
CLIENT_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
ABSOLUTE = re.compile(rb"https?://", re.IGNORECASE)
CLIENT_GONE = 499  # as in nginx's log; no client ever sees it


class AccessMiddleware:
    """The outermost ASGI middleware."""

    def __init__(self, app: ASGIApp, serving: ServerState) -> None:
        self._app, self._serving = app, serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        stats = scope["brise.stats"] = RequestStats()
        telemetry = self._serving.telemetry
        if telemetry is not None:
            scope["brise.trace"] = telemetry.begin(scope["headers"])
        stream = SilentStream(send)
        response = _TrackedResponse(stream.send, _request_id(headers))
        with self._serving.traffic.running():
            try:
                refusal = _take_path(scope) or await self._refuse(scope, headers)
                app = self._app if refusal is None else respond(refusal, scope["path"])
                await app(scope, receive, response.send)
            except ClientGoneError:
                response.status = CLIENT_GONE
            except Exception:
                await self._fail(scope, receive, response)
            finally:
                stream.end()
                if (caller := scope.get("brise.caller")) is not None and self._serving.admission is not None:
                    self._serving.admission.finish(caller, stats)
                self._record(scope, response, stats)
                if telemetry is not None and stats.model is not None:  # a model that is served here; see `observe`
                    telemetry.observe_local(scope, response.request_id, response.status, stats)

    async def _refuse(self, scope: Scope, headers: Headers) -> RequestError | None:
        serving, path, method = self._serving, scope["path"], scope["method"]
        if serving.local_only and host_name(headers.get("host", "localhost")) not in LOCAL_NAMES:
            return ForeignHostError(headers["host"])
        if serving.has_keys and not (serving.is_page_file(path) or _opens_page(serving, scope, headers)):
            refusal = await self._check_key(scope, headers)
            if path in PROBES:
                scope["brise.has_key"] = refusal is None
            elif refusal is not None:
                return refusal
        if serving.traffic.closed and method == "POST":
            return UnavailableError("the server is shutting down", code="shutting_down")
        limit = serving.settings.max_requests
        if limit is not None and serving.traffic.num_running > limit and method == "POST":
            return QueueFullError(serving.traffic.num_running - 1, limit)
        return None

    async def _check_key(self, scope: Scope, headers: Headers) -> RequestError | None:
        """Finds whose key it is. A virtual key goes with the request, as its limits are looked at later."""
        keys, admission, texts = self._serving.keys, self._serving.admission, _keys(headers)
        if keys is not None and any([keys.accept(text) for text in texts]):
            return None
        key = None if admission is None else await admission.guard.caller(texts)
        if key is None or admission is None:
            return UnauthorizedError()
        why = key.refusal(admission.guard.now_s())
        if why is not None:
            return KeyEndedError(key.name, why)
        scope["brise.caller"] = KeyCaller(key)
        return None

    async def _fail(self, scope: Scope, receive: Receive, response: _TrackedResponse) -> None:
        """A bug: the traceback goes to the log, and the client gets an error without details."""
        print(f"{response.request_id} failed:\n{traceback.format_exc()}", file=self._serving.log, flush=True)
        if response.status == 0:
            error = GenerationError("the server failed; its log has the details", code="internal_error")
            await respond(error, scope["path"])(scope, receive, response.send)

    def _record(self, scope: Scope, response: _TrackedResponse, stats: RequestStats) -> None:
        seconds = time.monotonic() - stats.started_s
        path = scope["path"]
        parent = next((parent for parent in PARENTS if path.startswith(f"{parent}/")), "other")
        endpoint = path if path in ENDPOINTS else parent
        # Bounded: the label of an adapter that was removed during the request is not created again.
        model, serving = stats.model, self._serving
        label = None if model is None else serving.known_name(model) if serving.is_taken(model) else "removed"
        self._serving.metrics.record(endpoint, response.status, seconds, stats, label)
        is_asked_often = path in PROBES or scope["method"] == "GET" and serving.is_page(path)
        if not self._serving.settings.access_log or is_asked_often and response.status in (200, 304):
            return  # a balancer asks every two seconds, and so does an open page
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        # The raw path is percent-encoded, so a client cannot forge log lines. The query is left out.
        logged_path = scope["raw_path"].decode("ascii", "replace")[:200]
        line = f"{stamp} {scope['method']} {logged_path} {response.status} {seconds:.3f}s"
        if stats.mode is not None:
            line += f" mode={stats.mode}" + (f" upstream={stats.upstream}" if stats.upstream else "")
        if stats.model is not None:
            line += (f" model={stats.model} prompt={stats.prompt_tokens} cached={stats.cached_tokens}"
                     f" completion={stats.completion_tokens}")
        if stats.first_token_s is not None:
            line += f" first={stats.first_token_s:.3f}s"
        print(f"{line} id={response.request_id}", file=self._serving.log, flush=True)


class _TrackedResponse:
    """A response on its way to the client: adds the request's id, and records the status (0: not started)."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self.request_id, self.status = send, request_id, 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            # A response from an upstream keeps the upstream's id, which its support asks for.
            MutableHeaders(scope=message).setdefault("x-request-id", self.request_id)
        await self._send(message)


def _opens_page(serving: ServerState, scope: Scope, headers: Headers) -> bool:
    """Whether a browser asks at the root, from where it is led to the page."""
    return (serving.settings.page is not None and scope["path"] == ollama.ROOT and scope["method"] in ("GET", "HEAD")
            and "text/html" in headers.get("accept", ""))


def _take_path(scope: Scope) -> RequestError | None:
    """Takes the path of a target in absolute form, as clients of proxies send it (RFC 9112, 3.2.2)."""
    if ABSOLUTE.match(scope["raw_path"]) is None:
        return None
    try:
        raw_path = targets.origin_form(scope["raw_path"])
    except RequestError as error:
        return error
    scope["raw_path"], scope["path"] = raw_path, unquote(raw_path.decode())
    return None


def _keys(headers: Headers) -> list[str]:
    """The API keys in the headers of OpenAI's clients, of Anthropic's and of Azure's; some clients send two."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    found = [key.strip()] if scheme.lower() == "bearer" else []
    return [*found, *(headers[name].strip() for name in ("x-api-key", "api-key") if name in headers)] or [""]


def _request_id(headers: Headers) -> str:
    """The client's id if it is safe in a log line, otherwise a new one."""
    client_id = headers.get("x-request-id", "")
    return client_id if CLIENT_ID.fullmatch(client_id) else f"req_{uuid.uuid4().hex}"
