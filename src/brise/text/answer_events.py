"""Names the parts of an answer: reasoning, text, and function calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class ParsedText:
    """Text that is no call."""

    text: str


@dataclass(frozen=True)
class ParsedReasoning:
    """What the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class ParsedCallStart:
    """A call of this function begins; its arguments follow. `id` is the model's own, if it wrote one."""

    name: str
    id: str | None = None


@dataclass(frozen=True)
class ParsedCallArguments:
    """A piece of the arguments' JSON of the call that began last."""

    text: str


Parsed = ParsedText | ParsedReasoning | ParsedCallStart | ParsedCallArguments


class CallParser(Protocol):
    """Finds function calls in text that comes in pieces."""

    def push(self, text: str) -> list[Parsed]:
        """What this piece makes certain."""
    def finish(self, *, was_cut: bool = False) -> list[Parsed]:
        """The rest. `was_cut`: the answer was cut off, so half a call is the beginning of one."""


def joined(items: Iterable[Parsed]) -> list[Parsed]:
    """The items with neighbours of one kind joined, and without empty ones."""
    out: list[Parsed] = []
    for item in items:
        last = out[-1] if out else None
        if isinstance(item, ParsedCallStart):
            out.append(item)
        elif item.text and isinstance(item, ParsedText) and isinstance(last, ParsedText):
            out[-1] = ParsedText(last.text + item.text)
        elif item.text and isinstance(item, ParsedReasoning) and isinstance(last, ParsedReasoning):
            out[-1] = ParsedReasoning(last.text + item.text)
        elif item.text and isinstance(item, ParsedCallArguments) and isinstance(last, ParsedCallArguments):
            out[-1] = ParsedCallArguments(last.text + item.text)
        elif item.text:
            out.append(item)
    return out


def changed(item: Parsed, change: Callable[[str], str]) -> Parsed:
    """The item with another text; a call's start is unchanged."""
    match item:
        case ParsedText(text):
            return ParsedText(change(text))
        case ParsedReasoning(text):
            return ParsedReasoning(change(text))
        case ParsedCallArguments(text):
            return ParsedCallArguments(change(text))
        case ParsedCallStart():
            return item
