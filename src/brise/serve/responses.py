"""`POST /v1/responses` continues a conversation and answers in the shape of OpenAI's newer API."""

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
from brise.serve.generation import Entry, GenerationTask, deltas
from brise.serve.ignored import ignored_header
from brise.serve.images import fetch_images
from brise.serve.in_flight import RequestStats
from brise.serve.openai_responses import ResponseRequest, parse_response
from brise.serve.prompts import chat_job
from brise.serve.serving import ModelHandle, ServerState
from brise.serve.sse import EventStream, unless_gone
from brise.text.answer_events import ParsedText
from brise.text.fields import Ignored

NAMES: Mapping[str, str] = {"prompt": "input", "messages": "input", "grammar": "text.format"}


async def create(serving: ServerState, request: Request) -> Response:
    """The response: one answer. Nothing is stored, so `previous_response_id` is refused."""
    settings = serving.settings
    ignored = None if settings.strict else Ignored()
    parsed = parse_response(await read_json(request, settings.max_body_bytes, settings.body_timeout_s), ignored)
    responder = await prepare(serving.find(parsed.chat.options.model), parsed, request.scope["brise.stats"],
                              allows_urls=settings.allow_image_urls)
    headers = ignored_header(ignored)
    if parsed.chat.options.stream:
        return EventStream(responder.stream(), headers)
    return JSONResponse(await unless_gone(request.receive, responder.collect()), headers=headers)


async def prepare(served: ModelHandle, request: ResponseRequest, stats: RequestStats, *,
                  allows_urls: bool) -> ResponsesResponder:
    """Images are fetched and the prompt is rendered; the engine gets the request when the responder is read."""
    stats.model = request.chat.options.model
    messages = await fetch_images(request.chat.messages, allows_urls=allows_urls)
    job = await asyncio.to_thread(chat_job, replace(request.chat, messages=messages), served.worker.model)
    task = GenerationTask(served, (job.request,), stats, NAMES)
    return ResponsesResponder(task, GrowingResponse(request, stats, job.collector()))


@dataclass(frozen=True)
class ResponsesResponder:
    """The response to a request of OpenAI's newer API: one answer, as a body or as events."""

    task: GenerationTask
    response: GrowingResponse

    async def collect(self) -> Entry:
        """The body, once the answer is complete."""
        response = self.response
        async with aclosing(deltas(self.task)) as numbered:
            async for _, delta in numbered:
                response.take(delta)
        return response.whole(response.end)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The events, encoded."""
        async with aclosing(self.chunks()) as events:
            async for event in events:
                yield sse.encode(event, str(event["type"]))

    async def chunks(self) -> AsyncGenerator[Entry, None]:
        """OpenAI's sequence of events: response, message and text part open, text follows, and all three close."""
        response = self.response
        place = {"item_id": response.message_id, "output_index": 0, "content_index": 0}
        async with aclosing(deltas(self.task)) as numbered:
            async for _, delta in numbered:
                if not response.has_begun:
                    yield response.event("response.created", response=response.whole("in_progress"))
                    yield response.event("response.in_progress", response=response.whole("in_progress"))
                    yield response.event("response.output_item.added", output_index=0,
                                         item=response.message("in_progress", []))
                    yield response.event("response.content_part.added", **place, part=response.part(""))
                text = response.take(delta)
                if text:
                    yield response.event("response.output_text.delta", **place, delta=text, logprobs=[])
        text = response.answer.text
        yield response.event("response.output_text.done", **place, text=text, logprobs=[])
        yield response.event("response.content_part.done", **place, part=response.part(text))
        yield response.event("response.output_item.done", output_index=0,
                             item=response.message(response.end, [response.part(text)]))
        yield response.event(f"response.{response.end}", response=response.whole(response.end))


@dataclass
class GrowingResponse:
    """The response while it grows."""

    request: ResponseRequest
    stats: RequestStats
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
        """The text in this delta; the model's reasoning is not sent."""
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
            "model": self.request.chat.options.model, "output": output, "parallel_tool_calls": True,
            "tool_choice": "auto", "tools": [], "truncation": "disabled", "store": False,
            "previous_response_id": None, **self.request.echoed, "usage": None if is_open else self._usage()}

    def _usage(self) -> Entry:
        stats = self.stats
        return {"input_tokens": stats.prompt_tokens,
                "input_tokens_details": {"cached_tokens": stats.cached_tokens, "cache_write_tokens": 0},
                "output_tokens": stats.completion_tokens, "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": stats.prompt_tokens + stats.completion_tokens}
