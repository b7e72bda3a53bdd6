"""Reads function calls of Mistral's models, which follow special tokens that arrive as sentinels
(text/special_tokens.py).

    v11, v13   [TOOL_CALLS]name[CALL_ID]id[ARGS]{"city": "Paris"}   once for each call; v13 has no [CALL_ID]
    v3, v7     [TOOL_CALLS][{"name": "name", "arguments": {"city": "Paris"}, "id": "id"}, ...]

A call is reported as soon as its name is certain, its arguments then piece by piece. What cannot be a call, or names
an unknown function, comes back as text, with its sentinels.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Literal

from brise.text.answer_events import Parsed, ParsedCallArguments, ParsedCallStart, ParsedText, joined
from brise.text.json_pieces import WHITE, ObjectEnd, call_head, cut_call, whole_call
from brise.text.special_tokens import ARGS, CALL, CALL_ID

_WORD = f"[^{CALL_ID}{ARGS}]*"
_HEAD = re.compile(f"({_WORD})(?:{CALL_ID}({_WORD}))?{ARGS}[{WHITE}]*(?=[^{WHITE}])")
_NAME = re.compile(f"({_WORD})([{CALL_ID}{ARGS}]?)")


class NamedCallParser:
    """The calls of v11 and v13."""

    def __init__(self, names: Collection[str] | None = None) -> None:
        self._names = names
        self._held = ""  # begins with the sentinel of a call whose name is not certain
        self._arguments: _Arguments | None = None

    def push(self, text: str) -> list[Parsed]:
        self._held += text
        return joined(self._read())

    def finish(self, *, was_cut: bool = False) -> list[Parsed]:
        """Half a call is text, unless it was cut there: after its name it is a call, before that nothing."""
        held, self._held = self._held, ""
        if not was_cut or not held:
            return joined([ParsedText(held)])
        head, name = _HEAD.match(held[1:] + "{"), _NAME.match(held[1:])
        if head is not None and self._is_known(head[1]):
            return [_start(head)]
        is_certain = name is not None and name[2] and self._is_known(name[1])
        return [ParsedCallStart(name[1].strip())] if name is not None and is_certain else []

    def _read(self) -> Iterator[Parsed]:
        while self._held:
            if self._arguments is not None:
                taken, self._held, is_over = self._arguments.take(self._held)
                yield ParsedCallArguments(taken)
                self._arguments = None if is_over else self._arguments
                continue
            plain, sentinel, rest = self._held.partition(CALL)
            yield ParsedText(plain)
            self._held = sentinel + rest
            if not sentinel:
                return
            body, next_call, _ = rest.partition(CALL)
            head = _HEAD.match(body)
            if head is not None and self._is_known(head[1]) and body[head.end()] == "{":
                yield _start(head)
                self._arguments, self._held = _Arguments(), rest[head.end():]
            elif head is None and not next_call and self._may_be_head(body):
                return
            else:
                yield ParsedText(CALL)
                self._held = rest

    def _is_known(self, name: str) -> bool:
        return bool(name.strip()) and (self._names is None or name.strip() in self._names)

    def _may_be_head(self, body: str) -> bool:
        """Whether more text could make this the head of a call that can be made."""
        match = _NAME.match(body)
        assert match is not None
        if match[2]:
            return self._is_known(match[1])
        return self._names is None or any(name.startswith(match[1].strip()) for name in self._names)


class ListCallParser:
    """The calls of v3 and v7: one JSON list."""

    def __init__(self, names: Collection[str] | None = None) -> None:
        self._names = names
        self._held = ""
        self._opening = ""  # sentinel and bracket, until the first call has come
        self._phase: Literal["text", "list", "arguments", "rest"] = "text"  # rest: of a call after its arguments
        self._object = ObjectEnd()
        self._arguments = _Arguments()

    def push(self, text: str) -> list[Parsed]:
        self._held += text
        return joined(self._read())

    def finish(self, *, was_cut: bool = False) -> list[Parsed]:
        """Text that was held; of a list whose calls are reported, only brackets remain.

        Of an answer that was cut, half a call is the beginning of one, or nothing while its name is not certain.
        """
        if was_cut and self._held.startswith(CALL):
            self._held = ""
        elif was_cut and self._phase == "list":
            half = cut_call(self._held.lstrip(WHITE + ","), self._names)
            if half is not None:
                self._held = self._opening = ""
                return joined(half)
        held, self._held = self._opening + self._held, ""
        return joined([ParsedText(held if held.strip(WHITE + ",") else "")])

    def _read(self) -> Iterator[Parsed]:
        while self._held:
            before = self._phase, len(self._held)
            match self._phase:
                case "text":
                    yield from self._read_text()
                case "list":
                    yield from self._read_list()
                case "arguments":
                    taken, self._held, is_over = self._arguments.take(self._held)
                    yield ParsedCallArguments(taken)
                    if is_over:
                        self._phase = "text" if self._arguments.is_broken else "rest"
                        self._object = ObjectEnd(depth=1)
                case "rest":
                    self._skip_rest()
            if before == (self._phase, len(self._held)):
                return  # nothing is certain before there is more

    def _read_text(self) -> Iterator[Parsed]:
        plain, sentinel, rest = self._held.partition(CALL)
        yield ParsedText(plain)
        inner = rest.lstrip(WHITE)
        may_be_list = self._names is None or len(self._names) > 0
        if sentinel and may_be_list and inner.startswith("["):
            self._opening = sentinel + rest[:len(rest) - len(inner) + 1]
            self._held, self._phase, self._object = inner[1:], "list", ObjectEnd()
        elif sentinel and (inner or not may_be_list):
            yield ParsedText(sentinel)
            self._held = rest
        else:
            self._held = sentinel + rest

    def _read_list(self) -> Iterator[Parsed]:
        inner = self._held.lstrip(WHITE + ",")
        if inner.startswith("]") and not self._opening:
            self._held, self._phase = inner[1:], "text"
            return
        head = call_head(inner)
        if head is not None and (self._names is None or head[0] in self._names):
            self._opening = ""
            self._held, self._phase, self._arguments = inner[head[1]:], "arguments", _Arguments()
            yield ParsedCallStart(head[0])
            return
        end = self._object.find(inner) if head is None else 0
        if end is None:
            return
        call = whole_call(inner[:end], self._names) if end else None
        if call is None:
            yield ParsedText(self._opening)
            self._phase = "text"
        else:
            yield from call
            self._held = inner[end:]
        self._opening, self._object = "", ObjectEnd()

    def _skip_rest(self) -> None:
        end = self._object.feed(self._held)
        if end == 0:
            self._held, self._phase = self._held[self._object.broken_at:], "text"
        elif end is None:
            self._held = ""
        else:
            self._held, self._phase, self._object = self._held[end:], "list", ObjectEnd()


class _Arguments:
    """A JSON object that streams. Broken JSON does not end it; only the next call does."""

    def __init__(self) -> None:
        self._object = ObjectEnd()
        self.is_broken = False

    def take(self, text: str) -> tuple[str, str, bool]:
        """The part of the text that belongs to the arguments, the rest, and whether the arguments are complete."""
        own, sentinel, rest = text.partition(CALL)
        end = None if self.is_broken else self._object.feed(own)
        if end:
            return own[:end], own[end:] + sentinel + rest, True
        self.is_broken = self.is_broken or end == 0 or bool(sentinel)
        return own, sentinel + rest, bool(sentinel)


def _start(head: re.Match[str]) -> ParsedCallStart:
    return ParsedCallStart(head[1].strip(), head[2].strip() if head[2] else None)
