"""GrowingResponse turns the deltas of an answer into the items of a response, and into the events of their growth."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from brise.engine.answer_collector import AnswerCollector, CollectedCall
from brise.engine.request import Delta
from brise.serve.generation import Entry, logprob_entries
from brise.serve.ignored import RequestReport
from brise.serve.in_flight import RequestStats
from brise.serve.openai_responses import ResponseRequest
from brise.serve.unenforced import AnswerPlaces
from brise.text.answer_events import ParsedCallArguments, ParsedCallStart, ParsedReasoning, ParsedText
from brise.text.protocols import TextTokenizer

ItemKind = Literal["message", "reasoning", "function_call"]
ID_PREFIXES: Mapping[ItemKind, str] = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
PARTS: Mapping[ItemKind, str] = {"message": "output_text", "reasoning": "reasoning_text"}


@dataclass
class GrowingItem:
    """An item of the output: reasoning, text, or a call."""

    kind: ItemKind
    place: int
    call: CollectedCall | None = None
    pieces: list[str] = field(default_factory=list)
    logprobs: list[Entry] = field(default_factory=list)
    status: str = "in_progress"
    id: str = ""

    def __post_init__(self) -> None:
        self.id = f"{ID_PREFIXES[self.kind]}_{uuid.uuid4().hex}"

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def part(self, text: str) -> Entry:
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self.logprobs if text else []}

    def as_json(self) -> Entry:
        """The item as far as it has grown; one that has just begun has no parts."""
        head: Entry = {"type": self.kind, "id": self.id, "status": self.status}
        parts = [] if self.status == "in_progress" else [self.part(self.text)]
        match self.kind:
            case "message":
                return {**head, "role": "assistant", "content": parts}
            case "reasoning":
                return {**head, "summary": [], "content": parts, "encrypted_content": None}
            case "function_call":
                assert self.call is not None
                return {**head, "call_id": self.call.id, "name": self.call.name, "arguments": self.text}


@dataclass
class GrowingResponse:
    """The response while it grows."""

    request: ResponseRequest
    stats: RequestStats
    answer: AnswerCollector
    tokenizer: TextTokenizer
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    items: list[GrowingItem] = field(default_factory=list)
    num_events: int = 0
    said: RequestReport | None = None
    _logprobs: list[Entry] = field(default_factory=list)  # of tokens whose text has not come yet

    @property
    def has_begun(self) -> bool:
        return self.num_events > 0

    @property
    def end(self) -> str:
        return "incomplete" if self.answer.finish == "length" else "completed"

    def output(self) -> list[Entry]:
        """The items, each as far as it has grown."""
        return [item.as_json() for item in self.items]

    def event(self, kind: str, **fields: object) -> Entry:
        """The next event of the stream."""
        number, self.num_events = self.num_events, self.num_events + 1
        return {"type": kind, "sequence_number": number, **fields}

    def push(self, delta: Delta) -> Iterator[Entry]:
        """The events of this delta. Read all of them; the last delta closes the last item."""
        num_top = self.request.chat.logprobs
        if num_top is not None and delta.logprobs:
            self._logprobs += logprob_entries(self.tokenizer, delta.logprobs, num_top)
        for piece in self.answer.push(delta):
            match piece:
                case ParsedText(text):
                    yield from self._grow("message", text)
                case ParsedReasoning(text):
                    yield from self._grow("reasoning", text)
                case ParsedCallStart():
                    yield from self._open("function_call", self.answer.calls[-1])
                case ParsedCallArguments(text):
                    yield from self._grow("function_call", text)
        if delta.finish is not None:
            if not self.items:
                yield from self._open("message")
            yield from self._close("incomplete" if self.answer.finish == "length" else "completed")

    def _grow(self, kind: ItemKind, text: str) -> Iterator[Entry]:
        if not text:
            return
        if not self.items or self.items[-1].kind != kind:
            yield from self._open(kind)
        item = self.items[-1]
        item.pieces.append(text)
        match kind:
            case "message":
                logprobs, self._logprobs = self._logprobs, []
                item.logprobs += logprobs
                yield self._of(item, "response.output_text.delta", delta=text, logprobs=logprobs)
            case "reasoning":
                self._logprobs = []
                yield self._of(item, "response.reasoning_text.delta", delta=text)
            case "function_call":
                self._logprobs = []
                yield self._of(item, "response.function_call_arguments.delta", delta=text)

    def _open(self, kind: ItemKind, call: CollectedCall | None = None) -> Iterator[Entry]:
        yield from self._close("completed")
        item = GrowingItem(kind, len(self.items), call)
        self.items.append(item)
        yield self.event("response.output_item.added", output_index=item.place, item=item.as_json())
        if kind in PARTS:
            yield self._of(item, "response.content_part.added", part=item.part(""))

    def _close(self, status: str) -> Iterator[Entry]:
        """Closes the last item. A call that is not whole is incomplete, so that no client makes it."""
        if not self.items:
            return
        item = self.items[-1]
        if item.kind == "message":
            item.logprobs += self._logprobs
        self._logprobs = []
        item.status = "incomplete" if item.call is not None and not item.call.is_whole else status
        match item.kind:
            case "message":
                yield self._of(item, "response.output_text.done", text=item.text, logprobs=item.logprobs)
            case "reasoning":
                yield self._of(item, "response.reasoning_text.done", text=item.text)
            case "function_call":
                assert item.call is not None
                yield self._of(item, "response.function_call_arguments.done", name=item.call.name, arguments=item.text)
        if item.kind in PARTS:
            yield self._of(item, "response.content_part.done", part=item.part(item.text))
        yield self.event("response.output_item.done", output_index=item.place, item=item.as_json())

    def _of(self, item: GrowingItem, kind: str, **fields: object) -> Entry:
        """An event of an item, or of its only part."""
        place: Entry = {"item_id": item.id, "output_index": item.place}
        if item.kind in PARTS:
            place["content_index"] = 0
        return self.event(kind, **place, **fields)

    def whole(self, status: str) -> Entry:
        is_open = status == "in_progress"
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self.request.chat.options.model, "output": [] if is_open else self.output(),
            **self.request.echoed, "usage": None if is_open else self._usage(),
            **({} if is_open or self.said is None else self.said.of(self.answer, self._places()))}

    def _places(self) -> AnswerPlaces:
        texts = [item.place for item in self.items if item.kind == "message"]
        calls = [f"output[{item.place}].arguments" for item in self.items if item.kind == "function_call"]
        return AnswerPlaces(f"output[{texts[-1] if texts else 0}].content[0].text", calls)

    def _usage(self) -> Entry:
        stats = self.stats
        return {"input_tokens": stats.prompt_tokens,
                "input_tokens_details": {"cached_tokens": stats.cached_tokens, "cache_write_tokens": 0},
                "output_tokens": stats.completion_tokens, "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": stats.prompt_tokens + stats.completion_tokens}
