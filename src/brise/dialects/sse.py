"""Server-sent events: where one ends, what is in it, and how one is written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from brise.dialects.bodies import Body

ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
BLOCK = re.compile(rb"(?s).*?(?:\n\n|\r\n\r\n|\r\r)")
DONE = "[DONE]"
END = f"data: {DONE}\n\n".encode()
HEADERS: Sequence[tuple[bytes, bytes]] = (
    (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"))  # nginx would hold the stream back


@dataclass(frozen=True)
class ServerSentEvent:
    """One event; a comment alone is none."""

    name: str
    data: str

    @cached_property
    def fields(self) -> Body | None:
        """The data as a JSON object, None if they are none."""
        try:
            value = json.loads(self.data)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


def blocks(stream: bytes) -> list[bytes]:
    """Whole events apart, each with what ends it."""
    return BLOCK.findall(stream)


def whole(stream: bytes) -> int:
    """How many bytes of `stream` are whole events: the rest may still grow."""
    return max(position + len(end) if (position := stream.rfind(end)) >= 0 else 0 for end in ENDS)


def events(stream: bytes) -> Iterator[ServerSentEvent]:
    """The events in a piece of a stream that begins with one; what is not text is replaced."""
    name, data = "", list[str]()
    for line in stream.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if not line:
            if data:
                yield ServerSentEvent(name, "\n".join(data))
            name, data = "", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            name = value
    if data:  # the last event, without the blank line that ends it
        yield ServerSentEvent(name, "\n".join(data))


def encode(value: object, name: str | None = None) -> bytes:
    """One event, as it goes to a client."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json_text(value)}\n\n".encode()


def json_text(value: object) -> str:
    """Compact JSON; ASCII only, so that no line separator of Unicode cuts an event in two."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
