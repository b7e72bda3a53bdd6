"""One chat answer as it grows: text, tool calls and log-probabilities in OpenAI's shape."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator

from brise.engine.request import Delta
from brise.serve.envelope import Entry
from brise.serve.generation import logprob_entries
from brise.text.tokenizer import Tokenizer
from brise.text.tool_calls import ParsedCallArguments, ParsedCallStart, ParsedText, ToolCallParser


class ChatChoice:
    """Turns the deltas of one answer into the entries of OpenAI's chunks, and remembers the whole."""

    def __init__(self, index: int, tokenizer: Tokenizer, tool_names: Collection[str], *,
                 with_logprobs: bool) -> None:
        self._index, self._tokenizer, self._with_logprobs = index, tokenizer, with_logprobs
        self._parser = ToolCallParser(tool_names) if tool_names else None
        self._held_space = ""  # white space around calls is no answer; it waits for text that follows
        self._texts: list[str] = []
        self._calls: list[_Call] = []
        self._logprobs: list[Entry] = []
        self._has_begun = False
        self._finish: str | None = None

    def push(self, delta: Delta) -> list[Entry]:
        entries = [self._entry(piece) for piece in self._pieces(delta)]
        if self._with_logprobs and delta.logprobs:
            self._add_logprobs(entries, delta)
        if delta.finish is not None:
            self._finish = "tool_calls" if self._calls and delta.finish != "length" else delta.finish
            entries.append(self._entry({}) | {"finish_reason": self._finish})
        if entries and not self._has_begun:
            self._has_begun = True
            entries.insert(0, self._entry({"role": "assistant", "content": ""}))
        return entries

    def final(self) -> Entry:
        text = "".join(self._texts)
        content = text if text or not self._calls else None
        message: Entry = {"role": "assistant", "content": content, "refusal": None}
        if self._calls:
            message["tool_calls"] = [call.whole() for call in self._calls]
        return {"index": self._index, "message": message, "finish_reason": self._finish,
                "logprobs": {"content": self._logprobs, "refusal": None} if self._with_logprobs else None}

    def _entry(self, delta: Entry) -> Entry:
        return {"index": self._index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _add_logprobs(self, entries: list[Entry], delta: Delta) -> None:
        """They go with the last of the entries; tokens whose text is still held back get one of their own."""
        items = logprob_entries(self._tokenizer, delta.logprobs)
        self._logprobs += items
        if not entries:
            entries.append(self._entry({"content": ""}))
        entries[-1]["logprobs"] = {"content": items, "refusal": None}

    def _pieces(self, delta: Delta) -> Iterator[Entry]:
        if self._parser is None:
            if delta.text:
                self._texts.append(delta.text)
                yield {"content": delta.text}
            return
        news = self._parser.push(delta.text)
        if delta.finish is not None:
            news = [*news, *self._parser.finish()]
        for item in news:
            match item:
                case ParsedText(text):
                    yield from self._spoken(text)
                case ParsedCallStart(name):
                    yield self._start(name)
                case ParsedCallArguments(text):
                    call = self._calls[-1]
                    call.arguments.append(text)
                    yield {"tool_calls": [{"index": len(self._calls) - 1, "function": {"arguments": text}}]}
        if delta.finish is not None and self._held_space and not self._calls:
            self._texts.append(self._held_space)
            yield {"content": self._held_space}

    def _spoken(self, text: str) -> Iterator[Entry]:
        text = self._held_space + text
        shown = text.rstrip()
        self._held_space = text[len(shown):]
        if shown:
            self._texts.append(shown)
            yield {"content": shown}

    def _start(self, name: str) -> Entry:
        call = _Call(name)
        self._calls.append(call)
        self._held_space = ""
        return {"tool_calls": [{"index": len(self._calls) - 1, **call.head()}]}


class _Call:
    """A function call whose arguments grow."""

    def __init__(self, name: str) -> None:
        self.id, self.name, self.arguments = f"call_{uuid.uuid4().hex}", name, list[str]()

    def head(self) -> Entry:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": ""}}

    def whole(self) -> Entry:
        return {"id": self.id, "type": "function",
                "function": {"name": self.name, "arguments": "".join(self.arguments)}}
