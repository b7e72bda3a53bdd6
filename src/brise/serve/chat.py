"""`POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brise.serve.body import read_json
from brise.serve.chat_answer import ChatChoice
from brise.serve.envelope import Answering, Envelope, collect, stream
from brise.serve.generation import Job
from brise.serve.images import fetched
from brise.serve.openai_chat import ChatRequest, parse_chat
from brise.serve.prompts import chat_job
from brise.serve.serving import Served, Serving
from brise.serve.sse import EventStream, unless_gone
from brise.serve.traffic import Ticket

NAMES: Mapping[str, str] = {"prompt": "messages", "grammar": "response_format"}
TOOL_NAMES: Mapping[str, str] = {"prompt": "messages", "grammar": "tools"}


async def complete(serving: Serving, request: Request) -> Response:
    """A conversation in, `n` next messages out."""
    settings = serving.settings
    wanted = parse_chat(await read_json(request, settings.max_body_bytes, settings.body_timeout_s))
    answering = await prepare(serving.find(wanted.options.model), wanted, request.scope["brise.ticket"],
                              allows_urls=settings.allow_image_urls)
    if wanted.options.stream:
        return EventStream(stream(answering))
    return JSONResponse(await unless_gone(request.receive, collect(answering)))


async def prepare(served: Served, wanted: ChatRequest, ticket: Ticket, *,
                  allows_urls: bool) -> Answering:
    """Everything up to the first token; the engine has not heard of it yet."""
    options = wanted.options
    model = served.worker.model
    ticket.model = options.model
    messages = await fetched(wanted.messages, allows_urls=allows_urls)
    prepared = await asyncio.to_thread(chat_job, replace(wanted, messages=messages), model)
    job = Job(served, (prepared.request,), ticket, TOOL_NAMES if wanted.tooling.tools else NAMES)
    choices = [ChatChoice(index, model.tokenizer, prepared, logprobs=wanted.logprobs) for index in range(options.n)]
    envelope = Envelope("chatcmpl", "chat.completion", "chat.completion.chunk", options.model)
    return Answering(job, envelope, choices, options.include_usage)
