"""Devices on one network: one answers for another that has no server now, and gives it blobs by digest.

    GET  /peer                    what answers here: device, bundle, and its fingerprint
    GET  /blobs/sha256/HEX        a file of a bundle that is here, with ranges
    POST /v1/chat/completions...  an answer, for the header `brise-fingerprint` of what must give it

Whoever asks shows a certificate of the fleet (peer_certificates.py). The asked device compares the fingerprint again,
since it may have changed its bundle meanwhile; so a certificate stays valid, whoever answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from brise.errors import RequestError
from brise.files.digests import DIGEST
from brise.fleet.peer_certificates import PeerTls
from brise.gateway.client_answer import end_with_error, send_error
from brise.gateway.failure import Delivery, UpstreamError
from brise.gateway.large_model import LargeModel
from brise.gateway.request import ClientRequest, read
from brise.gateway.retry import Retries, RetrySettings
from brise.gateway.upstream import Limits, Upstream, UpstreamSettings
from brise.serve.access import AcceptedKeys
from brise.serve.body import read_bytes
from brise.serve.error_response import UnauthorizedError, UnavailableError, respond
from brise.serve.serving import VISION_BODY_BYTES

FINGERPRINT = "brise-fingerprint"
MODE = (b"x-brise-mode", b"peer")
LOOK_S, LOOK_TIMEOUT_S = 10.0, 2.0
BODY_S = 30.0
PEER_LIMITS = Limits(connect_s=2.0, first_byte_s=60.0, answer_s=60.0, between_s=30.0, total_s=600.0)
OWN_LIMITS = Limits(connect_s=2.0)


@dataclass(frozen=True)
class Answering:
    """What a device answers with: the bundle's name and fingerprint, and the URL of its own server with the key."""

    name: str
    fingerprint: str
    url: str
    key: str | None = field(default=None, repr=False)


@dataclass
class Peer:
    """Another device, and what it said that it answers with when it was looked at last."""

    url: str
    model: LargeModel
    fingerprint: str | None = None
    looked_s: float = -1e9


class Peers:
    """The other devices of this network. It belongs to one event loop. `now` is a clock that never jumps."""

    def __init__(self, urls: Sequence[str], tls: PeerTls | None, now: Callable[[], float] = time.monotonic) -> None:
        self._tls, self._now = None if tls is None else tls.client(), now
        self._each = dict[str, Peer]()
        self._client: httpx.AsyncClient | None = None
        self._closing: asyncio.Future[None] | None = None
        for url in urls:
            self.add(url)

    def add(self, url: str) -> None:
        """One more, unless it is known."""
        url = url.rstrip("/")
        if url not in self._each:
            upstream = Upstream(UpstreamSettings(f"{url}/v1", forwards_keys=False, limits=PEER_LIMITS, tls=self._tls))
            self._each[url] = Peer(url, LargeModel(upstream, retries=Retries(RetrySettings(0))))

    @property
    def urls(self) -> list[str]:
        return list(self._each)

    async def with_fingerprint(self, fingerprint: str) -> list[Peer]:
        """Those that answer with this; all are looked at again from time to time, at the same time."""
        old = [peer for peer in self._each.values() if self._now() - peer.looked_s > LOOK_S]
        await asyncio.gather(*map(self._look, old))
        return [peer for peer in self._each.values() if peer.fingerprint == fingerprint]

    async def answer(self, request: ClientRequest, fingerprint: str, send: Send) -> bool:
        """Passes on the answer of the first device that gives one; False, and nothing was sent, if none does. An answer
        that breaks off ends with an error that the client sees."""
        asked = replace(request, headers=[*request.headers, (FINGERPRINT.encode(), fingerprint.encode())])
        for peer in await self.with_fingerprint(fingerprint):
            try:
                await peer.model.answer(asked, send, [MODE, (b"x-brise-id", request.id.encode())])
            except UpstreamError as error:
                delivery = error.delivery or Delivery()
                if not delivery.has_begun:
                    peer.looked_s = -1e9  # it may have changed, or be away
                    continue
                if delivery.takes_event:
                    await end_with_error(request.dialect, error.failure, send)
            return True
        return False

    def end_connections(self) -> None:
        """Ends idle connections, and looks at all peers anew before one is asked."""
        for peer in self._each.values():
            peer.model.upstream.close()
            peer.looked_s, peer.fingerprint = -1e9, None
        if self._client is not None:
            client, self._client = self._client, None
            self._closing = asyncio.ensure_future(client.aclose())

    async def close(self) -> None:
        """Ends idle connections for good."""
        self.end_connections()
        if self._closing is not None:
            await self._closing

    async def _look(self, peer: Peer) -> None:
        peer.looked_s, peer.fingerprint = self._now(), None
        if self._client is None:
            self._client = httpx.AsyncClient(verify=self._tls or True, trust_env=False, timeout=LOOK_TIMEOUT_S)
        try:
            found = (await self._client.get(f"{peer.url}/peer")).json()
        except (httpx.HTTPError, ValueError, RuntimeError):  # the last: end_connections closed it meanwhile
            return
        fingerprint = found.get("fingerprint") if isinstance(found, dict) else None
        peer.fingerprint = fingerprint if isinstance(fingerprint, str) else None


class PeerApp:
    """What other devices ask. `answering` says what answers here now; `find_blob` knows the files of bundles."""

    def __init__(self, device: str, answering: Callable[[], Answering | None],
                 find_blob: Callable[[str], Path | None]) -> None:
        self._device, self._answering, self._find_blob = device, answering, find_blob
        self._own = _OwnServer()
        self._app = Starlette(routes=[Route("/peer", self._card), Route("/blobs/sha256/{sha256}", self._blob),
                                      Route("/v1/{rest:path}", _Endpoint(self._answer), methods=["POST"])])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def close(self) -> None:
        """Ends idle connections to the device's own server."""
        self._own.close()

    async def _card(self, request: Request) -> Response:
        found = self._answering()
        return JSONResponse({"device": self._device, "bundle": None if found is None else found.name,
                             "fingerprint": None if found is None else found.fingerprint})

    async def _blob(self, request: Request) -> Response:
        sha256 = request.path_params["sha256"]
        path = await asyncio.to_thread(self._find_blob, sha256) if DIGEST.fullmatch(sha256) else None
        if path is None or not path.is_file():
            return JSONResponse({"error": {"message": "this device has no such blob", "code": "not_found"}}, 404)
        return FileResponse(path, media_type="application/octet-stream")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        found, asked = self._answering(), dict(scope["headers"]).get(FINGERPRINT.encode(), b"").decode("latin-1")
        if found is None or asked != found.fingerprint:
            error = UnavailableError("this device does not answer with what was asked for", code="other_fingerprint")
            await respond(error, scope["path"])(scope, receive, send)
            return
        await self._own.pass_on(found, scope, receive, send)


class RelayApp:
    """What answers at the device's own port while it has no server: a peer with the same fingerprint, or an error.

    `wanted` says which bundle should answer; its `url` is not used. `keys` are those of the device's own server.
    """

    def __init__(self, peers: Peers, wanted: Callable[[], Answering | None], keys: AcceptedKeys | None) -> None:
        self._peers, self._wanted, self._keys = peers, wanted, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            if self._keys is not None and not self._keys.accept(_key(scope)):
                raise UnauthorizedError
            request, wanted = await _read(scope, receive), self._wanted()
            if wanted is not None and request.model == wanted.name and request.fields is not None and (
                    await self._peers.answer(request, wanted.fingerprint, send)):
                return
            raise UnavailableError("this device has no server at the moment, and no other device answers for it",
                                   code="no_server")
        except RequestError as error:
            await respond(error, scope["path"])(scope, receive, send)


class _OwnServer:
    """The server of this device, as a peer's request reaches it."""

    def __init__(self) -> None:
        self._model: LargeModel | None = None
        self._of: Answering | None = None

    async def pass_on(self, answering: Answering, scope: Scope, receive: Receive, send: Send) -> None:
        if self._model is None or self._of != answering:
            self.close()
            settings = UpstreamSettings(f"{answering.url}/v1", answering.key, forwards_keys=False, limits=OWN_LIMITS)
            self._model, self._of = LargeModel(Upstream(settings), retries=Retries(RetrySettings(0))), answering
        try:
            request = await _read(scope, receive)
            if request.model != answering.name or request.fields is None:
                raise UnavailableError(f"a peer is asked for {answering.name!r} only", code="other_model")
        except RequestError as error:
            await respond(error, scope["path"])(scope, receive, send)
            return
        try:
            await self._model.answer(request, send, ())
        except UpstreamError as error:
            await _fail(request, error, send)

    def close(self) -> None:
        if self._model is not None:
            self._model.upstream.close()


class _Endpoint:
    """An ASGI function as the endpoint of a route."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Any]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


async def _fail(request: ClientRequest, error: UpstreamError, send: Send) -> None:
    """Where the answer did not begin, an error of its own; else the last event of the stream."""
    delivery = error.delivery or Delivery()
    if not delivery.has_begun:
        await send_error(request.dialect, error.failure, (), send)
    elif delivery.takes_event:
        await end_with_error(request.dialect, error.failure, send)


async def _read(scope: Scope, receive: Receive) -> ClientRequest:
    body = await read_bytes(Request(scope, receive), VISION_BODY_BYTES, BODY_S)
    query: bytes = scope["query_string"]
    target = scope["raw_path"] + (b"?" + query if query else b"")
    return read(scope["method"], scope["path"], target, scope["headers"], body)


def _key(scope: Scope) -> str:
    headers: Mapping[bytes, bytes] = dict(scope["headers"])
    scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get(b"x-api-key", b"").decode("latin-1")
