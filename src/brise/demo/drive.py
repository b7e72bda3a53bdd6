"""The cars: conversations sent through the gateway over HTTP, many at a time, some of them as streams."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import httpx

from brise.demo.stand_in import NAME
from brise.demo.workload import Talk
from brise.evals import compare

TASK = "in-car"
STREAM_EVERY = 3  # the third part of all requests asks for a stream
_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class CarReply:
    """What a car got. `status` 0: no answer at all."""

    status: int
    mode: str
    is_right: bool


@dataclass
class DriveTally:
    """Of a stretch of traffic."""

    modes: Counter[str] = field(default_factory=Counter)
    right: int = 0
    answered: int = 0
    asked: int = 0

    def add(self, reply: CarReply) -> None:
        self.asked += 1
        self.modes[reply.mode] += 1
        self.answered += reply.status == 200
        self.right += reply.is_right


async def nothing() -> None:
    """A pause of no length."""


async def drive(url: str, talks: Sequence[Talk], *, parallel: int, on_reply: Callable[[CarReply],
                                                                                      None] = lambda _: None,
                before: Callable[[], Awaitable[None]] = nothing) -> DriveTally:
    """Has all of these conversations at `url`, so many at a time; `before` is awaited before each of them.

    A second request is sent only if the first was understood, as people do.
    """
    tally, waiting = DriveTally(), list(reversed(talks))

    def take(reply: CarReply) -> None:
        tally.add(reply)
        on_reply(reply)

    async def car(client: httpx.AsyncClient) -> None:
        while waiting:
            talk = waiting.pop()
            await before()
            answers: list[str] = []
            for number, turn in enumerate(talk.turns):
                status, mode, text = await _ask(client, talk, number, answers)
                is_right = status == 200 and same(text, turn.call.text())
                take(CarReply(status, mode, is_right))
                if not is_right:
                    break
                answers.append(text)

    limits = httpx.Limits(max_connections=parallel, max_keepalive_connections=parallel)
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, trust_env=False, limits=limits) as client:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(parallel, len(talks))):
                group.create_task(car(client))
    return tally


def same(one: str, other: str) -> bool:
    """Whether both are the same call: equal JSON, whatever the order of names."""
    left, right = compare.parse(one), compare.parse(other)
    return compare.INVALID not in (left, right) and compare.canonical(left) == compare.canonical(right)


async def _ask(client: httpx.AsyncClient, talk: Talk, number: int, answers: Sequence[str]
               ) -> tuple[int, str, str]:
    is_stream = sum(map(ord, talk.id)) % STREAM_EVERY == 0
    body: dict[str, object] = {"model": NAME, "messages": talk.messages(number, answers), "temperature": 0,
                               "max_tokens": 80}
    if is_stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    headers = {"x-brise-task": TASK, "x-brise-conversation": talk.id,
               "x-brise-label-phrasing": "held-out" if talk.turns[0].is_held_out else "seen"}
    try:
        answer = await client.post("/chat/completions", json=body, headers=headers)
    except httpx.HTTPError as error:
        return 0, type(error).__name__, ""
    mode = answer.headers.get("x-brise-mode", "failed" if answer.status_code >= 400 else "hosted")
    if answer.status_code != 200:
        return answer.status_code, mode, ""
    return 200, mode, _streamed(answer.text) if is_stream else _whole(answer.text)


def _whole(text: str) -> str:
    try:
        return str(json.loads(text)["choices"][0]["message"]["content"])
    except (ValueError, LookupError, TypeError):
        return ""


def _streamed(text: str) -> str:
    pieces = []
    for line in text.splitlines():
        if line.startswith("data: {"):
            chunk = json.loads(line.removeprefix("data: "))
            pieces += [choice.get("delta", {}).get("content") or "" for choice in chunk.get("choices", ())]
    return "".join(pieces)
