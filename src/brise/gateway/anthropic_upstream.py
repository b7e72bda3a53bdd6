"""An upstream that speaks Anthropic's Messages API, made to look like one that speaks OpenAI's chat completions."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from brise.dialects import sse
from brise.dialects.anthropic_from_chat import messages_request
from brise.dialects.anthropic_to_chat import Chunks, chat_completion, error_of
from brise.dialects.bodies import Usage
from brise.dialects.table import CHAT, MESSAGES
from brise.errors import RequestError
from brise.gateway import encodings, headers
from brise.gateway.failure import UpstreamError, UpstreamFailure
from brise.gateway.relay import HEAD_BYTES, KEPT_BYTES, MAX_EVENT_BYTES
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
    readable = encodings.readable(reply)
    if readable is None:
        if reply.status >= 300:
            return reply
        encoding = headers.find(reply.headers, b"content-encoding")[:40].decode("latin-1")
        raise UpstreamError(UpstreamFailure("malformed", f"its content encoding {encoding!r} is not read here"))
    return _Translated(readable, request)


class _Translated:
    """An answer in one piece, an error, or a stream: its first bytes tell."""

    adds_usage = False

    def __init__(self, reply: UpstreamResponse, request: ClientRequest) -> None:
        options = (request.fields or {}).get("stream_options")
        self._reply, self._created, self._splitter = reply, int(request.at_s), sse.Splitter()
        self._chunks = Chunks(self._created, with_usage=isinstance(options, dict)
                              and options.get("include_usage") is True)
        self.status, self.headers = reply.status, _answered(reply.headers)
        self._usage: Usage | None = None

    @property
    def usage(self) -> Usage | None:
        """With what was written into the cache, for which a chat completion has no name."""
        return self._usage or self._chunks.usage

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """A body when it is complete; of a stream the events that each piece translates to."""
        media_type = headers.find(self.headers, b"content-type").partition(b";")[0].strip().lower()
        is_stream, body = None if self.status < 300 else False, bytearray()
        async with aclosing(self._reply.chunks()) as pieces:
            async for piece in pieces:
                body += piece
                if is_stream is None:
                    is_stream = sse.begins_stream(bytes(body[:HEAD_BYTES]), media_type)
                if is_stream:
                    async for translated in self._events(self._splitter.push(bytes(body))):
                        yield translated
                    body.clear()
                if max(len(body), self._splitter.num_held) > (MAX_EVENT_BYTES if is_stream else KEPT_BYTES):
                    raise UpstreamError(UpstreamFailure("malformed", f"an answer of more than {KEPT_BYTES} bytes"))
        if is_stream:  # the last event, without the blank line that ends it, or a part of one
            rest = self._splitter.rest()
            if rest.event is not None and rest.event.is_readable:
                async for translated in self._events([rest]):
                    yield translated
        else:
            yield self._whole(bytes(body))

    def close(self) -> None:
        self._reply.close()

    async def _events(self, blocks: Sequence[sse.Block]) -> AsyncGenerator[bytes, None]:
        """The events before a malformed one still leave."""
        translated, wrong = bytearray(), None
        for block in blocks:
            try:
                translated += b"" if block.event is None else self._chunks.push(block.event)
            except ValueError as error:
                wrong = UpstreamFailure("malformed", f"no stream of the Messages API: {error}")
                break
        if translated:
            yield bytes(translated)
        if wrong is not None:
            raise UpstreamError(wrong)

    def _whole(self, body: bytes) -> bytes:
        try:
            value = json.loads(body)
            if not isinstance(value, dict):
                raise ValueError("it is no JSON object")
            self._usage = MESSAGES.usage(value)
            is_error = self.status >= 300 or value.get("type") == "error"
            translated = error_of(value) if is_error else chat_completion(value, self._created)
        except (ValueError, RecursionError) as error:
            if self.status >= 300:
                return body  # an error of another server on the way
            raise UpstreamError(UpstreamFailure("malformed", f"no answer of the Messages API: {error}")) from None
        return json.dumps(translated, ensure_ascii=False).encode("utf-8", "replace")


class _Said:
    """An error of the gateway's own: the upstream is not asked."""

    adds_usage = False
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
