"""Server-sent events: where one ends, what is in it, and how one is written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from brise.dialects.bodies import Body

# Ends a line and the empty line behind it: LF, CR and CRLF end lines, in any mixture.
EMPTY_LINE = re.compile(rb"\n\n|[\r\n]\r\n?")
LINE_ENDS = re.compile(rb"[\r\n]+")
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


@dataclass(frozen=True)
class ServerSentEvent:
    """One event that has data; a comment alone is none, nor is a keep-alive whose data are empty."""

    name: str
    data: str

    @property
    def is_done(self) -> bool:
        """Whether it is the one with which OpenAI's streams end."""
        return self.data.strip() == DONE

    @property
    def is_readable(self) -> bool:
        """Whether it is what events are in the dialects that there are."""
        return self.is_done or self.fields is not None

    @cached_property
    def fields(self) -> Body | None:
        """The data as a JSON object, None if they are none."""
        try:
            value = json.loads(self.data)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


@dataclass(frozen=True)
class Block:
    """The bytes up to an empty line, and the event in them, if there is one."""

    data: bytes
    event: ServerSentEvent | None


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
        return Block(data, _event(lines))


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
    name, data = "", list[str]()
    for line in block.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        field, _, value = line.partition(":")
        if field == "data":
            data.append(value.removeprefix(" "))
        elif field == "event":
            name = value.removeprefix(" ")
    text = "\n".join(data)
    return ServerSentEvent(name, text) if text.strip() else None


def encode(value: object, name: str | None = None) -> bytes:
    """One event, as it goes to a client."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json_text(value)}\n\n".encode()


def json_text(value: object) -> str:
    """Compact JSON; ASCII only, so that no line separator of Unicode cuts an event in two."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
