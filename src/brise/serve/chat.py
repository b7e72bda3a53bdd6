"""`POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brise.serve.body import read_json
from brise.serve.chat_answer import ChatChoice
from brise.serve.envelope import Envelope, collect, stream
from brise.serve.generation import Job
from brise.serve.images import fetched
from brise.serve.openai_chat import parse_chat
from brise.serve.prompts import chat_job
from brise.serve.serving import Serving
from brise.serve.sse import EventStream, unless_gone

NAMES: Mapping[str, str] = {"prompt": "messages", "grammar": "response_format"}
TOOL_NAMES: Mapping[str, str] = {"prompt": "messages", "grammar": "tools"}


async def complete(serving: Serving, request: Request) -> Response:
    """A conversation in, `n` next messages out."""
    settings = serving.settings
    wanted = parse_chat(await read_json(request, settings.max_body_bytes, settings.body_timeout_s))
    options, tooling = wanted.options, wanted.tooling
    served = serving.find(options.model)
    worker = served.worker
    ticket = request.scope["brise.ticket"]
    ticket.model = options.model
    messages = await fetched(wanted.messages, allows_urls=settings.allow_image_urls)
    prepared = await asyncio.to_thread(chat_job, replace(wanted, messages=messages), worker.model)
    job = Job(served, (prepared.request,), ticket, TOOL_NAMES if tooling.tools else NAMES)
    choices = [ChatChoice(index, worker.model.tokenizer, prepared, with_logprobs=wanted.logprobs is not None)
               for index in range(options.n)]
    envelope = Envelope("chatcmpl", "chat.completion", "chat.completion.chunk", options.model)
    if options.stream:
        return EventStream(stream(job, envelope, choices, options.include_usage))
    return JSONResponse(await unless_gone(request.receive, collect(job, envelope, choices)))
