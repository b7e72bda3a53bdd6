"""Turns bytes into text that is safe to show: whole characters, and nothing that may begin a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from brise.errors import RequestError
from brise.text.special_tokens import without_sentinels


class TextStream:
    """Bytes in, text out. What comes out is the decoded text up to the stop string that is complete first.

    The result does not depend on how the bytes are cut into pushes: of several stop strings the one that ends
    first counts, and of those that end together the longest. With `has_sentinels`, `sentinel` puts sentinels between.
    With `keeps_stop` the stop string comes out too.
    """

    def __init__(self, stop: Sequence[str] = (), *, has_sentinels: bool = False, keeps_stop: bool = False) -> None:
        if not all(stop):
            raise RequestError("a stop string is empty", param="stop")
        self._stop = tuple(stop)
        self._has_sentinels, self._keeps_stop = has_sentinels, keeps_stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped: str | None = None

    def push(self, data: bytes) -> str:
        """The text that is safe to show with these bytes, maybe none. After a stop there is no more."""
        return self._advance(data, is_last=False)

    def sentinel(self, sentinel: str) -> str:
        """What was held, since no stop string crosses a sentinel, and the sentinel."""
        return self._advance(b"", is_last=True, ends_bytes=True) + sentinel if self.stopped is None else ""

    def finish(self) -> str:
        """The rest: what was held for a stop string that did not come. Half a character is left out: it is no text."""
        return self._advance(b"", is_last=True)

    def _advance(self, data: bytes, *, is_last: bool, ends_bytes: bool = False) -> str:
        if self.stopped is not None:
            return ""
        decoded = self._decoder.decode(data, ends_bytes)
        text = self._held + (without_sentinels(decoded) if self._has_sentinels else decoded)
        ends = [(start + len(stop), start, stop) for stop in self._stop if (start := text.find(stop)) >= 0]
        if ends:
            end, start, self.stopped = min(ends)
            self._held = ""
            return text[:end if self._keeps_stop else start]
        num_held = 0 if is_last else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - num_held:]
        return text[:len(text) - num_held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that begins the stop string."""
    return next((length for length in range(min(len(stop) - 1, len(text)), 0, -1)
                 if text.endswith(stop[:length])), 0)
