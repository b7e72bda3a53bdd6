"""Passes an answer of the hosted model on to the client, and keeps what is written down of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing

from starlette.types import Send

from brise.gateway import headers, sse
from brise.gateway.asked import Asked, Headers
from brise.gateway.failure import Failure, Relayed, UpstreamError
from brise.gateway.progress import Progress
from brise.gateway.upstream import Reply

COLLECTED_BYTES = 8 << 20  # an answer in one piece is held until it is complete, so that one cut short can be replaced
KEPT_BYTES = 32 << 20  # of an answer; a longer one is passed on, and not written down
MAX_EVENT_BYTES = 16 << 20  # with an image in base64



async def pass_on(reply: Reply, asked: Asked, send: Send, added: Headers, relayed: Relayed,
                  now: Callable[[], float] = time.monotonic) -> None:
    """The whole answer, to its end; `relayed` says how far it came if this raises UpstreamError.

    A stream of events leaves event by event, since one that is cut in the middle could not be gone on with. JSON in one
    piece leaves when it is complete. Anything else leaves as it comes.
    """
    out = _Out(send, relayed, [*headers.downstream(reply.headers), *added], now)
    media_type = headers.find(reply.headers, b"content-type").partition(b";")[0].strip().lower()
    encoding = headers.find(reply.headers, b"content-encoding")
    length = headers.find(reply.headers, b"content-length")
    if asked.kind != "other" and media_type == b"text/event-stream" and encoding in (b"", b"identity"):
        relayed.progress = Progress(asked.kind)
        await _events(reply, out, relayed.progress)
    elif media_type == b"application/json" and int(length or 0) <= COLLECTED_BYTES:
        await _whole(reply, out)
    else:
        await _as_it_comes(reply, out)
    await out.end()


async def _events(reply: Reply, out: _Out, progress: Progress) -> None:
    held = b""
    async with aclosing(reply.chunks()) as chunks:
        async for chunk in chunks:
            held += chunk
            end = sse.whole(held)
            if end == 0:
                if len(held) > MAX_EVENT_BYTES:
                    raise UpstreamError(Failure("malformed", f"an event of more than {MAX_EVENT_BYTES} bytes"))
                continue
            piece, held = held[:end], held[end:]
            for event in sse.events(piece):
                progress.push(event)
            if progress.has_content:
                out.saw_token()
            await out.pass_on(piece)
    if held:
        for event in sse.events(held):
            progress.push(event)
        await out.pass_on(held)
    if not progress.num_events:
        raise UpstreamError(Failure("malformed", "the stream holds no event"))
    if not (progress.is_done or progress.finish or progress.error):
        raise UpstreamError(Failure("cut", "the stream ended before its answer did"))


async def _whole(reply: Reply, out: _Out) -> None:
    body = bytearray()
    async with aclosing(reply.chunks()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > COLLECTED_BYTES:  # of a length that was not said before
                await out.pass_on(bytes(body))
                body.clear()
    await out.pass_on(bytes(body))


async def _as_it_comes(reply: Reply, out: _Out) -> None:
    async with aclosing(reply.chunks()) as chunks:
        async for chunk in chunks:
            await out.pass_on(chunk)


class _Out:
    """The way to the client: status and headers go with the first piece."""

    def __init__(self, send: Send, relayed: Relayed, sent_headers: Headers, now: Callable[[], float]) -> None:
        self._send, self._relayed, self._headers, self._now = send, relayed, sent_headers, now

    async def pass_on(self, piece: bytes) -> None:
        relayed = self._relayed
        if not relayed.has_begun:
            await self._begin()
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        if len(relayed.body) + len(piece) <= KEPT_BYTES:
            relayed.body += piece
        else:
            relayed.is_kept = False

    def saw_token(self) -> None:
        if self._relayed.first_s is None:
            self._relayed.first_s = self._now()

    async def end(self) -> None:
        if not self._relayed.has_begun:
            await self._begin()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self) -> None:
        self._relayed.has_begun = True
        if self._relayed.progress is None:
            self.saw_token()
        await self._send({"type": "http.response.start", "status": self._relayed.status, "headers": self._headers})
