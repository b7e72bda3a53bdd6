"""`POST /v1/actions`: what a robot does next, as a chunk of commands that cannot be malformed and has a deadline."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from contextlib import aclosing
from types import MappingProxyType
from typing import cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brise.engine.request import Sampling
from brise.robots.action_chunk import ActionOptions, acting, actions_of, as_json, read_chunk
from brise.robots.command_queue import Scripted, fallback_names
from brise.serve.body import read_parsed
from brise.serve.generation import GenerationTask, deltas, usage
from brise.serve.ignored import ignored_header, report
from brise.serve.openai_chat import ChatRequest, parse_chat
from brise.serve.prompts import chat_job
from brise.serve.serving import ServerState
from brise.serve.sse import unless_gone
from brise.text.fields import Ignored, RequestFields
from brise.text.json_text import Json

_OWN = ("deadline_ms", "priority", "fallback", "last")
# Fields of chats that an action has not, with the values that ask for nothing.
_NOT_HERE: Mapping[str, tuple[object, ...]] = MappingProxyType({
    "tools": ([],), "tool_choice": ("none", "auto"), "response_format": ({"type": "text"},), "max_tokens": (-1,),
    "max_completion_tokens": (-1,), "stop": ([], ""), "stream": (False,), "n": (1,), "logprobs": (False,),
    "top_logprobs": (0,)})


async def act(serving: ServerState, request: Request) -> Response:
    """The response: one chunk."""
    settings = serving.settings
    ignored = None if settings.strict else Ignored()
    chat, options = await read_parsed(request, settings.max_body_bytes, settings.body_timeout_s,
                                      lambda body: parse_action(body, ignored, settings.scripts))
    name = chat.options.model
    served, stats = serving.find(name), request.scope["brise.stats"]
    stats.model = name
    actions = actions_of(served.worker, served.adapter)
    job = await asyncio.to_thread(chat_job, chat, served.worker.model, Sampling(temperature=0.0))
    wanted = acting(job.request, actions, options)
    tokens, is_late = await unless_gone(request.receive, _collected(GenerationTask(served, (wanted,), stats, {})))
    chunk = await asyncio.to_thread(read_chunk, actions, tokens, options, is_late=is_late)  # it may run a script
    body = {"object": "actions", "model": name, **as_json(chunk), "usage": usage(stats)}
    if reported := report(ignored):
        body["brise"] = reported
    return JSONResponse(body, headers=ignored_header(ignored))


def parse_action(body: Json, ignored: Ignored | None = None, scripts: Mapping[str, Scripted] = MappingProxyType({}),
                 ) -> tuple[ChatRequest, ActionOptions]:
    """The conversation and how it is asked, or a RequestError that names the field."""
    fields = RequestFields(body, ignored=ignored)
    for name, allowed in _NOT_HERE.items():
        fields.only(name, allowed, "an action has the form that its adapter was trained for")
    deadline_ms = fields.number("deadline_ms", 0.0, math.inf)
    fallback = fields.choice("fallback", tuple(fallback_names(scripts))) or "hold"
    priority = fields.choice("priority", ("urgent", "normal")) or "urgent"
    last = fields.items("last")
    if last is not None and not all(type(number) in (int, float) for number in last):
        raise fields.error("last", "must be a list of numbers, one for each value of the action space")
    rest = {name: value for name, value in cast(dict[str, Json], body).items() if name not in _OWN}
    return parse_chat(rest, ignored), ActionOptions(
        None if deadline_ms is None else deadline_ms / 1e3, priority == "urgent", fallback,
        None if last is None else tuple(map(float, cast(list[float], last))), scripts)


async def _collected(task: GenerationTask) -> tuple[list[int], bool]:
    """The tokens of the answer, and whether it is late."""
    tokens: list[int] = []
    finish: str | None = None
    async with aclosing(deltas(task)) as numbered:
        async for _, delta in numbered:
            tokens += delta.tokens
            finish = delta.finish or finish
    return tokens, finish == "late"
