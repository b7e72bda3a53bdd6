"""The hosted model's server: one pool of connections, requests as they came, answers as they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpcore
import httpx

from brise.errors import UnsupportedError
from brise.gateway import headers
from brise.gateway.asked import Asked, Headers
from brise.gateway.failure import Failure, FailureKind, UpstreamError

MAX_CONNECTIONS, KEPT_CONNECTIONS, KEPT_S = 1000, 100, 60.0
PREFIX = b"/v1"  # what every path of OpenAI's API begins with: the clients' base URL has it, and so has the upstream's


@dataclass(frozen=True)
class Limits:
    """How long the hosted model may take, in seconds."""

    connect_s: float = 5.0
    first_byte_s: float = 60.0  # of a stream, until its first piece
    answer_s: float = 600.0  # of an answer in one piece, which comes when it is complete
    between_s: float = 60.0  # from one piece to the next


@dataclass(frozen=True)
class UpstreamSettings:
    """Where the hosted model is. `url` is what its clients have as base URL; `key` is secret.

    Without a key the clients' own go on, unless `forwards_keys` is False: then they are keys of this server.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    forwards_keys: bool = True
    limits: Limits = Limits()
    proxy: str | None = field(default=None, repr=False)  # may hold a password

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UnsupportedError(f"the upstream is {self.url!r}, allowed is http(s)://HOST/PATH",
                                   hint="its base URL, as OpenAI's clients have it: https://api.openai.com/v1")


class Upstream:
    """Sends requests to one server. It belongs to the event loop's thread."""

    def __init__(self, settings: UpstreamSettings, now: Callable[[], float] = time.monotonic) -> None:
        self.settings, self._now = settings, now
        parts = urlsplit(settings.url)
        assert parts.hostname is not None
        self._origin = httpcore.Origin(parts.scheme.encode(), parts.hostname.encode("idna"),
                                       parts.port or (443 if parts.scheme == "https" else 80))
        self.host = parts.netloc.rpartition("@")[2].encode("idna")
        self._path = parts.path.rstrip("/").encode()
        self._pool = _pool(settings)

    async def open(self, asked: Asked) -> Reply:
        """Sends a request and waits for status and headers of the answer, or raises UpstreamError."""
        limits = self.settings.limits
        wait_s = limits.first_byte_s if asked.streams else limits.answer_s
        deadline = self._now() + wait_s
        request = httpcore.Request(
            asked.method, httpcore.URL(scheme=self._origin.scheme, host=self._origin.host, port=self._origin.port,
                                       target=self._target(asked.target)),
            headers=self._headers(asked), content=asked.body or None,
            extensions={"timeout": {"connect": limits.connect_s, "write": limits.between_s}})
        try:
            async with asyncio.timeout(wait_s):
                response = await self._pool.handle_async_request(request)
        except TimeoutError:
            raise UpstreamError(Failure("first_byte_timeout", f"no answer within {wait_s:g} s")) from None
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError,
                httpcore.ProxyError) as error:
            raise UpstreamError(_failure(error, asked, limits)) from None
        first_s = max(deadline - self._now(), 0.001) if asked.streams else limits.between_s
        return Reply(response, first_s, limits.between_s)

    async def aclose(self) -> None:
        """Ends all connections."""
        await self._pool.aclose()

    def _target(self, target: bytes) -> bytes:
        """The path of the client's base URL is /v1, that of the upstream's may be another."""
        if not self._path:
            return target
        if target == PREFIX or target.startswith((PREFIX + b"/", PREFIX + b"?")):
            return self._path + target[len(PREFIX):]
        return self._path.removesuffix(PREFIX) + target

    def _headers(self, asked: Asked) -> list[tuple[bytes, bytes]]:
        keys: Headers | None = None
        if self.settings.key is not None:
            value = self.settings.key.encode()
            keys = [(b"x-api-key", value)] if asked.kind == "messages" else [(b"authorization", b"Bearer " + value)]
        elif not self.settings.forwards_keys:
            keys = []
        sent = headers.upstream(asked.headers, self.host, keys, is_read=asked.kind != "other")
        if asked.body or asked.method in ("POST", "PUT", "PATCH"):
            sent.append((b"content-length", str(len(asked.body)).encode()))
        return sent


class Reply:
    """An answer that has begun. It has to be closed, in the task that opened it."""

    def __init__(self, response: httpcore.Response, first_s: float, between_s: float) -> None:
        self._response, self._first_s, self._between_s = response, first_s, between_s
        self.status = response.status
        self.headers: Headers = response.headers

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes, or UpstreamError where it stops coming."""
        pieces, wait_s = self._response.aiter_stream(), self._first_s
        kind: FailureKind = "first_byte_timeout"
        while True:
            try:
                async with asyncio.timeout(wait_s):
                    piece = await anext(pieces, None)
            except TimeoutError:
                raise UpstreamError(Failure(kind, f"nothing came for {wait_s:g} s")) from None
            except (httpcore.NetworkError, httpcore.ProtocolError) as error:
                raise UpstreamError(Failure("cut", str(error) or type(error).__name__)) from None
            if piece is None:
                return
            kind, wait_s = "stalled", self._between_s
            yield piece

    async def aclose(self) -> None:
        """Leaves the connection to the next request if the answer was read to its end, else ends it."""
        await self._response.aclose()


def _pool(settings: UpstreamSettings) -> httpcore.AsyncConnectionPool:
    context = httpx.create_ssl_context() if settings.url.startswith("https") else None
    proxy = None
    if settings.proxy is not None:
        named = httpx.Proxy(settings.proxy)  # takes name and password out of the URL
        proxy = httpcore.Proxy(str(named.url), auth=named.raw_auth)
    return httpcore.AsyncConnectionPool(ssl_context=context, proxy=proxy, max_connections=MAX_CONNECTIONS,
                                        max_keepalive_connections=KEPT_CONNECTIONS, keepalive_expiry=KEPT_S)


def _failure(error: Exception, asked: Asked, limits: Limits) -> Failure:
    """Of an attempt that ended before there was a status."""
    text = str(error) or type(error).__name__
    match error:
        case httpcore.ConnectTimeout():
            return Failure("connect_timeout", f"no connection within {limits.connect_s:g} s")
        case httpcore.ConnectError() | httpcore.ProxyError():
            return Failure("refused", text)
        case httpcore.TimeoutException():
            return Failure("stalled", f"the request of {len(asked.body)} bytes was not taken")
        case httpcore.RemoteProtocolError() if "disconnected" not in text:
            return Failure("malformed", text)
        case _:
            return Failure("cut", text)
