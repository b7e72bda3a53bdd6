"""`POST /v1/actions`: what a robot does next, as a chunk of commands that cannot be malformed and has a deadline."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brise.engine.engine_thread import EngineThread
from brise.engine.request import Request as EngineRequest
from brise.engine.request import Sampling
from brise.errors import RequestError
from brise.serve.body import read_parsed
from brise.serve.generation import GenerationTask, deltas, usage
from brise.serve.ignored import ignored_header, report
from brise.serve.openai_chat import ChatRequest, parse_chat
from brise.serve.prompts import chat_job
from brise.serve.serving import ServerState
from brise.serve.sse import unless_gone
from brise.text.action_space import Actions, ActionSpace, Floats
from brise.text.fields import Ignored, RequestFields
from brise.text.json_text import Json

MAX_DEADLINE_MS = 3_600_000
_OWN = ("deadline_ms", "priority", "fallback", "last")
_NOT_HERE = ("tools", "tool_choice", "response_format", "max_tokens", "max_completion_tokens", "stop", "stream", "n",
             "logprobs", "top_logprobs")

LateStep = Literal["hold", "brake"]


@dataclass(frozen=True)
class ActionOptions:
    """How a control loop asks. `last` is the command that was sent last: rates are limited from there on.

    After `deadline_s` the answer ends with what there is; `fallback` gives the steps that are missing. An urgent
    request goes before all others that are not.
    """

    deadline_s: float | None = None
    is_urgent: bool = True
    fallback: LateStep = "hold"
    last: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ActionChunk:
    """Commands in the space's units, (steps, values), the first for the time of the observation, the others a period
    apart each. The first `num_decided` are the model's own, the others the fallback's; then it `is_late`.
    """

    space: ActionSpace
    commands: Floats
    num_decided: int
    is_late: bool


async def act(serving: ServerState, request: Request) -> Response:
    """The response: one chunk."""
    settings = serving.settings
    ignored = None if settings.strict else Ignored()
    chat, options = await read_parsed(request, settings.max_body_bytes, settings.body_timeout_s,
                                      lambda body: parse_action(body, ignored))
    name = chat.options.model
    served, stats = serving.find(name), request.scope["brise.stats"]
    stats.model = name
    actions = actions_of(served.worker, served.adapter)
    job = await asyncio.to_thread(chat_job, chat, served.worker.model, Sampling(temperature=0.0))
    wanted = acting(job.request, actions, options)
    tokens, is_late = await unless_gone(request.receive, _collected(GenerationTask(served, (wanted,), stats, {})))
    chunk = read_chunk(actions, tokens, options, is_late=is_late)
    body = {"object": "actions", "model": name, **as_json(chunk), "usage": usage(stats)}
    if reported := report(ignored):
        body["brise"] = reported
    return JSONResponse(body, headers=ignored_header(ignored))


def parse_action(body: Json, ignored: Ignored | None = None) -> tuple[ChatRequest, ActionOptions]:
    """The conversation and how it is asked, or a RequestError that names the field."""
    fields = RequestFields(body, ignored=ignored)
    for name in _NOT_HERE:
        fields.refuse(name, "an action has the form that its adapter was trained for")
    deadline_ms = fields.number("deadline_ms", 0.001, MAX_DEADLINE_MS)
    fallback = fields.choice("fallback", ("hold", "brake")) or "hold"
    priority = fields.choice("priority", ("urgent", "normal")) or "urgent"
    last = fields.items("last")
    if last is not None and not all(type(number) in (int, float) and math.isfinite(number) for number in
                                    cast(list[float], last)):
        raise fields.error("last", "must be a list of finite numbers, one for each value of the action space")
    rest = {name: value for name, value in cast(dict[str, Json], body).items() if name not in _OWN}
    return parse_chat(rest, ignored), ActionOptions(
        None if deadline_ms is None else deadline_ms / 1e3, priority == "urgent", cast(LateStep, fallback),
        None if last is None else tuple(map(float, cast(list[float], last))))


def actions_of(worker: EngineThread, adapter: str | None) -> Actions:
    """The actions of an adapter; RequestError if it was trained on none."""
    info = next((each for each in worker.adapters if each.name == adapter), None)
    if info is None or info.actions is None:
        raise RequestError(f"{adapter or worker.model.name!r} was trained on no actions", param="model",
                           code="model_not_acting", hint="ask an adapter that `brise tune --actions` made")
    return info.actions


def acting(request: EngineRequest, actions: Actions, options: ActionOptions) -> EngineRequest:
    """The request for a chunk of actions, of one for a chat."""
    if options.last is not None and len(options.last) != len(actions.space.values):
        raise RequestError(f"'last' has {len(options.last)} numbers, {actions.space.name} has "
                           f"{len(actions.space.values)} values", param="last")
    plain = replace(request.sampling, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0)
    return replace(request, max_tokens=actions.space.num_tokens, token_choices=actions.choices, grammar=None, stop=(),
                   sampling=plain, ignore_eos=True, deadline_s=options.deadline_s, is_urgent=options.is_urgent)


def read_chunk(actions: Actions, tokens: Sequence[int], options: ActionOptions, *, is_late: bool) -> ActionChunk:
    """The chunk that an answer's tokens are, with a step of the fallback for each that is missing."""
    space = actions.space
    decided = actions.commands(tokens, options.last)
    rows = list(decided)
    for _ in range(space.steps - len(rows)):
        before = rows[-1] if rows else None if options.last is None else np.array(options.last)
        wanted = space.brake if options.fallback == "brake" or before is None else before
        rows.append(space.limited(wanted, before))
    return ActionChunk(space, np.array(rows), len(decided), is_late)


def as_json(chunk: ActionChunk) -> dict[str, object]:
    """A chunk as the server sends it; times are seconds after the observation."""
    space = chunk.space
    return {"space": space.name, "names": [value.name for value in space.values],
            "units": [value.unit for value in space.values], "commands": chunk.commands.tolist(),
            "times_s": [step * space.period_s for step in range(space.steps)], "num_decided": chunk.num_decided,
            "late": chunk.is_late}


async def _collected(task: GenerationTask) -> tuple[list[int], bool]:
    """The tokens of the answer, and whether it is late."""
    tokens: list[int] = []
    finish: str | None = None
    async with aclosing(deltas(task)) as numbered:
        async for _, delta in numbered:
            tokens += delta.tokens
            finish = delta.finish or finish
    return tokens, finish == "late"
