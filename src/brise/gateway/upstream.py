"""The upstream, the large model's server: one pool of connections, requests as they came, answers as they come."""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import h11

from brise.dialects.bodies import Usage
from brise.errors import UnsupportedError
from brise.gateway import headers
from brise.gateway.connection import Address, Connection, LostError, NotHttpError, Pool
from brise.gateway.failure import FailureKind, UpstreamError, UpstreamFailure
from brise.gateway.request import ClientRequest, Headers

VERSION = "api-version"  # the query of Azure OpenAI's API, without which its deployments answer nothing
PREFIX = b"/v1"  # how every path of OpenAI's API begins: it is in the clients' base URL, and in the upstream's


@dataclass(frozen=True)
class Limits:
    """How long the large model may take, in seconds."""

    connect_s: float = 5.0
    first_byte_s: float = 60.0  # of a stream, until its first piece
    answer_s: float = 600.0  # of an answer in one piece, which comes when it is complete
    between_s: float = 60.0  # from one piece to the next
    total_s: float = 3600.0  # from the request to the last piece: a server may send a byte a minute for ever


@dataclass(frozen=True)
class UpstreamSettings:
    """Where the large model is. `url` is the base URL that its clients use; `key` is secret.

    Without a key the clients' own are forwarded, unless `forwards_keys` is False: then they are keys to this server.
    With one, only the dialects' paths, the list of models, and `paths` (patterns) are sent. A URL with the query
    `api-version` is one of Azure OpenAI, where each model is a deployment with a path of its own.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    forwards_keys: bool = True
    limits: Limits = Limits()
    proxy: str | None = field(default=None, repr=False)  # may hold a password
    paths: Sequence[str] = ()
    asks_for_usage: bool = True  # where its streams count tokens only if they are asked (stream_usage.py)
    tls: ssl.SSLContext | None = field(default=None, repr=False, compare=False)  # None: the usual roots

    @property
    def api_version(self) -> str | None:
        """Of an upstream at Azure, that of its URL."""
        return dict(parse_qsl(urlsplit(self.url).query)).get(VERSION)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no record may hold: the key, and the password of the proxy."""
        password = urlsplit(self.proxy or "").password
        return tuple(secret for secret in (self.key, password and unquote(password)) if secret)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            has_host = bool((parts.hostname or "").encode("idna")) and parts.port != 0
        except ValueError:  # of ports, brackets and names
            has_host = False
        if has_host and "@" in parts.netloc:
            raise UnsupportedError("the upstream's URL holds a user or a password, which would stand in logs",
                                   hint="--upstream-key-env VARIABLE names where the key is")
        is_plain = has_host and parts.path.isascii() and parts.path.isprintable() and " " not in parts.path
        has_query = is_plain and parts.query and not _VERSION.fullmatch(parts.query)
        if not is_plain or parts.scheme not in ("http", "https") or has_query or parts.fragment:
            raise UnsupportedError(f"the upstream is {self.url!r}, allowed is http(s)://HOST/PATH",
                                   hint="its base URL, as OpenAI's clients have it: https://api.openai.com/v1")


_VERSION = re.compile(rf"{VERSION}=[\w.-]+")
_JWT = re.compile(rb"ey[\w-]+\.[\w-]+\.[\w-]*")  # a token of Entra ID, which Azure takes as a bearer's


class UpstreamResponse(Protocol):
    """An answer that has begun. It must be closed."""

    status: int
    headers: Headers

    adds_usage: bool  # its stream may have a count that its client did not ask for

    @property
    def usage(self) -> Usage | None:
        """The tokens that were counted so far, if the body does not have them."""
        ...

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes; UpstreamError if it stops coming."""
        ...

    def close(self) -> None:
        """Returns the connection to the pool if the answer was read to its end; otherwise ends it."""
        ...


class HostedServer(Protocol):
    """An upstream in any dialect. It belongs to the event loop's thread."""

    counts_streams: bool  # every stream's tokens, whether they are asked for or not

    @property
    def settings(self) -> UpstreamSettings: ...

    def unfit(self, request: ClientRequest) -> UpstreamResponse | None:
        """The error for a request that its dialect cannot express; None if it can be sent."""
        ...

    async def open(self, request: ClientRequest) -> UpstreamResponse:
        """Sends a request and waits for status and headers of the answer, or raises UpstreamError."""
        ...

    def close(self) -> None:
        """Ends idle connections."""
        ...


class Upstream:
    """Sends requests to one server, as they are."""

    counts_streams = False

    def __init__(self, settings: UpstreamSettings) -> None:
        self.settings: UpstreamSettings = settings
        parts = urlsplit(settings.url)
        self._is_plain_proxied = settings.proxy is not None and parts.scheme == "http"
        self.host = parts.netloc.rpartition("@")[2].encode("idna")
        self._path = parts.path.rstrip("/").encode()
        self._api_version = settings.api_version
        address = _address(settings)
        self._proxy_key = address.proxy[2] if address.proxy is not None and self._is_plain_proxied else b""
        self._pool = Pool(address)

    def unfit(self, request: ClientRequest) -> None:
        """None: every request is sent, and the server says what is wrong with it."""

    async def open(self, request: ClientRequest) -> UpstreamResponse:
        """Sends a request and waits for status and headers of the answer, or raises UpstreamError."""
        connection = self._pool.take() or await self._connect()
        limits = self.settings.limits
        wait_s = limits.first_byte_s if request.streams else limits.answer_s
        now = asyncio.get_running_loop().time  # the clock that time limits are waited for by
        begun_s = now()
        try:
            connection.send(request.method, self._target(request), self._headers(request), request.body)
            response = await connection.answer(wait_s)
        except BaseException as error:
            connection.abort()
            match error:
                case TimeoutError():
                    failure = UpstreamFailure("first_byte_timeout", f"no answer within {wait_s:g} s")
                case LostError():
                    failure = UpstreamFailure("cut", str(error), is_stale=connection.num_requests > 1)
                case NotHttpError():
                    failure = UpstreamFailure("malformed", str(error))
                case _:
                    raise
            raise UpstreamError(failure) from None
        first_s = max(wait_s - (now() - begun_s), 0.001) if request.streams else limits.between_s
        return _HttpReply(self._pool, connection, response, first_s, limits, begun_s)

    def close(self) -> None:
        """Ends idle connections."""
        self._pool.close()

    async def _connect(self) -> Connection:
        wait_s = self.settings.limits.connect_s
        try:
            async with asyncio.timeout(wait_s):
                return await self._pool.connect()
        except TimeoutError:
            raise UpstreamError(UpstreamFailure("connect_timeout", f"no connection within {wait_s:g} s")) from None
        except OSError as error:  # errors of TLS too
            raise UpstreamError(UpstreamFailure("refused",
                                                error.strerror or str(error) or type(error).__name__)) from None

    def _target(self, request: ClientRequest) -> bytes:
        """The path of the client's base URL is /v1; that of the upstream's may differ."""
        target = request.target
        if b"?" in target and not self._takes_their_keys:
            target = headers.without_secrets(target)
        is_deployment = self._api_version is not None or (
            request.deployment is not None and not self._path.endswith(PREFIX))
        if is_deployment:
            target = self._azure_target(request, target)
        else:
            if request.deployment is not None:
                target = without_version(target)
            if target == PREFIX or target.startswith((PREFIX + b"/", PREFIX + b"?")):
                target = (self._path or PREFIX) + target[len(PREFIX):]
            else:
                target = self._path.removesuffix(PREFIX) + target
        return b"http://" + self.host + target if self._is_plain_proxied else target

    @property
    def _takes_their_keys(self) -> bool:
        return self.settings.key is None and self.settings.forwards_keys

    def _azure_target(self, request: ClientRequest, target: bytes) -> bytes:
        """As Azure has it: the model's deployment is in the path, and the version of the API in the query.

        Responses have their model in the body; so does everything else that no deployment answers.
        """
        path, _, query = target.partition(b"?")
        rest, model = path.removeprefix(PREFIX), request.deployment or (request.fields or {}).get("model")
        is_of_model = request.deployment is not None or request.dialect.is_deployed
        if is_of_model and isinstance(model, str) and model:
            rest = b"/deployments/" + quote(model, safe="").encode() + rest
        if self._api_version is not None and not re.search(rb"(?:^|&)api-version=", query):
            query = b"&".join(filter(None, (query, f"{VERSION}={self._api_version}".encode())))
        base = self._path.removesuffix(b"/openai") + b"/openai"
        return base + rest + (b"?" + query if query else b"")

    def _headers(self, request: ClientRequest) -> list[tuple[bytes, bytes]]:
        keys: Headers | None = None
        if self.settings.key is not None:
            key = self.settings.key.encode()
            keys = [(b"api-key", key) if self._api_version is not None else request.dialect.key_header(key)]
        elif not self.settings.forwards_keys:
            keys = []
        sent = headers.upstream(request.headers, self.host, keys, is_read=request.dialect.is_read)
        if keys is None:
            sent = self._with_their_key(request, sent)
        if self._proxy_key:
            sent.append((b"proxy-authorization", self._proxy_key))
        if request.body or request.method in ("POST", "PUT", "PATCH"):
            sent.append((b"content-length", str(len(request.body)).encode()))
        return sent

    def _with_their_key(self, request: ClientRequest, sent: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """A client's own key in the header that this server reads: Azure's clients and OpenAI's have different ones."""
        bearer, key = headers.find(sent, b"authorization"), headers.find(sent, b"api-key")
        scheme, _, token = bearer.partition(b" ")
        if self._api_version is not None and not key and scheme.lower() == b"bearer" and not _JWT.fullmatch(token):
            return [*(each for each in sent if each[0] != b"authorization"), (b"api-key", token.strip())]
        if self._api_version is None and request.deployment is not None and self._path.endswith(PREFIX) and (
                key and not bearer):
            return [*(each for each in sent if each[0] != b"api-key"), request.dialect.key_header(key)]
        return sent


class NoUpstream:
    """The place of a large model where there is none, as on a device that works alone: every request fails at once, so
    that the small model answers, and the request waits for a large one."""

    counts_streams = False

    def __init__(self) -> None:
        self.settings: UpstreamSettings = UpstreamSettings("http://none.invalid/v1", forwards_keys=False)

    def unfit(self, request: ClientRequest) -> None:
        """None: no dialect is at fault."""

    async def open(self, request: ClientRequest) -> UpstreamResponse:
        """UpstreamError, always."""
        raise UpstreamError(UpstreamFailure("refused", "there is no large model here (--upstream none)"))

    def close(self) -> None:
        """Nothing is open."""


def without_version(target: bytes) -> bytes:
    """A target without the version that Azure's clients give, which nobody else knows."""
    path, _, query = target.partition(b"?")
    kept = b"&".join(part for part in query.split(b"&") if part and not part.startswith(b"api-version="))
    return path + (b"?" + kept if kept else b"")


class _HttpReply:
    """An answer over HTTP."""

    adds_usage = False
    usage = None

    def __init__(self, pool: Pool, connection: Connection, response: h11.Response, first_s: float, limits: Limits,
                 begun_s: float) -> None:
        self._pool, self._connection = pool, connection
        self._first_s, self._limits, self._end_s = first_s, limits, begun_s + limits.total_s
        self.status = response.status_code
        self.headers: Headers = [*response.headers]

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes; UpstreamError if it stops coming."""
        wait_s = self._first_s
        kind: FailureKind = "first_byte_timeout"
        now = asyncio.get_running_loop().time
        while True:
            left_s = self._end_s - now()
            if left_s <= 0:
                raise UpstreamError(UpstreamFailure("stalled", self._not_complete))
            try:
                piece = await self._connection.piece(min(wait_s, left_s))
            except TimeoutError:
                why = f"nothing came for {wait_s:g} s" if wait_s < left_s else self._not_complete
                raise UpstreamError(UpstreamFailure(kind, why)) from None
            except LostError as error:
                raise UpstreamError(UpstreamFailure("cut", str(error))) from None
            except NotHttpError as error:
                raise UpstreamError(UpstreamFailure("malformed", str(error))) from None
            if not piece:
                return
            kind, wait_s = "stalled", self._limits.between_s
            yield piece

    @property
    def _not_complete(self) -> str:
        return f"it was not complete after {self._limits.total_s:g} s"

    def close(self) -> None:
        """Returns the connection to the pool if the answer was read to its end; otherwise ends it."""
        self._pool.give_back(self._connection)


def _address(settings: UpstreamSettings) -> Address:
    parts = urlsplit(settings.url)
    assert parts.hostname is not None
    context = None
    if parts.scheme == "https":
        import httpx  # noqa: PLC0415 - with its command line's libraries a seventh of a server's start

        context = settings.tls or httpx.create_ssl_context()  # certifi's roots, or SSL_CERT_FILE
    proxy = None
    if settings.proxy is not None:
        through = urlsplit(settings.proxy if "//" in settings.proxy else f"//{settings.proxy}")
        if through.scheme not in ("", "http") or through.hostname is None:
            raise UnsupportedError(f"the proxy to the upstream is a {through.scheme!r} proxy, allowed is http://HOST:PORT",
                                   hint="it is named by the environment: HTTPS_PROXY, HTTP_PROXY")
        name = f"{unquote(through.username or '')}:{unquote(through.password or '')}"
        key = b"" if name == ":" else b"Basic " + base64.b64encode(name.encode())
        proxy = (through.hostname, through.port or 80, key)
    return Address(parts.hostname, parts.port or (443 if context else 80), context, proxy)
