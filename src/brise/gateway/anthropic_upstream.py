"""An upstream that speaks Anthropic's Messages API, made to look like one that speaks OpenAI's chat completions."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from brise.dialects import sse
from brise.dialects.anthropic_from_chat import messages_request
from brise.dialects.anthropic_to_chat import Chunks, chat_completion, error_of
from brise.dialects.bodies import Usage
from brise.dialects.table import CHAT, MESSAGES
from brise.errors import RequestError
from brise.gateway import headers
from brise.gateway.failure import UpstreamError, UpstreamFailure
from brise.gateway.relay import KEPT_BYTES, MAX_EVENT_BYTES
from brise.gateway.request import ClientRequest, Headers
from brise.gateway.upstream import Upstream, UpstreamResponse, UpstreamSettings

VERSION = b"2023-06-01"
# Headers about an account at OpenAI, and those that are written anew.
DROPPED, OPENAI = frozenset({b"authorization", b"api-key", b"anthropic-version"}), b"openai-"


class AnthropicUpstream:
    """Translates chats and their answers; requests for Messages pass through. It belongs to the event loop's thread."""

    counts_streams = True

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    @property
    def settings(self) -> UpstreamSettings:
        return self._upstream.settings

    def unfit(self, request: ClientRequest) -> UpstreamResponse | None:
        """The error for a request that cannot be expressed in this dialect."""
        if request.dialect is not CHAT:
            if request.path == MESSAGES.path or request.path.startswith(f"{MESSAGES.path}/"):
                return None
            return _Said(404, RequestError(
                f"{request.method} {request.path}: the upstream's dialect is anthropic, which answers "
                f"POST {CHAT.path} and {MESSAGES.path}", code="unsupported_path"))
        try:
            _sent(request)
        except RequestError as error:
            return _Said(400, error)
        return None

    async def open(self, request: ClientRequest) -> UpstreamResponse:
        """Sends a request (see `unfit`), and waits for status and headers of the answer, or raises UpstreamError."""
        if request.dialect is not CHAT:
            return await self._upstream.open(replace(request, dialect=MESSAGES))  # whose key goes as x-api-key
        body = json.dumps(_sent(request), ensure_ascii=False).encode("utf-8", "replace")
        target = MESSAGES.path.encode() + b"".join(request.target.partition(b"?")[1:])
        wire = replace(request, dialect=MESSAGES, path=MESSAGES.path, target=target, headers=_headers(request),
                       body=body)
        reply = await self._upstream.open(wire)
        try:
            return _read(reply, request)
        except UpstreamError:
            reply.close()
            raise

    def close(self) -> None:
        """Ends idle connections."""
        self._upstream.close()


def _sent(request: ClientRequest) -> dict[str, object]:
    if request.fields is None:
        raise RequestError("the body is no JSON object", code="invalid_json")
    return messages_request(request.fields)


def _headers(request: ClientRequest) -> Headers:
    """Clients of OpenAI send their key as a bearer token."""
    kept = [(name, value) for name, value in request.headers if name not in DROPPED and not name.startswith(OPENAI)]
    scheme, _, key = (request.header(b"authorization") or "").partition(" ")
    if scheme.lower() == "bearer" and request.header(b"x-api-key") is None:
        kept.append((b"x-api-key", key.strip().encode("latin-1")))
    return [*kept, (b"anthropic-version", VERSION)]


def _read(reply: UpstreamResponse, request: ClientRequest) -> UpstreamResponse:
    """The answer in OpenAI's dialect; what is neither an answer nor an error of this API passes through."""
    media_type = headers.find(reply.headers, b"content-type").partition(b";")[0].strip().lower()
    is_readable = headers.find(reply.headers, b"content-encoding") in (b"", b"identity")
    if reply.status >= 300:
        return _Whole(reply, request) if is_readable and media_type == b"application/json" else reply
    if not is_readable:
        raise UpstreamError(UpstreamFailure("malformed", "it is compressed, though it was asked for uncompressed"))
    match media_type:
        case b"application/json":
            return _Whole(reply, request)
        case b"text/event-stream":
            return _Stream(reply, request)
        case _:
            raise UpstreamError(UpstreamFailure("malformed",
                                                f"the answer is of type {media_type.decode('latin-1')[:40]!r}"))


class _Whole:
    """An answer in one piece, or an error."""

    def __init__(self, reply: UpstreamResponse, request: ClientRequest) -> None:
        self._reply, self._created = reply, int(request.at_s)
        self.status, self.headers = reply.status, _answered(reply.headers)
        self.usage: Usage | None = None  # with what was written into the cache, for which a chat completion has no name

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body, when it is complete."""
        body = bytearray()
        async with aclosing(self._reply.chunks()) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) > KEPT_BYTES:
                    raise UpstreamError(UpstreamFailure("malformed", f"an answer of more than {KEPT_BYTES} bytes"))
        try:
            yield self._translated(bytes(body))
        except (ValueError, RecursionError) as error:
            if self.status < 300:
                raise UpstreamError(UpstreamFailure("malformed", f"no answer of the Messages API: {error}")) from None
            yield bytes(body)  # an error of another server on the way

    def close(self) -> None:
        self._reply.close()

    def _translated(self, body: bytes) -> bytes:
        value = json.loads(body)
        if not isinstance(value, dict):
            raise ValueError("it is no JSON object")
        self.usage = MESSAGES.usage(value)
        translated = error_of(value) if self.status >= 300 else chat_completion(value, self._created)
        return json.dumps(translated, ensure_ascii=False).encode("utf-8", "replace")


class _Stream:
    """A stream."""

    def __init__(self, reply: UpstreamResponse, request: ClientRequest) -> None:
        options = (request.fields or {}).get("stream_options")
        self._reply = reply
        self._chunks = Chunks(int(request.at_s), with_usage=isinstance(options, dict)
                              and options.get("include_usage") is True)
        self.status, self.headers = reply.status, _answered(reply.headers)

    @property
    def usage(self) -> Usage | None:
        return self._chunks.usage

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The events that each piece translates to; those before a malformed one still leave."""
        held = b""
        async with aclosing(self._reply.chunks()) as pieces:
            async for piece in pieces:
                held += piece
                end = sse.whole(held)
                if end == 0 and len(held) > MAX_EVENT_BYTES:
                    raise UpstreamError(UpstreamFailure("malformed", f"an event of more than {MAX_EVENT_BYTES} bytes"))
                translated, wrong = self._translated_events(held[:end])
                held = held[end:]
                if translated:
                    yield translated
                if wrong is not None:
                    raise UpstreamError(wrong)
        # The last event, without the blank line that ends it, or a part of one.
        translated, _ = self._translated_events(held)
        if translated:
            yield translated

    def close(self) -> None:
        self._reply.close()

    def _translated_events(self, stream: bytes) -> tuple[bytes, UpstreamFailure | None]:
        translated = bytearray()
        for event in sse.events(stream):
            try:
                translated += self._chunks.push(event)
            except ValueError as error:
                return bytes(translated), UpstreamFailure("malformed", f"no stream of the Messages API: {error}")
        return bytes(translated), None


class _Said:
    """An error of the gateway's own: the upstream is not asked."""

    usage = None

    def __init__(self, status: int, error: RequestError) -> None:
        self._body = json.dumps({"error": {"message": str(error), "type": "invalid_request_error",
                                           "param": error.param, "code": error.code}}).encode()
        self.status = status
        self.headers: Headers = [(b"content-type", b"application/json"),
                                 (b"content-length", str(len(self._body)).encode())]

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        yield self._body

    def close(self) -> None:
        """Nothing to close."""


def _answered(sent: Headers) -> Headers:
    """The length differs from the upstream's; its id of the request goes by OpenAI's name."""
    kept = [(name, value) for name, value in sent if name.lower() not in (b"content-length", b"x-request-id")]
    request_id = headers.find(sent, b"request-id")
    return [*kept, (b"x-request-id", request_id)] if request_id else kept
