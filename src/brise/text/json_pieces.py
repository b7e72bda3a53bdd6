"""Reads JSON that arrives in pieces: where an object ends, and which function call it is."""

from __future__ import annotations

import json
import re
from collections.abc import Collection

from brise.text.answer_events import Parsed, ParsedCallArguments, ParsedCallStart

WHITE = " \t\r\n"
_OUTSIDE_STRINGS = frozenset("{}[]:,\"+-.0123456789truefalsnE" + WHITE)
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\\x00-\x1f]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')

_NAME = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\\x00-\x1f]|\\.)*")')


class ObjectEnd:
    """Finds where a JSON object ends, looking at each character once and skipping strings."""

    def __init__(self, start: int = 0, depth: int = 0) -> None:
        self._next, self._depth = start, depth
        self._in_string = self._is_escaped = False
        self.end: int | None = None  # 0 once it is no object
        self.broken_at = 0  # where, in the text of the last call, that showed

    def find(self, text: str) -> int | None:
        """The end in `text`, which is the earlier text and maybe more; 0 if this is no object."""
        while self.end is None and self._next < len(text):
            char = text[self._next]
            self._next += 1
            if self._in_string:
                self._in_string = self._is_escaped or char != '"'
                self._is_escaped = char == "\\" and not self._is_escaped
            elif char not in _OUTSIDE_STRINGS or (self._depth == 0 and char not in "{" + WHITE):
                self.end, self.broken_at = 0, self._next - 1
            else:
                self._in_string = char == '"'
                self._depth += (char in "{[") - (char in "}]")
                if self._depth == 0 and char in "}]":
                    self.end = self._next
        return self.end

    def feed(self, piece: str) -> int | None:
        """The same for text of which only the next piece is given; the end is one in the piece."""
        self._next = 0
        return self.find(piece)


def call_head(text: str) -> tuple[str, int] | None:
    """The name of {"name": NAME, "arguments": {..., and where the arguments begin, once both are there."""
    head = _HEAD.match(text)
    if head is None:
        return None
    try:
        return str(json.loads(head[1])), head.end()
    except ValueError:
        return None


def whole_call(text: str, names: Collection[str] | None) -> list[Parsed] | None:
    """The call that this JSON object is, its keys in any order, or None."""
    try:
        call = json.loads(text)
        name, arguments = call["name"], call.get("arguments", {})
        if isinstance(arguments, str):  # some models write the JSON of the arguments as a string
            arguments = json.loads(arguments)
        written = _written(arguments)
        if not isinstance(name, str) or not isinstance(arguments, dict) or name.encode() == b"":
            return None
    except (ValueError, KeyError, RecursionError):
        return None
    if names is not None and name not in names:
        return None
    return [ParsedCallStart(name), ParsedCallArguments(written)]


def cut_call(text: str, names: Collection[str] | None) -> list[Parsed] | None:
    """The beginning of a call whose rest was cut off: nothing while its name is not certain, None if it is no call."""
    head = call_head(text)
    if head is None:
        return _cut_head(text, names)
    if names is not None and head[0] not in names:
        return None
    name, start = head
    end = ObjectEnd(start).find(text)
    return None if end == 0 else [ParsedCallStart(name), ParsedCallArguments(text[start:end])]


def _cut_head(text: str, names: Collection[str] | None) -> list[Parsed] | None:
    """A call that was cut before its arguments."""
    named = _NAME.match(text)
    if named is None:
        return []
    try:
        name = str(json.loads(named[1]))
    except ValueError:
        return None
    return [ParsedCallStart(name)] if names is None or name in names else None


def is_object(text: str) -> bool:
    """Whether the text is a whole JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _written(arguments: object) -> str:
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair can only be sent as an escape
        return json.dumps(arguments, allow_nan=False)
    return text
