"""Server-sent events: where one ends, what is in it, and how one is written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from brise.dialects.bodies import Body
from brise.dialects.failures import ReportedError, reported

# Ends a line and the empty line behind it: LF, CR and CRLF end lines, in any mixture.
EMPTY_LINE = re.compile(rb"\n\n|[\r\n]\r\n?")
LINE_ENDS = re.compile(rb"[\r\n]+")
# An event as servers write it: its name, if it has one, and its data on one line. `_plainly` reads it and all others.
USUAL = re.compile(rb"(?:event: ?([^\r\n]*)\r?\n)?data: ?([^\r\n]*)\r?\n\r?\n")
DECODER = json.JSONDecoder()
BOM = b"\xef\xbb\xbf"
# How a stream begins: with a comment, or with a field. JSON and HTML never do.
BEGINNING = re.compile(rb":|(?:data|event|id|retry)[:\r\n]")
NUM_BEGINNING_BYTES = 6  # of `event:`
DONE = "[DONE]"
MEDIA_TYPE = b"text/event-stream"
END = f"data: {DONE}\n\n".encode()
HEADERS: Sequence[tuple[bytes, bytes]] = (
    (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"))  # nginx would hold the stream back


class ServerSentEvent:
    """One event that has data; a comment alone is none, nor is a keep-alive whose data are empty.

    `fields` are the data as a JSON object, None if they are none; `error` is what they report.
    """

    __slots__ = ("data", "error", "fields", "is_done", "name")

    def __init__(self, name: str, data: str) -> None:
        self.name, self.data = name, data
        self.is_done = data.strip() == DONE  # OpenAI's streams end with it
        self.fields: Body | None = None if self.is_done else _object(data)
        self.error: ReportedError | None = None if self.fields is None else reported(self.fields, name)

    @property
    def is_readable(self) -> bool:
        """Whether it is what events are in the dialects that there are."""
        return self.is_done or self.fields is not None


class Block:
    """The bytes up to an empty line. `lines` are what is read of them; None if there is no event in them."""

    __slots__ = ("_event", "_lines", "data")

    def __init__(self, data: bytes, lines: bytes | None) -> None:
        self.data, self._lines = data, lines
        self._event: ServerSentEvent | None = None

    @property
    def event(self) -> ServerSentEvent | None:
        """The event, read when it is first asked for; None if there is none."""
        if self._lines is not None:
            self._event, self._lines = _event(self._lines), None
        return self._event


class Splitter:
    """Splits a stream, as it comes, into blocks by the algorithm of WHATWG HTML, 9.2.5 and 9.2.6.

    A block is whole as soon as its empty line is there. Where that ends with CR, and LF follows later, the LF comes as
    a block of its own, without an event. Each byte is looked at once.
    """

    def __init__(self) -> None:
        self._held, self._num_searched, self._is_first = bytearray(), 0, True

    @property
    def num_held(self) -> int:
        """Bytes of the block that has begun."""
        return len(self._held)

    def push(self, chunk: bytes) -> list[Block]:
        """The blocks that are whole with these bytes."""
        held, blocks, at = self._held, list[Block](), 0
        end = chunk.find(b"\n\n")
        if not held and 0 < end == len(chunk) - 2 and b"\r" not in chunk and chunk[:1] != b"\n":
            return [self._block(chunk)]  # as nearly all come
        held += chunk
        searched = self._num_searched
        while True:
            ends = LINE_ENDS.match(held, at)
            if ends is not None:
                blocks.append(Block(ends[0], None))
                at = searched = ends.end()
                self._is_first = False
            empty_line = EMPTY_LINE.search(held, max(searched - 1, at))
            if empty_line is None:
                break
            blocks.append(self._block(bytes(held[at:empty_line.end()])))
            at = searched = empty_line.end()
        del held[:at]
        self._num_searched = len(held)
        return blocks

    def rest(self) -> Block:
        """What no empty line has ended. WHATWG's algorithm drops it; some servers end their last event so, and its
        clients read it."""
        rest = self._block(bytes(self._held))
        self._held.clear()
        self._num_searched = 0
        return rest

    def _block(self, data: bytes) -> Block:
        lines = data.removeprefix(BOM) if self._is_first else data
        self._is_first = False
        return Block(data, lines)


def events(stream: bytes) -> Iterator[ServerSentEvent]:
    """The events of a stream, from its beginning; what is not text is replaced. A last one that nothing ends is among
    them if it can be read."""
    splitter = Splitter()
    for block in splitter.push(stream):
        if block.event is not None:
            yield block.event
    rest = splitter.rest().event
    if rest is not None and rest.is_readable:
        yield rest


def begins_stream(head: bytes, media_type: bytes) -> bool | None:
    """Whether a body that begins with these bytes is a stream, whatever its type says; None: more bytes will tell."""
    head = head.removeprefix(BOM).lstrip()
    if head[:1] in (b"{", b"[", b"<"):
        return False
    if BEGINNING.match(head):
        return True
    return None if len(head) < NUM_BEGINNING_BYTES else media_type == MEDIA_TYPE


def _event(block: bytes) -> ServerSentEvent | None:
    usual = USUAL.fullmatch(block)
    if usual is None:
        return _plainly(block)
    name, data = usual.groups(b"")
    text = data.decode("utf-8", "replace")
    return ServerSentEvent(name.decode("utf-8", "replace") if name else "", text) if text.strip() else None


def _plainly(block: bytes) -> ServerSentEvent | None:
    """The event in a block, line by line."""
    name, data = "", list[str]()
    for line in block.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        field, _, value = line.partition(":")
        if field == "data":
            data.append(value.removeprefix(" "))
        elif field == "event":
            name = value.removeprefix(" ")
    text = "\n".join(data)
    return ServerSentEvent(name, text) if text.strip() else None


def _object(text: str) -> Body | None:
    try:
        if text[:1] == "{":  # as `loads` does it, without its looks at the type, the beginning and the white space
            value, end = DECODER.raw_decode(text)
            if end == len(text):
                return value if isinstance(value, dict) else None
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def encode(value: object, name: str | None = None) -> bytes:
    """One event, as it goes to a client."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json_text(value)}\n\n".encode()


def json_text(value: object) -> str:
    """Compact JSON; ASCII only, so that no line separator of Unicode cuts an event in two."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
