"""`POST /v1/responses` continues a conversation and answers in the shape of OpenAI's newer API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brise.dialects import sse
from brise.engine.model import LoadedModel
from brise.serve.body import read_parsed
from brise.serve.call_guard import CallGuard, read_state
from brise.serve.generation import Entry, GenerationTask, deltas
from brise.serve.growing_response import GrowingResponse
from brise.serve.ignored import RequestReport
from brise.serve.images import fetch_images
from brise.serve.in_flight import RequestStats
from brise.serve.openai_chat import ChatRequest
from brise.serve.openai_responses import ResponseRequest, parse_response
from brise.serve.prompts import ChatJob, chat_job
from brise.serve.serving import ModelHandle, ServerState
from brise.serve.sse import EventStream, unless_gone
from brise.serve.stored_responses import StoredResponse, memory_size, owner_of
from brise.text.fields import Ignored

NAMES: Mapping[str, str] = {"prompt": "input", "messages": "input", "grammar": "text.format"}
TOOL_NAMES: Mapping[str, str] = {**NAMES, "grammar": "tools"}
Keep = Callable[[GrowingResponse, int], None]  # takes a complete response, and the bytes of its conversation


async def create(serving: ServerState, request: Request) -> Response:
    """The response: one answer. It is stored unless `store` is false."""
    settings, owner, guard = serving.settings, owner_of(request), serving.guard(request)
    ignored = None if settings.strict else Ignored()
    parsed = await read_parsed(
        request, settings.max_body_bytes, settings.body_timeout_s,
        lambda body: parse_response(read_state(guard, body), ignored,
                                    earlier=lambda id: serving.stored.get(id, owner).items))

    def keep(response: GrowingResponse, num_bytes: int) -> None:
        output = response.output()
        items = [*parsed.items, *output]
        serving.stored.put(response.id, StoredResponse(response.whole(response.end), items, owner,  # type: ignore[arg-type]
                                                       num_bytes + 2 * memory_size(output)))

    responder, said = await prepare_checked(
        serving.find(parsed.chat.options.model), parsed, request.scope["brise.stats"],
        allows_urls=settings.allow_image_urls, ignored=ignored, keep=keep if parsed.stores else None, guard=guard)
    headers = said.headers
    if parsed.chat.options.stream:
        return EventStream(responder.stream(), headers)
    return JSONResponse(await unless_gone(request.receive, responder.collect()), headers=headers)


async def stored(serving: ServerState, request: Request) -> Response:
    """A stored response, which `DELETE` forgets."""
    id, owner = request.path_params["id"], owner_of(request)
    response = serving.stored.get(id, owner)
    if request.method != "DELETE":
        return JSONResponse(response.body)
    serving.stored.remove(id, owner)
    return JSONResponse({"id": id, "object": "response", "deleted": True})


async def prepare(served: ModelHandle, request: ResponseRequest, stats: RequestStats, *,
                  allows_urls: bool) -> ResponsesResponder:
    """The responder alone, whose answer reports nothing."""
    responder, _ = await prepare_checked(served, request, stats, allows_urls=allows_urls, ignored=None)
    responder.response.said = None
    return responder


async def prepare_checked(served: ModelHandle, request: ResponseRequest, stats: RequestStats, *, allows_urls: bool,
                          ignored: Ignored | None, keep: Keep | None = None, guard: CallGuard | None = None,
                          ) -> tuple[ResponsesResponder, RequestReport]:
    """The responder, and what its answer will say about the request.

    Images are fetched and the prompt is rendered; the engine gets the request when the responder is read.
    """
    stats.model = request.chat.options.model
    messages = await fetch_images(request.chat.messages, allows_urls=allows_urls)
    chat = replace(request.chat, messages=messages)
    job, num_bytes = await asyncio.to_thread(_job, chat, served.worker.model, request if keep is not None else None)
    job = job.guarded(guard, chat)
    task = GenerationTask(served, (job.request,), stats, TOOL_NAMES if chat.tooling.tools else NAMES, asks=job.asks)
    sampling = {"temperature": job.request.sampling.temperature, "top_p": job.request.sampling.top_p}
    request = replace(request, echoed={**request.echoed, **sampling})
    said = RequestReport(ignored, job.unenforced)
    response = GrowingResponse(request, stats, job.collector(), served.worker.model.tokenizer, said=said)
    return ResponsesResponder(task, response, keep, num_bytes), said


def _job(chat: ChatRequest, model: LoadedModel, measured: ResponseRequest | None) -> tuple[ChatJob, int]:
    """The engine's request, and the bytes of what will be stored. It takes time: not in the event loop."""
    size = 0 if measured is None else memory_size(measured.items) + memory_size(measured.echoed)
    return chat_job(chat, model), size


@dataclass(frozen=True)
class ResponsesResponder:
    """The response to a request of OpenAI's newer API: one answer, as a body or as events."""

    task: GenerationTask
    response: GrowingResponse
    keep: Keep | None = None
    num_bytes: int = 0

    async def collect(self) -> Entry:
        """The body, once the answer is complete."""
        response = self.response
        async with aclosing(deltas(self.task)) as numbered:
            async for _, delta in numbered:
                for _ in response.push(delta):
                    pass
        self._keep()
        return response.whole(response.end)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The events, encoded."""
        async with aclosing(self.chunks()) as events:
            async for event in events:
                yield sse.encode(event, str(event["type"]))

    async def chunks(self) -> AsyncGenerator[Entry, None]:
        """OpenAI's sequence of events: the response opens, each of its items opens, grows and closes, and it closes."""
        response = self.response
        async with aclosing(deltas(self.task)) as numbered:
            async for _, delta in numbered:
                if not response.has_begun:
                    yield response.event("response.created", response=response.whole("in_progress"))
                    yield response.event("response.in_progress", response=response.whole("in_progress"))
                for event in response.push(delta):
                    yield event
        self._keep()
        yield response.event(f"response.{response.end}", response=response.whole(response.end))

    def _keep(self) -> None:
        if self.keep is not None:
            self.keep(self.response, self.num_bytes)
