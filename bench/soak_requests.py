"""What the clients of soak.py send, and what must come back: an answer or a stated error, each time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

import httpx

PATIENCE_S = 300.0  # an answer that takes longer counts as lost
WORDS = ("wind sea harbour morning letter stone river bread winter garden paper silver window "
         "mountain music island engine cloud coffee lamp").split()
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12},
                                           "size": {"type": "integer", "minimum": 0, "maximum": 99}},
          "required": ["name", "size"], "additionalProperties": False}


class LostError(Exception):
    """A request that ended in neither an answer nor an error that the client can read."""


@dataclass(frozen=True)
class Target:
    """The server under test. `context` is the number of tokens it was started with."""

    client: httpx.AsyncClient
    model: str
    context: int


Kind = Callable[[Target, Random], Awaitable[str]]
Json = dict[str, object]


def kinds() -> dict[str, tuple[Kind, int]]:
    """Each kind of request and how often it is sent, in parts."""
    return {"plain": (plain, 6), "stream": (stream, 6), "constrained": (constrained, 2),
            "several": (several, 2), "leave a stream": (leave_stream, 4),
            "leave an answer": (leave_answer, 3), "malformed": (malformed, 4), "too long": (too_long, 2)}


async def plain(target: Target, random: Random) -> str:
    return _checked(await _post(target, "chat/completions", _chat(target, random)))


async def stream(target: Target, random: Random) -> str:
    """Server-sent events up to [DONE], with a reason for the end before it."""
    body = _chat(target, random) | {"stream": True, "stream_options": {"include_usage": True}}
    finish: object = None
    async with target.client.stream("POST", "chat/completions", json=body) as response:
        if response.status_code != 200:
            await response.aread()
            return _refused(response)
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                if finish not in ("stop", "length"):
                    raise LostError(f"a stream ended with finish_reason {finish!r}")
                return "answer"
            if line.startswith("data: "):
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise LostError(f"a stream broke off: {chunk['error']}")
                finish = next((choice["finish_reason"] for choice in chunk["choices"]
                               if choice["finish_reason"]), finish)
    raise LostError("a stream ended without [DONE]")


async def constrained(target: Target, random: Random) -> str:
    """JSON by a schema: what ended by itself must parse."""
    body = _chat(target, random) | {"max_tokens": 96, "response_format": {
        "type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}}
    response = await _post(target, "chat/completions", body)
    outcome = _checked(response)
    if outcome == "answer":
        choice = response.json()["choices"][0]
        if choice["finish_reason"] == "stop":
            json.loads(choice["message"]["content"])
    return outcome


async def several(target: Target, random: Random) -> str:
    """Two answers at once, with log-probabilities."""
    body = {"model": target.model, "prompt": _text(random, 40), "n": 2, "logprobs": 2,
            "max_tokens": random.randint(1, 24), "seed": random.randint(0, 9)}
    return _checked(await _post(target, "completions", body), num_choices=2)


async def leave_stream(target: Target, random: Random) -> str:
    """Goes away after a few events."""
    body = _chat(target, random) | {"stream": True, "max_tokens": 400}
    patience = random.randint(0, 12)
    async with target.client.stream("POST", "chat/completions", json=body) as response:
        if response.status_code != 200:
            await response.aread()
            return _refused(response)
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                patience -= 1
                if patience < 0:
                    return "left"
    return "answer"


async def leave_answer(target: Target, random: Random) -> str:
    """Goes away before the answer is there: in the queue, in the prompt or in the middle of decoding."""
    body = _chat(target, random) | {"max_tokens": 400}
    try:
        async with asyncio.timeout(random.uniform(0.0, 2.0)):
            return _checked(await _post(target, "chat/completions", body))
    except TimeoutError:
        return "left"


async def malformed(target: Target, random: Random) -> str:
    """Wrong JSON, fields, types and names: each gets a 4xx whose message says what is wrong."""
    chat = _chat(target, random)
    wrong_fields: list[Json] = [
        {"model": "no-such-model"}, {"temperature": "hot"}, {"unknown_field": 1}, {"messages": []},
        {"messages": [{"role": "wizard", "content": "x"}]}, {"n": 0}, {"top_p": 2}, {"max_tokens": -1},
        {"logit_bias": {"x": 1}}, {"stop": [1]}, {"response_format": {"type": "poem"}},
        {"response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"type": "nonsense"}}}}]
    contents = random.choice([b"{", b"", b"[]", b"\xff\xfe", b'{"model": 7}', b"[" * 3000,
                              *(json.dumps(chat | wrong).encode() for wrong in wrong_fields)])
    response = await target.client.post("chat/completions", content=contents,
                                        headers={"Content-Type": "application/json"})
    if not 400 <= response.status_code < 500:
        raise LostError(f"malformed {contents[:80]!r} got status {response.status_code}")
    return _refused(response)


async def too_long(target: Target, random: Random) -> str:
    """A prompt over the context is refused with the numbers, not cut."""
    message = {"role": "user", "content": _text(random, 2 * target.context)}
    body = _chat(target, random) | {"messages": [message]}
    response = await _post(target, "chat/completions", body)
    outcome = _refused(response)
    if outcome not in ("error context_length_exceeded", "error queue_full"):
        raise LostError(f"an over-long prompt got {outcome}")
    return outcome


async def _post(target: Target, path: str, body: Json) -> httpx.Response:
    return await target.client.post(path, json=body)


def _checked(response: httpx.Response, num_choices: int = 1) -> str:
    if response.status_code != 200:
        return _refused(response)
    choices = response.json()["choices"]
    reasons = [choice["finish_reason"] for choice in choices]
    if len(choices) != num_choices or not set(reasons) <= {"stop", "length"}:
        raise LostError(f"an answer has the finish reasons {reasons}")
    return "answer"


def _refused(response: httpx.Response) -> str:
    """The error's code; a server error, or an error without words, is a lost request."""
    try:
        error = response.json()["error"]
        message, code = error["message"], error["code"]
    except (ValueError, KeyError, TypeError) as wrong:
        raise LostError(f"status {response.status_code} with {response.content[:80]!r}") from wrong
    if response.status_code >= 500 or not message:
        raise LostError(f"status {response.status_code}: {message!r}")
    if response.status_code == 429 and "Retry-After" not in response.headers:
        raise LostError("status 429 without Retry-After")
    return f"error {code}"


def _chat(target: Target, random: Random) -> Json:
    return {"model": target.model, "max_tokens": random.randint(1, 64), "seed": random.randint(0, 99),
            "temperature": random.choice([0, 0.8]),
            "messages": [{"role": "user", "content": _text(random, random.choice([5, 30, 200]))}]}


def _text(random: Random, num_words: int) -> str:
    return " ".join(random.choices(WORDS, k=num_words))
