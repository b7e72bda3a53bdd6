"""`POST /v1/messages` answers in the shape of Anthropic's API, and `/v1/messages/count_tokens` counts a prompt."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brise.dialects import sse
from brise.engine.answer_collector import AnswerCollector, CollectedCall
from brise.engine.request import Delta
from brise.errors import RequestError
from brise.serve.anthropic_messages import parse_message
from brise.serve.body import read_parsed
from brise.serve.call_guard import CallGuard, read_state
from brise.serve.error_response import anthropic_body
from brise.serve.generation import Entry, GenerationTask, deltas
from brise.serve.ignored import RequestReport, ignored_header
from brise.serve.images import fetch_images
from brise.serve.in_flight import RequestStats
from brise.serve.openai_chat import ChatRequest
from brise.serve.prompts import ChatJob, chat_job, within_context
from brise.serve.serving import ModelHandle, ServerState
from brise.serve.sse import EventStream, unless_gone
from brise.serve.unenforced import AnswerPlaces
from brise.text.answer_events import ParsedCallArguments, ParsedCallStart, ParsedReasoning, ParsedText
from brise.text.fields import Ignored

NAMES: Mapping[str, str] = {"prompt": "messages", "grammar": "output_config.format", "stop": "stop_sequences"}
TOOL_NAMES: Mapping[str, str] = {**NAMES, "grammar": "tools"}
STOP_REASONS: Mapping[str, str] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


async def create(serving: ServerState, request: Request) -> Response:
    """The response: one message."""
    settings, guard = serving.settings, serving.guard(request)
    ignored = None if settings.strict else Ignored()
    chat = await read_parsed(request, settings.max_body_bytes, settings.body_timeout_s,
                             lambda body: parse_message(read_state(guard, body), ignored))
    responder, said = await prepare_checked(serving.find(chat.options.model), chat, request.scope["brise.stats"],
                                            allows_urls=settings.allow_image_urls, ignored=ignored, guard=guard)
    headers = said.headers
    if chat.options.stream:
        return EventStream(responder.stream(), headers)
    return JSONResponse(await unless_gone(request.receive, responder.collect()), headers=headers)


async def count(serving: ServerState, request: Request) -> Response:
    """How many tokens the prompt of a message would have."""
    settings = serving.settings
    ignored = None if settings.strict else Ignored()
    chat = await read_parsed(request, settings.max_body_bytes, settings.body_timeout_s,
                             lambda body: parse_message(body, ignored, counts=True))
    served = serving.find(chat.options.model)
    request.scope["brise.stats"].model = chat.options.model
    job = await _job(served, chat, allows_urls=settings.allow_image_urls)
    return JSONResponse({"input_tokens": len(job.request.prompt)}, headers=ignored_header(ignored))


async def prepare(served: ModelHandle, chat: ChatRequest, stats: RequestStats, *, allows_urls: bool,
                  ignored: Ignored | None = None) -> MessagesResponder:
    """The responder alone, whose answer reports nothing."""
    responder, _ = await prepare_checked(served, chat, stats, allows_urls=allows_urls, ignored=ignored)
    responder.message.said = None
    return responder


async def prepare_checked(served: ModelHandle, chat: ChatRequest, stats: RequestStats, *, allows_urls: bool,
                          ignored: Ignored | None, guard: CallGuard | None = None,
                          ) -> tuple[MessagesResponder, RequestReport]:
    """The responder, and what its answer will say about the request.

    Images are fetched and the prompt is rendered; the engine gets the request when the responder is read.
    """
    stats.model = chat.options.model
    job = (await _job(served, chat, allows_urls=allows_urls)).guarded(guard, chat)
    request = within_context(job.request, served.worker.max_context, ignored, "max_tokens")
    task = GenerationTask(served, (request,), stats, TOOL_NAMES if chat.tooling.tools else NAMES, asks=job.asks)
    said = RequestReport(ignored, job.unenforced)
    return MessagesResponder(task, GrowingMessage(chat.options.model, stats, job.collector(), said=said)), said


async def _job(served: ModelHandle, chat: ChatRequest, *, allows_urls: bool) -> ChatJob:
    messages = await fetch_images(chat.messages, allows_urls=allows_urls)
    return await asyncio.to_thread(partial(chat_job, replace(chat, messages=messages), served.worker.model))


@dataclass(frozen=True)
class MessagesResponder:
    """The response to a request of Anthropic's API: one message, as a body or as events."""

    task: GenerationTask
    message: GrowingMessage

    async def collect(self) -> Entry:
        """The body, once the answer is complete."""
        message = self.message
        async with aclosing(deltas(self.task)) as numbered:
            async for _, delta in numbered:
                for _ in message.push(delta):
                    pass
        return {**message.head(), "content": [block.whole() for block in message.blocks], **message.end(),
                "usage": message.usage(), **message.reported()}

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The events, encoded. An error after the first event is one of Anthropic's events, too."""
        has_begun = False
        try:
            async with aclosing(self.chunks()) as events:
                async for event in events:
                    yield sse.encode(event, str(event["type"]))
                    has_begun = True
        except RequestError as error:
            if not has_begun:
                raise
            yield sse.encode(anthropic_body(error), "error")

    async def chunks(self) -> AsyncGenerator[Entry, None]:
        """Anthropic's sequence of events: the message begins, its blocks open, grow and close, and it ends."""
        message, has_begun = self.message, False
        async with aclosing(deltas(self.task)) as numbered:
            async for _, delta in numbered:
                if not has_begun:
                    has_begun = True
                    yield {"type": "message_start", "message": {
                        **message.head(), "content": [], "stop_reason": None, "stop_sequence": None,
                        "usage": {**message.usage(), "output_tokens": 0}}}
                for event in message.push(delta):
                    yield event
        yield {"type": "message_delta", "delta": message.end(), "usage": message.usage(), **message.reported()}
        yield {"type": "message_stop"}


@dataclass
class _Block:
    """A block of content as it grows."""

    kind: str
    place: int
    call: CollectedCall | None = None
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def begin(self) -> Entry:
        match self.kind:
            case "thinking":
                return {"type": "thinking", "thinking": "", "signature": ""}
            case "tool_use":
                assert self.call is not None
                return {"type": "tool_use", "id": self.call.id, "name": self.call.name, "input": {}}
            case _:
                return {"type": "text", "text": ""}

    def delta(self, text: str) -> Entry:
        match self.kind:
            case "thinking":
                return {"type": "thinking_delta", "thinking": text}
            case "tool_use":
                return {"type": "input_json_delta", "partial_json": text}
            case _:
                return {"type": "text_delta", "text": text}

    def whole(self) -> Entry:
        """The block; a call that was cut has no input, and the message says that it was cut."""
        if self.call is None:
            return {**self.begin(), self.kind: self.text}
        return {**self.begin(), "input": json.loads(self.text) if self.call.is_whole else {}}


@dataclass
class GrowingMessage:
    """The message while it grows."""

    model: str
    stats: RequestStats
    answer: AnswerCollector
    id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    blocks: list[_Block] = field(default_factory=list)
    stop_string: str | None = None
    said: RequestReport | None = None

    def head(self) -> Entry:
        return {"id": self.id, "type": "message", "role": "assistant", "model": self.model}

    def end(self) -> Entry:
        reason = "stop_sequence" if self.stop_string is not None and self.answer.finish == "stop" else \
            STOP_REASONS[self.answer.finish or "stop"]
        return {"stop_reason": reason, "stop_sequence": self.stop_string if reason == "stop_sequence" else None}

    def usage(self) -> Entry:
        """Anthropic's counts: those from the cache are not among the input tokens."""
        stats = self.stats
        return {"input_tokens": stats.prompt_tokens - stats.cached_tokens, "output_tokens": stats.completion_tokens,
                "cache_creation_input_tokens": 0, "cache_read_input_tokens": stats.cached_tokens}

    def reported(self) -> Entry:
        """What is said about the request under `brise`, once the message is whole."""
        calls = [f"content[{block.place}].input" for block in self.blocks if block.kind == "tool_use"]
        texts = [block.place for block in self.blocks if block.kind == "text"]
        places = AnswerPlaces(f"content[{texts[-1] if texts else 0}].text", calls)
        return {} if self.said is None else self.said.of(self.answer, places)

    def push(self, delta: Delta) -> Iterator[Entry]:
        """The events of this delta. Read all of them."""
        self.stop_string = delta.stop_string or self.stop_string
        for piece in self.answer.push(delta):
            match piece:
                case ParsedText(text):
                    yield from self._grow("text", text)
                case ParsedReasoning(text):
                    yield from self._grow("thinking", text)
                case ParsedCallStart():
                    yield from self._open("tool_use", self.answer.calls[-1])
                case ParsedCallArguments(text):
                    yield from self._grow("tool_use", text)
        if delta.finish is not None:
            yield from self._close()

    def _grow(self, kind: str, text: str) -> Iterator[Entry]:
        if not text:
            return
        if not self.blocks or self.blocks[-1].kind != kind:
            yield from self._open(kind)
        block = self.blocks[-1]
        block.pieces.append(text)
        yield {"type": "content_block_delta", "index": block.place, "delta": block.delta(text)}

    def _open(self, kind: str, call: CollectedCall | None = None) -> Iterator[Entry]:
        yield from self._close()
        block = _Block(kind, len(self.blocks), call)
        self.blocks.append(block)
        yield {"type": "content_block_start", "index": block.place, "content_block": block.begin()}

    def _close(self) -> Iterator[Entry]:
        if self.blocks:
            yield {"type": "content_block_stop", "index": self.blocks[-1].place}
