"""`POST /v1/responses`: a chat, answered in the shape of OpenAI's newer API."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brise.dialects import sse
from brise.engine.answer_collector import AnswerCollector
from brise.engine.request import Delta
from brise.serve.body import read_json
from brise.serve.generation import GenerationTask, deltas
from brise.serve.images import fetched
from brise.serve.in_flight import Ticket
from brise.serve.openai_responses import ResponseRequest, parse_response
from brise.serve.prompts import chat_job
from brise.serve.serving import ModelHandle, ServerState
from brise.serve.sse import EventStream, unless_gone
from brise.text.answer_events import ParsedText

NAMES: Mapping[str, str] = {"prompt": "input", "messages": "input", "grammar": "text.format"}
Entry = dict[str, object]


async def create(serving: ServerState, request: Request) -> Response:
    """One answer. Nothing is stored, so `previous_response_id` does not exist."""
    settings = serving.settings
    wanted = parse_response(await read_json(request, settings.max_body_bytes, settings.body_timeout_s))
    responding = await prepare(serving.find(wanted.chat.options.model), wanted, request.scope["brise.ticket"],
                               allows_urls=settings.allow_image_urls)
    if wanted.chat.options.stream:
        return EventStream(_encoded(chunks(responding)))
    return JSONResponse(await unless_gone(request.receive, collect(responding)))


async def prepare(served: ModelHandle, wanted: ResponseRequest, ticket: Ticket, *, allows_urls: bool) -> Responding:
    """Everything up to the first token; the engine has not heard of it yet."""
    ticket.model = wanted.chat.options.model
    messages = await fetched(wanted.chat.messages, allows_urls=allows_urls)
    prepared = await asyncio.to_thread(chat_job, replace(wanted.chat, messages=messages), served.worker.model)
    job = GenerationTask(served, (prepared.request,), ticket, NAMES)
    return Responding(job, GrowingResponse(wanted, ticket, prepared.collector()))


async def collect(responding: Responding) -> Entry:
    """Waits for the answer."""
    reply = responding.reply
    async with aclosing(deltas(responding.job)) as news:
        async for _, delta in news:
            reply.take(delta)
    return reply.whole(reply.end)


async def _encoded(events: AsyncGenerator[Entry, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        async for each in events:
            yield sse.encode(each, str(each["type"]))


async def chunks(responding: Responding) -> AsyncGenerator[Entry, None]:
    """OpenAI's sequence: response, message and text part open, the text in pieces, and all three close."""
    reply = responding.reply
    place = {"item_id": reply.message_id, "output_index": 0, "content_index": 0}
    async with aclosing(deltas(responding.job)) as news:
        async for _, delta in news:
            if not reply.has_begun:
                yield reply.event("response.created", response=reply.whole("in_progress"))
                yield reply.event("response.in_progress", response=reply.whole("in_progress"))
                yield reply.event("response.output_item.added", output_index=0,
                                  item=reply.message("in_progress", []))
                yield reply.event("response.content_part.added", **place, part=reply.part(""))
            text = reply.take(delta)
            if text:
                yield reply.event("response.output_text.delta", **place, delta=text, logprobs=[])
    text = reply.answer.text
    yield reply.event("response.output_text.done", **place, text=text, logprobs=[])
    yield reply.event("response.content_part.done", **place, part=reply.part(text))
    yield reply.event("response.output_item.done", output_index=0,
                      item=reply.message(reply.end, [reply.part(text)]))
    yield reply.event(f"response.{reply.end}", response=reply.whole(reply.end))


@dataclass
class GrowingResponse:
    """The response as it grows."""

    wanted: ResponseRequest
    ticket: Ticket
    answer: AnswerCollector
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    message_id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    num_events: int = 0

    @property
    def has_begun(self) -> bool:
        return self.num_events > 0

    @property
    def end(self) -> str:
        return "incomplete" if self.answer.finish == "length" else "completed"

    def take(self, delta: Delta) -> str:
        """The text that this delta brings; what the model thinks is not sent."""
        return "".join(item.text for item in self.answer.push(delta) if isinstance(item, ParsedText))

    def event(self, kind: str, **fields: object) -> Entry:
        """The next event of the stream."""
        number, self.num_events = self.num_events, self.num_events + 1
        return {"type": kind, "sequence_number": number, **fields}

    def part(self, text: str) -> Entry:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def message(self, status: str, content: list[Entry]) -> Entry:
        return {"type": "message", "id": self.message_id, "role": "assistant", "status": status,
                "content": content}

    def whole(self, status: str) -> Entry:
        is_open = status == "in_progress"
        output = [] if is_open else [self.message(status, [self.part(self.answer.text)])]
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self.wanted.chat.options.model, "output": output, "parallel_tool_calls": True,
            "tool_choice": "auto", "tools": [], "truncation": "disabled", "store": False,
            "previous_response_id": None, **self.wanted.echoed, "usage": None if is_open else self._usage()}

    def _usage(self) -> Entry:
        ticket = self.ticket
        return {"input_tokens": ticket.prompt_tokens,
                "input_tokens_details": {"cached_tokens": ticket.cached_tokens, "cache_write_tokens": 0},
                "output_tokens": ticket.completion_tokens, "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": ticket.prompt_tokens + ticket.completion_tokens}


@dataclass(frozen=True)
class Responding:
    """A request that was read, on its way."""

    job: GenerationTask
    reply: GrowingResponse
