"""`POST /v1/completions`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brise.engine.request import Request as EngineRequest
from brise.serve.body import read_json
from brise.serve.completion_answer import CompletionChoice
from brise.serve.envelope import Answering, Envelope, collect, stream
from brise.serve.generation import Job
from brise.serve.openai_completions import CompletionRequest, Prompt, parse_completion
from brise.serve.prompts import completion_requests
from brise.serve.serving import Served, Serving
from brise.serve.sse import EventStream, unless_gone
from brise.serve.traffic import Ticket
from brise.text.protocols import TextTokenizer

NAMES: Mapping[str, str] = {"messages": "prompt"}


async def complete(serving: Serving, request: Request) -> Response:
    """Prompts in, `n` answers to each out."""
    settings = serving.settings
    wanted = parse_completion(await read_json(request, settings.max_body_bytes, settings.body_timeout_s))
    answering = await prepare(serving.find(wanted.options.model), wanted, request.scope["brise.ticket"])
    if wanted.options.stream:
        return EventStream(stream(answering))
    return JSONResponse(await unless_gone(request.receive, collect(answering)))


async def prepare(served: Served, wanted: CompletionRequest, ticket: Ticket) -> Answering:
    """Everything up to the first token; the engine has not heard of it yet."""
    options = wanted.options
    model = served.worker.model
    ticket.model = options.model
    engine_requests = await asyncio.to_thread(completion_requests, wanted, model)
    job = Job(served, engine_requests, ticket, NAMES)
    envelope = Envelope("cmpl", "text_completion", "text_completion", options.model)
    return Answering(job, envelope, _choices(wanted, engine_requests, model.tokenizer), options.include_usage)


def _choices(wanted: CompletionRequest, requests: tuple[EngineRequest, ...], tokenizer: TextTokenizer,
             ) -> list[CompletionChoice]:
    count = wanted.options.n
    return [CompletionChoice(number * count + index, tokenizer, request.prompt,
                             _text(prompt, tokenizer) if wanted.echo else None,
                             logprobs=wanted.logprobs)
            for number, (prompt, request) in enumerate(zip(wanted.prompts, requests, strict=True))
            for index in range(count)]


def _text(prompt: Prompt, tokenizer: TextTokenizer) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
