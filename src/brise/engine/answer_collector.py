"""Collects one chat answer from the engine's deltas: text, reasoning and function calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from brise.engine.request import Delta, FinishReason
from brise.text.answer_events import (
    CallParser,
    Parsed,
    ParsedCallArguments,
    ParsedCallStart,
    ParsedReasoning,
    ParsedText,
)
from brise.text.json_pieces import is_object

AnswerFinish = FinishReason | Literal["tool_calls"]


@dataclass
class CollectedCall:
    """A function call; the pieces of its arguments' JSON arrive one after the other."""

    id: str
    name: str
    pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """The JSON text as far as it has arrived."""
        return "".join(self.pieces)

    @property
    def is_whole(self) -> bool:
        """Whether the arguments are a complete JSON object."""
        return is_object(self.arguments)


class AnswerCollector:
    """Reads one answer with `parser`. `may_call`: functions were offered; `new_call_id` names a call without an id."""

    def __init__(self, parser: CallParser, new_call_id: Callable[[], str], *, may_call: bool) -> None:
        self._parser, self._new_call_id, self._may_call = parser, new_call_id, may_call
        self._held_space = ""  # white space around calls is not part of the answer; it waits for text that follows
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self.calls: list[CollectedCall] = []
        self.finish: AnswerFinish | None = None

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    def push(self, delta: Delta) -> Iterator[Parsed]:
        """Yields the pieces that this delta completes. Each is collected when it is yielded, so read all of them."""
        items = self._parser.push(delta.text)
        if delta.finish is not None:
            items = [*items, *self._parser.finish(was_cut=delta.finish == "length")]
        for item in items:
            match item:
                case ParsedText(text):
                    yield from self._add_text(text)
                case ParsedReasoning(text):
                    self._reasoning.append(text)
                    yield item
                case ParsedCallStart(name, call_id):
                    yield self._start_call(name, call_id)
                case ParsedCallArguments(text):
                    self.calls[-1].pieces.append(text)
                    yield item
        if delta.finish is not None:
            if self._held_space and not self.calls:
                self._texts.append(self._held_space)
                yield ParsedText(self._held_space)
            self.finish = self._finish(delta.finish)

    def _add_text(self, text: str) -> Iterator[Parsed]:
        if not self._may_call:
            self._texts.append(text)
            yield ParsedText(text)
            return
        text = self._held_space + text
        shown = text.rstrip()
        self._held_space = text[len(shown):]
        if shown:
            self._texts.append(shown)
            yield ParsedText(shown)

    def _start_call(self, name: str, call_id: str | None) -> ParsedCallStart:
        """The model's own id is kept if it is nine letters long and not taken; templates of Mistral insist on that."""
        is_new = call_id is not None and len(call_id) == 9 and call_id not in {call.id for call in self.calls}
        call = CollectedCall(call_id if call_id is not None and is_new else self._new_call_id(), name)
        self.calls.append(call)
        self._held_space = ""
        return ParsedCallStart(name, call.id)

    def _finish(self, finish: FinishReason) -> AnswerFinish:
        """The finish reason: "tool_calls" only if all calls are whole, because a client would make them."""
        are_whole = all(call.is_whole for call in self.calls)
        return "tool_calls" if self.calls and are_whole and finish != "length" else finish
