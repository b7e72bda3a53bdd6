"""The relay passes an answer of the large model on to the client, and keeps what is to be written down of it.

The body decides whether it is an answer, and whether it is a stream: neither its status nor its type does.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from starlette.types import Send

from brise.dialects import failures, sse
from brise.dialects.bodies import Body
from brise.dialects.dialect import Dialect, Progress
from brise.dialects.streams import follow
from brise.gateway import encodings, headers
from brise.gateway.failure import Delivery, UpstreamError, UpstreamFailure
from brise.gateway.request import ClientRequest, Headers
from brise.gateway.stream_usage import without_count
from brise.gateway.upstream import UpstreamResponse

COLLECTED_BYTES = 8 << 20  # a whole answer is held until it is complete, so that one cut short can be replaced
CHECKED_BYTES = 256 << 10  # of JSON are read within 5 ms; no failure is longer, and longer answers are read afterwards
KEPT_BYTES = 32 << 20  # of an answer; a longer one is passed on, but not written down
MAX_EVENT_BYTES = 16 << 20  # with an image in base64
HEAD_BYTES = 64 << 10  # of white space before an answer, with which some servers keep a connection open
# What may end an answer, report an error, or begin another choice; text that only looks like it is read as well.
ENDS, OTHER_CHOICE = re.compile(rb'_reason"\s*:\s*"'), re.compile(rb'"index"\s*:\s*[1-9]')
TOO_LONG = f"the answer was not kept: it has more than {KEPT_BYTES >> 20} MiB"

Pieces = AsyncGenerator[tuple[bytes, bytes], None]  # as they came, and decoded


async def pass_on(reply: UpstreamResponse, request: ClientRequest, send: Send, added: Headers, delivery: Delivery,
                  now: Callable[[], float] = time.monotonic, *, stops_at_faults: bool = False) -> None:
    """Passes the whole answer on; `delivery` says how far it came if this raises UpstreamError.

    A stream of events leaves event by event, since nobody could continue after half an event. JSON in one piece
    leaves when it is complete. Anything else leaves as it comes. The bytes stay as they are.

    With `stops_at_faults` another model can answer: then a body that is no answer is held back and ends the attempt,
    and so does an event that cannot be read, or that reports a failure of the server. A compressed stream is passed on
    decompressed, so that another model can continue it. Without it, `delivery.fault` says what was wrong.

    What the gateway asked of a stream and its client did not (`adds_usage`) is kept, and not passed on.
    """
    out = _Out(send, delivery, [*headers.downstream(reply.headers), *added], now)
    if request.dialect.is_read:
        await _Answer(reply, request.dialect, out, delivery, stops_at_faults).pass_on()
    else:
        await _unread(reply, out)
    await out.end()


class _Answer:
    """An answer in a dialect that is read here."""

    def __init__(self, reply: UpstreamResponse, dialect: Dialect, out: _Out, delivery: Delivery,
                 stops_at_faults: bool) -> None:
        self._reply, self._dialect, self._out, self._delivery = reply, dialect, out, delivery
        self._stops_at_faults, self._splitter = stops_at_faults, sse.Splitter()
        self._encoding = headers.find(reply.headers, b"content-encoding").strip().lower()
        self._media_type = headers.find(reply.headers, b"content-type").partition(b";")[0].strip().lower()

    async def pass_on(self) -> None:
        decoder = encodings.decoder(self._encoding)
        if decoder is None:
            encoding = self._encoding[:40].decode("latin-1")
            self._delivery.unkept = f"the answer was not read: its content encoding is {encoding!r}"
            await _as_it_comes(self._reply, self._out)
            return
        source = _Source(self._reply, decoder)
        async with aclosing(source.pieces()) as pieces:
            raw, head, is_stream = await self._head(pieces)
            if is_stream and self._reply.status < 300:
                await self._pass_stream(raw, head, pieces, source)
            else:
                await self._pass_whole(raw, head, pieces, source)

    async def _head(self, pieces: Pieces) -> tuple[bytes, bytes, bool]:
        """The first bytes, as they came and decoded, and whether they begin a stream."""
        raw, head = b"", b""
        async for piece in pieces:
            raw, head = raw + piece[0], head + piece[1]
            is_stream = sse.begins_stream(head, self._media_type)
            if is_stream is not None or len(head) > HEAD_BYTES:
                return raw, head, is_stream or False
        return raw, head, self._media_type == sse.MEDIA_TYPE

    # A stream of events.

    async def _pass_stream(self, raw: bytes, head: bytes, pieces: Pieces, source: _Source) -> None:
        delivery, is_encoded = self._delivery, self._encoding not in (b"", b"identity")
        delivery.is_stream, delivery.is_encoded = True, is_encoded and not self._stops_at_faults
        if self._media_type != sse.MEDIA_TYPE:  # clients, and who ends the stream in our place, go by it
            self._out.drop_headers(b"content-type")
            self._out.add_header(b"content-type", sse.MEDIA_TYPE)
        if not delivery.is_encoded:  # it may become shorter or longer, and it is decoded
            self._out.drop_headers(b"content-length", b"content-encoding")
        try:
            await self._pass_piece(raw, head)
            async for raw, piece in pieces:
                await self._pass_piece(raw, piece)
        except UpstreamError:
            if not delivery.followed.has_ended:
                raise
            return  # the connection was lost, or fell silent, after the end of the answer
        await self._end_stream(source.wrong)

    async def _pass_piece(self, raw: bytes, piece: bytes) -> None:
        await self._pass_blocks(raw, self._splitter.push(piece))
        if self._splitter.num_held > MAX_EVENT_BYTES:
            raise UpstreamError(UpstreamFailure("malformed", f"an event of more than {MAX_EVENT_BYTES} bytes"))

    async def _pass_blocks(self, raw: bytes, blocks: Sequence[sse.Block]) -> None:
        delivery, good, shown, fault = self._delivery, bytearray(), bytearray(), None
        for block in blocks:
            is_read = self._stops_at_faults or not delivery.followed.has_content or not _is_plain(block.data)
            event = block.event if is_read else None
            fault = None if event is None else _fault(event, delivery.followed)
            if fault is not None and self._stops_at_faults:
                break
            delivery.fault = delivery.fault or fault
            good += block.data
            shown += without_count(block) if self._reply.adds_usage else block.data
            if event is not None:
                follow(self._dialect, delivery.followed, event)
        if delivery.is_encoded:
            await self._out.pass_on(raw, kept=bytes(good))
        elif good:
            await self._out.pass_on(bytes(shown), kept=bytes(good))
        if delivery.followed.has_content:
            self._out.saw_token()
        if fault is not None and self._stops_at_faults:
            raise UpstreamError(fault)

    async def _end_stream(self, wrong: str | None) -> None:
        """What no empty line has ended: the last event, or a part of one, which is dropped unless all was said."""
        delivery, rest = self._delivery, self._splitter.rest()
        is_event = rest.event is not None and rest.event.is_readable
        if rest.data and (is_event or delivery.followed.has_ended):
            await self._pass_blocks(b"", [rest if is_event else sse.Block(rest.data, None)])
        if delivery.fault is not None and delivery.fault.kind != "error_event" and delivery.followed.has_content:
            delivery.fault = None  # the client has an answer; only what is written down of it says what was wrong
        failure = _missing_end(delivery.followed) if wrong is None else UpstreamFailure("malformed", wrong)
        if failure is None or (wrong is not None and delivery.followed.has_ended):
            return
        if wrong is not None and delivery.is_encoded:
            delivery.fault = delivery.fault or failure  # the client has all that came
            return
        if is_event:
            await self._out.pass_on(b"\n\n")  # so that what follows is an event of its own
        raise UpstreamError(failure)

    # Anything else.

    async def _pass_whole(self, raw: bytes, head: bytes, pieces: Pieces, source: _Source) -> None:
        """Held until it is complete, if it is not too long for that."""
        body, text = bytearray(raw), bytearray(head)
        async for raw, piece in pieces:
            body += raw
            if len(text) <= CHECKED_BYTES:
                text += piece
            if len(body) > COLLECTED_BYTES:
                await self._out.pass_on(bytes(body))
                body.clear()
        if self._reply.status < 300 and not self._delivery.has_begun:
            fault = (UpstreamFailure("malformed", source.wrong) if source.wrong is not None
                     else self._whole_fault(bytes(text)))
            if fault is not None and self._stops_at_faults:
                raise UpstreamError(fault)
            if fault is not None:
                self._delivery.fault = fault
                self._out.answer_failed()
        await self._out.pass_on(bytes(body))

    def _whole_fault(self, text: bytes) -> UpstreamFailure | None:
        """Why a whole body of a successful status is no answer. An error that the client caused is for it to see."""
        if len(text) > CHECKED_BYTES and text[:HEAD_BYTES].removeprefix(sse.BOM).lstrip()[:1] == b"{":
            return None  # too long for an error; what is written down of it is checked afterwards
        fields = self._delivery.fields = json_object(text)
        why = self._delivery.why = self._dialect.failure(fields)
        if why is None:
            return None
        reported = None if fields is None else failures.reported(fields)
        if reported is not None:
            return None if reported.is_own else UpstreamFailure("error_event", reported.message, reported.status)
        if fields is None and text.strip():
            return UpstreamFailure("malformed", f"the body is no JSON object: {text[:40]!r}")
        if not why.startswith("it ended"):
            return UpstreamFailure("malformed", why)
        return None if self._says_something(fields or {}) else UpstreamFailure("cut", why)

    def _says_something(self, fields: Body) -> bool:
        """Whether a body that came whole, and does not say why its answer ended, has one: some servers never say."""
        try:
            return bool(self._dialect.chat_answer(fields))
        except ValueError:
            return False


def json_object(text: bytes) -> Body | None:
    """A body as a JSON object, None if it is none."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_plain(block: bytes) -> bool:
    """Whether an event behind the first content need not be read where nobody goes on: one more piece of one choice."""
    if not block.startswith(b'data: {') or b'"choices"' not in block:
        return False
    lowered = block.lower()  # spelled out, as it runs for every event
    return not (b"error" in lowered or b"detail" in lowered or b"status" in lowered or ENDS.search(lowered)
                or OTHER_CHOICE.search(lowered))


def _fault(event: sse.ServerSentEvent, progress: Progress) -> UpstreamFailure | None:
    """The server's failure that this event reports. An error in the request is for the client to see."""
    if event.is_done:
        is_whole = progress.is_whole or progress.error is not None
        return None if is_whole else UpstreamFailure("cut", "the stream ended before its answer did")
    if event.fields is None:
        return UpstreamFailure("malformed", f"an event that is no JSON object: {event.data[:40]!r}")
    reported = event.error
    if reported is None or reported.is_own:
        return None
    return UpstreamFailure("error_event", reported.message, reported.status)


def _missing_end(progress: Progress) -> UpstreamFailure | None:
    """Why a stream that has ended is not a complete answer; None if it is."""
    if progress.has_ended:
        return None
    if not progress.num_events:
        return UpstreamFailure("malformed", "the stream holds no event")
    return UpstreamFailure("cut", "the stream ended before its answer did")


class _Source:
    """A body as it comes, beside what it decodes to. `wrong`: from some place on it could not be decoded."""

    def __init__(self, reply: UpstreamResponse, decoder: encodings.Decoder) -> None:
        self._reply, self._decoder = reply, decoder
        self.wrong: str | None = None

    async def pieces(self) -> Pieces:
        """Each piece as it came, with the first that it decodes to; the others follow with nothing that came."""
        async with aclosing(self._reply.chunks()) as chunks:
            async for chunk in chunks:
                raw = chunk
                try:
                    for piece in self._decoder.decode(chunk) if self.wrong is None else ():
                        yield raw, piece
                        if not raw:
                            await asyncio.sleep(0)  # a few bytes may decode to very many
                        raw = b""
                except encodings.DecodingError as error:
                    self.wrong = str(error)
                if raw:
                    yield raw, b""


async def _unread(reply: UpstreamResponse, out: _Out) -> None:
    """JSON in one piece is held until it is complete, so that one cut short can be repeated."""
    media_type = headers.find(reply.headers, b"content-type").partition(b";")[0].strip().lower()
    length = int(headers.find(reply.headers, b"content-length") or 0)
    if media_type != b"application/json" or length > COLLECTED_BYTES:
        await _as_it_comes(reply, out)
        return
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
        self._send, self._delivery, self._headers, self._now = send, delivery, sent_headers, now

    async def pass_on(self, piece: bytes, *, kept: bytes | None = None) -> None:
        """Sends a piece, and keeps it, or what it decodes to."""
        delivery, kept = self._delivery, piece if kept is None else kept
        if piece or not kept:  # a count that the client did not ask for is kept only
            if not delivery.has_begun:
                await self._begin()
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        if delivery.unkept is None and len(delivery.body) + len(kept) > KEPT_BYTES:
            delivery.unkept = TOO_LONG
        if delivery.unkept is None:
            delivery.body += kept

    def drop_headers(self, *names: bytes) -> None:
        """They do not hold for what is sent."""
        self._headers = [(name, value) for name, value in self._headers if name not in names]

    def add_header(self, name: bytes, value: bytes) -> None:
        """One that the upstream left out."""
        self._headers = [*self._headers, (name, value)]

    def answer_failed(self) -> None:
        """What is about to leave is no answer."""
        self._headers = [(name, b"failed" if name == b"x-brise-mode" else value) for name, value in self._headers]

    def saw_token(self) -> None:
        if self._delivery.first_s is None:
            self._delivery.first_s = self._now()

    async def end(self) -> None:
        if not self._delivery.has_begun:
            await self._begin()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self) -> None:
        self._delivery.has_begun = True
        if not self._delivery.is_stream:
            self.saw_token()
        await self._send({"type": "http.response.start", "status": self._delivery.status, "headers": self._headers})
