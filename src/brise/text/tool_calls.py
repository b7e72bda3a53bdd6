"""Function calls in a model's text, in the format of Hermes and Qwen, and the prompt that asks for it.

    <tool_call>
    {"name": "weather", "arguments": {"city": "Paris"}}
    </tool_call>

Several calls follow one another; text may stand around them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from brise.text.tool_grammar import CLOSE, OPEN, tool_grammar

__all__ = ["ParsedCallArguments", "ParsedCallStart", "ParsedText", "ToolCallParser", "tool_grammar",
           "tool_system_prompt"]

_WHITE = " \t\r\n"
_OUTSIDE_STRINGS = frozenset("{}[]:,\"+-.0123456789truefalsnE" + _WHITE)


@dataclass(frozen=True)
class ParsedText:
    """Text that is no call."""

    text: str


@dataclass(frozen=True)
class ParsedCallStart:
    """A call of this function begins; its arguments follow."""

    name: str


@dataclass(frozen=True)
class ParsedCallArguments:
    """A piece of the arguments' JSON of the call that began last."""

    text: str


Parsed = ParsedText | ParsedCallStart | ParsedCallArguments


class ToolCallParser:
    """Finds calls in text that comes in pieces, however it is cut.

    A call is held until it is whole, because only then it is certain that it is one: what turns out to be
    malformed, or to call a function that is not in `names` (None: any will do), comes back as text.
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        self._names = names
        self._held = ""
        self._object: _ObjectEnd | None = None  # set while _held begins with <tool_call>

    def push(self, text: str) -> list[Parsed]:
        self._held += text
        return _joined(self._read(is_last=False))

    def finish(self) -> list[Parsed]:
        """What was held: a call without its closing tag counts, half a call is text."""
        return _joined(self._read(is_last=True))

    def _read(self, *, is_last: bool) -> Iterator[Parsed]:
        while self._held:
            if self._object is None:
                num_text = self._num_text(is_last)
                yield ParsedText(self._held[:num_text])
                self._held = self._held[num_text:]
                if not self._held.startswith(OPEN):
                    return
                self._object = _ObjectEnd(len(OPEN))
            end = self._call_end(self._object.find(self._held), is_last)
            if end is None:
                return
            call = _call(self._held[len(OPEN):self._object.end], self._names) if end else None
            if call is None:
                yield ParsedText(OPEN)
                end = len(OPEN)
            else:
                yield from call
            self._held, self._object = self._held[end:], None

    def _num_text(self, is_last: bool) -> int:
        start = self._held.find(OPEN)
        if start >= 0:
            return start
        if is_last:
            return len(self._held)
        return len(self._held) - next((length for length in range(len(OPEN) - 1, 0, -1)
                                       if self._held.endswith(OPEN[:length])), 0)

    def _call_end(self, object_end: int | None, is_last: bool) -> int | None:
        """Where the closing tag ends; 0 if this is no call, None if that is not known yet."""
        if not object_end:
            return 0 if is_last else object_end
        rest = self._held[object_end:].lstrip(_WHITE)
        if rest.startswith(CLOSE):
            return len(self._held) - len(rest) + len(CLOSE)
        if not CLOSE.startswith(rest):
            return 0
        return len(self._held) if is_last else None


def tool_system_prompt(tools: Sequence[Mapping[str, object]]) -> str:
    """Tells a model whose template knows no tools what there is to call and how, in Qwen's words."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return ("# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
            "You are provided with function signatures within <tools></tools> XML tags:\n"
            f"<tools>\n{listed}\n</tools>\n\n"
            "For each function call, return a json object with function name and arguments within "
            f"{OPEN}{CLOSE} XML tags:\n"
            f'{OPEN}\n{{"name": <function-name>, "arguments": <args-json-object>}}\n{CLOSE}')


class _ObjectEnd:
    """Finds where a JSON object ends, looking at each character once; </tool_call> in a string is no end."""

    def __init__(self, start: int) -> None:
        self._next, self._depth = start, 0
        self._in_string = self._is_escaped = False
        self.end: int | None = None  # 0 once it is no object

    def find(self, text: str) -> int | None:
        while self.end is None and self._next < len(text):
            char = text[self._next]
            self._next += 1
            if self._in_string:
                self._in_string = self._is_escaped or char != '"'
                self._is_escaped = char == "\\" and not self._is_escaped
            elif char not in _OUTSIDE_STRINGS or (self._depth == 0 and char not in "{" + _WHITE):
                self.end = 0
            else:
                self._in_string = char == '"'
                self._depth += (char in "{[") - (char in "}]")
                if self._depth == 0 and char in "}]":
                    self.end = self._next
        return self.end


def _call(text: str, names: Collection[str] | None) -> tuple[ParsedCallStart, ParsedCallArguments] | None:
    """The call that this JSON is, or None."""
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
    return ParsedCallStart(name), ParsedCallArguments(written)


def _written(arguments: object) -> str:
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair can only be sent as an escape
        return json.dumps(arguments, allow_nan=False)
    return text


def _joined(items: Iterator[Parsed]) -> list[Parsed]:
    joined: list[Parsed] = []
    for item in items:
        last = joined[-1] if joined else None
        if isinstance(item, ParsedText) and isinstance(last, ParsedText):
            joined[-1] = ParsedText(last.text + item.text)
        elif item != ParsedText(""):
            joined.append(item)
    return joined
