"""The relay passes an answer of the large model on to the client, and keeps what is to be written down of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from itertools import takewhile

from starlette.types import Send

from brise.dialects import sse
from brise.dialects.dialect import Dialect, Progress
from brise.dialects.streams import follow, progress_of
from brise.gateway import headers
from brise.gateway.failure import Delivery, UpstreamError, UpstreamFailure
from brise.gateway.request import ClientRequest, Headers
from brise.gateway.upstream import UpstreamResponse

COLLECTED_BYTES = 8 << 20  # a whole answer is held until it is complete, so that one cut short can be replaced
OWN_FAULTS = frozenset({"invalid_request_error", "authentication_error", "permission_error", "not_found_error",
                        "billing_error", "insufficient_quota"})  # types of errors that a retry would only repeat
KEPT_BYTES = 32 << 20  # of an answer; a longer one is passed on, but not written down
DONE, TAIL_BYTES = sse.DONE.encode(), 64
MAX_EVENT_BYTES = 16 << 20  # with an image in base64


async def pass_on(reply: UpstreamResponse, request: ClientRequest, send: Send, added: Headers, delivery: Delivery,
                  now: Callable[[], float] = time.monotonic, *, stops_at_faults: bool = False) -> None:
    """Passes the whole answer on; `delivery` says how far it came if this raises UpstreamError.

    A stream of events leaves event by event, since nobody could continue after half an event. JSON in one piece
    leaves when it is complete. Anything else leaves as it comes.

    With `stops_at_faults` another model can answer: then an event that cannot be read, or that reports a failure of
    the server, is held back and ends the attempt.
    """
    out = _Out(send, delivery, [*headers.downstream(reply.headers), *added], now)
    media_type = headers.find(reply.headers, b"content-type").partition(b";")[0].strip().lower()
    encoding = headers.find(reply.headers, b"content-encoding")
    length = headers.find(reply.headers, b"content-length")
    if request.dialect.is_read and media_type == b"text/event-stream" and encoding in (b"", b"identity"):
        delivery.is_stream = True
        out.forget_length()
        await _events(reply, out, request.dialect, stops_at_faults)
    elif media_type == b"application/json" and int(length or 0) <= COLLECTED_BYTES:
        await _whole(reply, out)
    else:
        await _as_it_comes(reply, out)
    await out.end()


async def _events(reply: UpstreamResponse, out: _Out, dialect: Dialect, stops_at_faults: bool) -> None:
    try:
        held = await _whole_events(reply, out, dialect, stops_at_faults)
    except UpstreamError:
        if out.has_all(dialect):
            return  # the connection was lost, or fell silent, after the end of the answer
        raise
    # The last event, without the blank line that ends it; or a part of one, which is dropped.
    is_whole = bool(held) and all(map(_is_readable, sse.events(held)))
    if is_whole:
        await _pass_piece(held, out, dialect, Progress(), stops_at_faults)
    failure = out.missing_end(dialect)
    if failure is not None:
        if is_whole:
            await out.pass_on(b"\n\n")  # so that what follows is an event of its own
        raise UpstreamError(failure)


async def _whole_events(reply: UpstreamResponse, out: _Out, dialect: Dialect, stops_at_faults: bool) -> bytes:
    """Passes whole events on; returns the rest, which is less than one."""
    held, progress = b"", Progress()
    async with aclosing(reply.chunks()) as chunks:
        async for chunk in chunks:
            held += chunk
            end = sse.whole(held)
            if end == 0:
                if len(held) > MAX_EVENT_BYTES:
                    raise UpstreamError(UpstreamFailure("malformed", f"an event of more than {MAX_EVENT_BYTES} bytes"))
                continue
            piece, held = held[:end], held[end:]
            await _pass_piece(piece, out, dialect, progress, stops_at_faults)
    return held


async def _pass_piece(piece: bytes, out: _Out, dialect: Dialect, progress: Progress, stops_at_faults: bool) -> None:
    """Without `stops_at_faults`, events are read until the first with content; the rest only pass through."""
    failure = None
    if stops_at_faults:
        failure = next(filter(None, map(_fault, sse.events(piece))), None)
        if failure is not None:
            good = takewhile(lambda block: not any(map(_fault, sse.events(block))), sse.blocks(piece))
            piece = b"".join(good)
    if piece:
        await out.pass_on(piece)
    if not progress.has_content:  # after the piece has left: no client waits for this
        for event in sse.events(piece):
            follow(dialect, progress, event)
        if progress.has_content:
            out.saw_token()
    if failure is not None:
        raise UpstreamError(failure)


def _is_readable(event: sse.ServerSentEvent) -> bool:
    return event.data == sse.DONE or event.fields is not None


def _fault(event: sse.ServerSentEvent) -> UpstreamFailure | None:
    """The server's failure that this event reports. An error in the request is for the client to see."""
    if not _is_readable(event):
        return UpstreamFailure("malformed", f"an event that is no JSON object: {event.data[:40]!r}")
    fields = event.fields or {}
    kind = str(fields.get("type") or event.name)
    error = fields.get("error") or (fields if kind == "error" else None)
    if not error:
        return None
    about = error if isinstance(error, dict) else {"message": error}
    if str(about.get("type") or about.get("code")) in OWN_FAULTS:
        return None
    return UpstreamFailure("error_event", str(about.get("message") or about.get("code") or "an error")[:200])


async def _whole(reply: UpstreamResponse, out: _Out) -> None:
    body = bytearray()
    async with aclosing(reply.chunks()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > COLLECTED_BYTES:  # its length was not stated
                await out.pass_on(bytes(body))
                body.clear()
    await out.pass_on(bytes(body))


async def _as_it_comes(reply: UpstreamResponse, out: _Out) -> None:
    async with aclosing(reply.chunks()) as chunks:
        async for chunk in chunks:
            await out.pass_on(chunk)


class _Out:
    """The client; status and headers leave with the first piece."""

    def __init__(self, send: Send, delivery: Delivery, sent_headers: Headers, now: Callable[[], float]) -> None:
        self._send, self._relayed, self._headers, self._now = send, delivery, sent_headers, now

    async def pass_on(self, piece: bytes) -> None:
        delivery = self._relayed
        if not delivery.has_begun:
            await self._begin()
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        delivery.is_kept = delivery.is_kept and len(delivery.body) + len(piece) <= KEPT_BYTES
        if delivery.is_kept:
            delivery.body += piece

    def forget_length(self) -> None:
        """A stream may become shorter or longer than its server stated."""
        self._headers = [(name, value) for name, value in self._headers if name != b"content-length"]

    def saw_token(self) -> None:
        if self._relayed.first_s is None:
            self._relayed.first_s = self._now()

    def has_all(self, dialect: Dialect) -> bool:
        """Whether the client has the stream to the end of its answer."""
        return self._relayed.is_kept and progress_of(dialect, bytes(self._relayed.body)).has_ended

    def missing_end(self, dialect: Dialect) -> UpstreamFailure | None:
        """Why a stream that has ended is not a complete answer; None if it is."""
        body = self._relayed.body
        if DONE in body[-TAIL_BYTES:] or not self._relayed.is_kept:
            return None
        progress = progress_of(dialect, bytes(body))
        if not progress.num_events:
            return UpstreamFailure("malformed", "the stream holds no event")
        if not progress.has_ended:
            return UpstreamFailure("cut", "the stream ended before its answer did")
        return None

    async def end(self) -> None:
        if not self._relayed.has_begun:
            await self._begin()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self) -> None:
        self._relayed.has_begun = True
        if not self._relayed.is_stream:
            self.saw_token()
        await self._send({"type": "http.response.start", "status": self._relayed.status, "headers": self._headers})
