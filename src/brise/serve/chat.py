"""`POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brise.engine.request import Delta, FinishReason
from brise.serve.body import read_json
from brise.serve.envelope import Answering, Entry, Envelope, collect, stream
from brise.serve.generation import GenerationTask, logprob_entries
from brise.serve.images import fetched
from brise.serve.in_flight import Ticket
from brise.serve.openai_chat import ChatRequest, parse_chat
from brise.serve.prompts import ChatJob, chat_job
from brise.serve.serving import ModelHandle, ServerState
from brise.serve.sse import EventStream, unless_gone
from brise.text.answer_events import ParsedCallArguments, ParsedCallStart, ParsedReasoning, ParsedText
from brise.text.json_pieces import is_object
from brise.text.protocols import TextTokenizer

NAMES: Mapping[str, str] = {"prompt": "messages", "grammar": "response_format"}
TOOL_NAMES: Mapping[str, str] = {"prompt": "messages", "grammar": "tools"}


async def complete(serving: ServerState, request: Request) -> Response:
    """A conversation in, `n` next messages out."""
    settings = serving.settings
    wanted = parse_chat(await read_json(request, settings.max_body_bytes, settings.body_timeout_s))
    answering = await prepare(serving.find(wanted.options.model), wanted, request.scope["brise.ticket"],
                              allows_urls=settings.allow_image_urls)
    if wanted.options.stream:
        return EventStream(stream(answering))
    return JSONResponse(await unless_gone(request.receive, collect(answering)))


async def prepare(served: ModelHandle, wanted: ChatRequest, ticket: Ticket, *,
                  allows_urls: bool) -> Answering:
    """Everything up to the first token; the engine has not heard of it yet."""
    options = wanted.options
    model = served.worker.model
    ticket.model = options.model
    messages = await fetched(wanted.messages, allows_urls=allows_urls)
    prepared = await asyncio.to_thread(chat_job, replace(wanted, messages=messages), model)
    job = GenerationTask(served, (prepared.request,), ticket, TOOL_NAMES if wanted.tooling.tools else NAMES)
    choices = [ChatChoice(index, model.tokenizer, prepared, logprobs=wanted.logprobs) for index in range(options.n)]
    envelope = Envelope("chatcmpl", "chat.completion", "chat.completion.chunk", options.model)
    return Answering(job, envelope, choices, options.include_usage)


class ChatChoice:
    """Turns the deltas of one answer into the entries of OpenAI's chunks, and remembers the whole.

    `logprobs` is how many alternatives are shown (None: no log-probabilities), whatever the deltas bring.
    """

    def __init__(self, index: int, tokenizer: TextTokenizer, job: ChatJob, *, logprobs: int | None) -> None:
        self._index, self._tokenizer, self._num_top = index, tokenizer, logprobs
        self._parser, self._may_call, self._new_id = job.parser(), bool(job.tool_names), job.format.new_call_id
        self._held_space = ""  # white space around calls is no answer; it waits for text that follows
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[_Call] = []
        self._logprobs: list[Entry] = []
        self._has_begun = False
        self._finish: str | None = None

    def push(self, delta: Delta) -> list[Entry]:
        entries = [self._entry(piece) for piece in self._pieces(delta)]
        if self._num_top is not None and delta.logprobs:
            self._add_logprobs(entries, delta, self._num_top)
        if delta.finish is not None:
            self._finish = self._reason(delta.finish)
            entries.append(self._entry({}) | {"finish_reason": self._finish})
        if entries and not self._has_begun:
            self._has_begun = True
            entries.insert(0, self._entry({"role": "assistant", "content": ""}))
        return entries

    def final(self) -> Entry:
        text = "".join(self._texts)
        content = text if text or not self._calls else None
        message: Entry = {"role": "assistant", "content": content, "refusal": None}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._calls:
            message["tool_calls"] = [call.whole() for call in self._calls]
        return {"index": self._index, "message": message, "finish_reason": self._finish,
                "logprobs": {"content": self._logprobs, "refusal": None} if self._num_top is not None else None}

    def _entry(self, delta: Entry) -> Entry:
        return {"index": self._index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _add_logprobs(self, entries: list[Entry], delta: Delta, num_top: int) -> None:
        """They go with the last of the entries; tokens whose text is still held back get one of their own."""
        items = logprob_entries(self._tokenizer, delta.logprobs, num_top)
        self._logprobs += items
        if not entries:
            entries.append(self._entry({"content": ""}))
        entries[-1]["logprobs"] = {"content": items, "refusal": None}

    def _pieces(self, delta: Delta) -> Iterator[Entry]:
        news = self._parser.push(delta.text)
        if delta.finish is not None:
            news = [*news, *self._parser.finish(was_cut=delta.finish == "length")]
        for item in news:
            match item:
                case ParsedText(text):
                    yield from self._spoken(text)
                case ParsedReasoning(text):
                    self._reasoning.append(text)
                    yield {"reasoning_content": text}
                case ParsedCallStart(name, call_id):
                    yield self._start(name, call_id)
                case ParsedCallArguments(text):
                    call = self._calls[-1]
                    call.arguments.append(text)
                    yield {"tool_calls": [{"index": len(self._calls) - 1, "function": {"arguments": text}}]}
        if delta.finish is not None and self._held_space and not self._calls:
            self._texts.append(self._held_space)
            yield {"content": self._held_space}

    def _reason(self, finish: FinishReason) -> str:
        """Calls are only announced if all of them are whole: a client would make them."""
        are_whole = all(is_object("".join(call.arguments)) for call in self._calls)
        return "tool_calls" if self._calls and are_whole and finish != "length" else finish

    def _spoken(self, text: str) -> Iterator[Entry]:
        if not self._may_call:
            self._texts.append(text)
            yield {"content": text}
            return
        text = self._held_space + text
        shown = text.rstrip()
        self._held_space = text[len(shown):]
        if shown:
            self._texts.append(shown)
            yield {"content": shown}

    def _start(self, name: str, call_id: str | None) -> Entry:
        is_new = call_id is not None and len(call_id) == 9 and call_id not in {call.id for call in self._calls}
        call = _Call(call_id if call_id is not None and is_new else self._new_id(), name)
        self._calls.append(call)
        self._held_space = ""
        return {"tool_calls": [{"index": len(self._calls) - 1, **call.head()}]}


class _Call:
    """A function call whose arguments grow."""

    def __init__(self, call_id: str, name: str) -> None:
        self.id, self.name, self.arguments = call_id, name, list[str]()

    def head(self) -> Entry:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": ""}}

    def whole(self) -> Entry:
        return {"id": self.id, "type": "function",
                "function": {"name": self.name, "arguments": "".join(self.arguments)}}
