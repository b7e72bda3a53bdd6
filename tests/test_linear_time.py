"""What an attacker sends costs time in proportion to its length: 8 times as long takes less than 24 times the time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial

import pytest

from brise.serve.openai_chat import parse_chat
from brise.text.json_text import parse_json
from brise.traffic.scrub import Scrubber

Make = Callable[[int], object]
HI = {"role": "user", "content": "hi"}


def body(**fields: object) -> dict[str, object]:
    return {"model": "m", "messages": [HI], **fields}


def tool(index: int) -> dict[str, object]:
    return {"type": "function", "function": {"name": f"f{index}", "parameters": {"type": "object", "properties": {}}}}


JSON: dict[str, Make] = {
    "keys": lambda n: json.dumps({f"k{i}": i for i in range(n)}).encode(),
    "empty lists": lambda n: b"[" + b"[]," * n + b"[]]",
    "backslashes": lambda n: b'"' + b"\\\\" * n + b'"',
    "halves of pairs": lambda n: b'"' + b"\\ud800" * n + b'"'}
CHATS: dict[str, Make] = {
    "messages": lambda n: body(messages=[HI] * n),
    "tools": lambda n: body(tools=[tool(index) for index in range(min(n // 32, 128))]),
    "parts": lambda n: body(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}] * n}])}
SCRUBBED = {name: (lambda n, piece=piece: piece * n)
            for name, piece in {"letters": "a", "dots": "a.", "digits": "1 ", "at": "a@", "slashes": "//:",
                                "quotes": 'key="'}.items()}


def cases() -> list[object]:
    paths: dict[str, tuple[dict[str, Make], Callable[..., object]]] = {
        "json": (JSON, partial(parse_json, mend=True)), "chat": (CHATS, parse_chat),
        "scrub": (SCRUBBED, lambda text: Scrubber().scrub(text))}
    return [pytest.param(make, run, id=f"{path}: {name}") for path, (makes, run) in paths.items()
            for name, make in makes.items()]


@pytest.mark.parametrize(("make", "run"), cases())
def test_the_time_grows_with_the_length(make: Make, run: Callable[[object], object]) -> None:
    short, long = (min(seconds(run, make(number)) for _ in range(3)) for number in (512, 4096))
    assert long < 24 * short + 0.01, "8 times as long if linear, 64 times if quadratic"


def seconds(run: Callable[[object], object], given: object) -> float:
    begin_s = time.thread_time()
    run(given)
    return time.thread_time() - begin_s
