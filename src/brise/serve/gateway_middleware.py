"""GatewayMiddleware sends requests for this server's own models to the routes, and all others to the gateway.

A request that names a model of this server is answered here or refused: it never goes to an upstream, however its path
and its body are spelled.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from urllib.parse import quote, unquote

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from brise.dialects import ollama, table
from brise.dialects.bodies import Usage
from brise.errors import RequestError
from brise.files.long_json import is_long
from brise.gateway import client_body, request, targets
from brise.gateway import headers as header_rules
from brise.gateway.gateway import Gateway
from brise.gateway.request import ClientRequest
from brise.gateway.targets import UnpaidPathError
from brise.serve import models_and_metrics, transcriptions
from brise.serve.access import is_foreign
from brise.serve.body import Replay, read_bytes
from brise.serve.error_response import CrossSiteError, MethodError, NotServedHereError, UnavailableError, respond
from brise.serve.key_admission import check_admin
from brise.serve.serving import ServerState
from brise.serve.sse import unless_gone
from brise.traffic import virtual_keys

LOCAL_PATHS = frozenset({"/health", "/livez", "/readyz", "/metrics", "/v1/adapters"})
# They answer for models of this server.
OWN_PATHS = frozenset({table.COUNT_PATH, "/tokenize", "/detokenize", transcriptions.PATH})
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})  # not TRACE, not CONNECT
MAX_NOTED = 64  # paths that the log says are only passed on
JSON_START = 64  # bytes in which JSON begins
JSON_STARTS = (b"{", b"[", b"\xef", b"\xfe", b"\xff", b"\0")  # of JSON, or of the mark before it


class GatewayMiddleware:
    """ASGI middleware around the routes of a server with an upstream."""

    def __init__(self, app: ASGIApp, serving: ServerState, gateway: Gateway) -> None:
        self._app, self._serving, self._gateway = app, serving, gateway
        self._noted = set[str]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            scope = _plain(scope)
            own = scope if self._serving.is_page(scope["path"]) else _own(scope)
            if own is not None:
                check_admin(scope.get("brise.caller"), own)
                await self._app(own, receive, send)
                return
            self._check(scope)
            asked = client = self._gateway.large.chosen(await self._read(scope, receive))
            is_local = self._is_local(client)
            if not is_local:
                if client.path in ollama.BY_PATH:  # its answers are not read
                    client = replace(client, dialect=table.UNKNOWN, fields=None)
                client = self._gateway.large.routed(client)
                self._check_paid(client)
            client = await self._admitted(scope, asked, client, is_local=is_local)
        except RequestError as error:
            await respond(error, scope["path"])(scope, receive, send)
            return
        if is_local and self._serving.is_remote(client.model) and client.path not in ollama.BY_PATH:
            await self._answer_remotely(client, scope, receive, send)
        elif is_local:
            await self._app(_local(scope, client), Replay(client.body, receive).receive, send)
        elif client.method == "GET" and client.path == "/v1/models" and self._lists_models(client):
            answer = await unless_gone(receive, models_and_metrics.all_models(self._serving, self._gateway, client))
            await answer(scope, receive, send)
        else:
            self._note(client)
            outcome = await unless_gone(receive, self._gateway.handle(client, send))
            scope["brise.stats"].mode, scope["brise.stats"].upstream = outcome.mode, client.upstream

    async def _answer_remotely(self, client: ClientRequest, scope: Scope, receive: Receive, send: Send) -> None:
        """A small model behind another server: its own answer goes out as it comes, and nothing is written down, as of
        the models of this server."""
        remote, stats = self._serving.remote, scope["brise.stats"]
        assert remote is not None, "it has this name"
        if client.method in ("GET", "HEAD"):
            answer = await models_and_metrics.one_model(self._serving, client.model)
            await answer(scope, receive, send)
            return
        stats.model = client.model
        try:
            outcome = await unless_gone(receive, remote.pass_on(client, send))
        except RequestError as error:  # before anything was sent
            await respond(error, scope["path"])(scope, receive, send)
            return
        usage = outcome.usage or Usage()
        stats.prompt_tokens, stats.completion_tokens = usage.prompt_tokens or 0, usage.completion_tokens or 0
        stats.cached_tokens, stats.first_token_s = usage.cached_tokens or 0, outcome.first_token_s

    def _check(self, scope: Scope) -> None:
        if scope["method"] not in METHODS:
            raise MethodError(f"the method is {scope['method'][:32]!r}, allowed are {', '.join(sorted(METHODS))}")
        if self._serving.local_only and self._gateway.large.has_own_key and is_foreign(Headers(scope=scope)):
            raise CrossSiteError

    async def _read(self, scope: Scope, receive: Receive) -> ClientRequest:
        settings = self._serving.settings
        headers: client_body.RawHeaders = scope["headers"]
        body = await read_bytes(Request(scope, receive), settings.max_body_bytes, settings.body_timeout_s)
        if any(name == b"content-encoding" for name, _ in headers):
            headers, body = await asyncio.to_thread(client_body.decompressed, headers, body, settings.max_body_bytes)
        query: bytes = scope["query_string"]
        target = scope["raw_path"] + (b"?" + query if query else b"")
        if table.of_request(scope["method"], scope["path"]).is_read or body[:JSON_START].lstrip()[:1] in JSON_STARTS:
            headers, body = client_body.in_utf8(headers, body)
        address = scope["client"][0] if scope.get("client") else ""
        arguments = (scope["method"], scope["path"], target, headers, body, self._gateway.secrets, address,
                     self._gateway.components.id_key)
        return await asyncio.to_thread(request.read, *arguments) if is_long(body) else request.read(*arguments)

    def _is_local(self, client: ClientRequest) -> bool:
        """Whether this server's routes answer. NotServedHereError if they cannot, and nobody else may."""
        if client.times_named > 1:
            raise RequestError("the field 'model' is given more than once, and servers differ in which one they take",
                               param="model", code="invalid_json")
        if client.path in ollama.BY_PATH and client.method == "POST" and not self._leaves(client):
            return True  # also for a model that is not served here, which the route says
        if not self._serving.models and self._serving.remote is None:
            return False
        is_elsewhere = client.path in OWN_PATHS and self._serving.is_remote(client.model)
        if self._serving.is_taken(client.model) and _has_route(client) and not is_elsewhere:
            return True
        if client.dialect.is_read and client.fields is None and client_body.may_name(client.body):
            raise RequestError("the body is no JSON object, so nobody can tell whether it is for a model that is "
                               "served here", code="invalid_json")
        if len(client.named) > client_body.MAX_NAMES:
            raise RequestError(f"the request names more than {client_body.MAX_NAMES} models, and one that is served "
                               "here could be among them", param="model")
        not_loaded = () if self._serving.replica is None else self._serving.replica.not_loaded
        for name in (client.model, *client.named):
            if name in not_loaded:
                raise UnavailableError(f"the adapter {name!r} is not loaded on this server", code="adapter_not_loaded")
            if name and (served := self._served_like(name)) is not None:
                raise NotServedHereError(name, served, f"{client.method} {client.path[:200]}")
        return False

    def _leaves(self, client: ClientRequest) -> bool:
        """Whether a request of Ollama's API is for an upstream: only the operator's list of paths says that."""
        lists = [large.upstream.settings.paths for large in self._gateway.large.each.values()]
        return not self._serving.is_taken(client.model) and any(targets.is_listed(client.path, each) for each in lists)

    async def _admitted(self, scope: Scope, asked: ClientRequest, routed: ClientRequest, *, is_local: bool
                        ) -> ClientRequest:
        """The request with its trace, if its virtual key allows it: its row names the key, and the upstream never sees
        that key."""
        caller, admission, trace = scope.get("brise.caller"), self._serving.admission, scope.get("brise.trace")
        if caller is None or admission is None:
            return routed if trace is None else replace(routed, trace=trace)
        await admission.admit_read(caller, asked, _model(routed), is_local=is_local, upstream=routed.upstream)
        return replace(routed, labels={**routed.labels, virtual_keys.LABEL: caller.key.name},
                       headers=header_rules.without_keys(routed.headers),
                       target=header_rules.without_secrets(routed.target), trace=trace)

    def _served_like(self, name: str) -> str | None:
        """The model or adapter of this name, also if the case is another, or spaces or Ollama's tag are around it."""
        if self._serving.is_taken(name):
            return self._serving.known_name(name)
        plain = ollama.untagged(name.strip().casefold())
        return next((served for served in self._serving.names() if served.casefold() == plain), None)

    def _check_paid(self, client: ClientRequest) -> None:
        settings = self._gateway.large.of(client).upstream.settings
        if settings.key is not None and not targets.is_paid(client, settings.paths):
            raise UnpaidPathError(client)

    def _lists_models(self, client: ClientRequest) -> bool:
        """Whether the list of models is made here: there are some here, or several upstreams, or one without a list."""
        upstreams = self._gateway.large.each.values()
        return bool(self._serving.names()) or len(upstreams) > 1 or any(
            large.upstream.unfit(client) is not None for large in upstreams)

    def _note(self, client: ClientRequest) -> None:
        """Says once for each path that its requests are passed on, and no more."""
        if (client.method == "POST" and client.dialect is table.UNKNOWN and client.path not in self._noted
                and len(self._noted) < MAX_NOTED):
            self._noted.add(client.path)
            print(f"brise: POST {client.path[:200]!r} is passed on as it is: what it says is not written down, and "
                  "nobody else answers it", file=self._serving.log, flush=True)


def _has_route(client: ClientRequest) -> bool:
    """Whether this server's routes answer such a request for one of its models."""
    is_shown = client.method in ("GET", "HEAD") and client.path in (f"/v1/models/{client.model}", "/tokenizer_info")
    is_read = client.dialect.is_served and client.fields is not None
    return is_shown or is_read or client.method == "POST" and client.path in OWN_PATHS


def _model(routed: ClientRequest) -> str:
    """The model's name without that of its upstream."""
    model = (routed.fields or {}).get("model")
    return model if isinstance(model, str) and model else routed.model


def _plain(scope: Scope) -> Scope:
    """The request with its target in origin form."""
    raw = scope["raw_path"]
    path = targets.origin_form(raw)
    return scope if path == raw else {**scope, "raw_path": path, "path": unquote(path.decode())}


def _own(scope: Scope) -> Scope | None:
    """The request as the server's own routes know it, if it is for one that has nothing to do with models."""
    path = table.locate(scope["method"], scope["path"]).path
    is_probe = path == ollama.ROOT and scope["method"] in ("GET", "HEAD")
    is_about_models = path.startswith("/v1/adapters/") or ollama.is_about_models(path)
    if path not in LOCAL_PATHS and not is_about_models and not is_probe:
        return None
    return scope if path == scope["path"] else {**scope, "path": path, "raw_path": quote(path).encode()}


def _local(scope: Scope, client: ClientRequest) -> Scope:
    """The request as this server's routes know it, whatever spelling it came in."""
    headers = [(name, value) for name, value in client.headers if name not in (b"content-length", b"transfer-encoding")]
    if client.body:
        headers.append((b"content-length", str(len(client.body)).encode()))
    return {**scope, "path": client.path, "raw_path": quote(client.path).encode(), "headers": headers}
