"""How well a server keeps a control loop's deadlines: a pilot asks it for a while, beside chats if wanted.

Observations are those of the gate course, or messages of a file; nothing moves.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from brise.errors import EvidenceError
from brise.robots import gate_course, gate_task, jitter
from brise.robots.acting_server import ActingServer, Messages, ServerAddress
from brise.robots.jitter import JitterReport
from brise.robots.pilot import Pilot, PilotOptions

MAX_LINES = 100_000


@dataclass(frozen=True)
class ActBenchOptions:
    """The defaults are those of `brise act bench`."""

    server: ServerAddress
    seconds: float = 60.0
    period_s: float | None = None  # None: that of the action space
    deadline_s: float = 0.1
    observations: Path | None = None  # JSON lines with `messages`; None: those of the gate course
    chats: int = 0  # clients that chat at the same time, without pause
    real_time: bool = False
    log: Path | None = None  # what came in and what was sent, for replay

    def __post_init__(self) -> None:
        for name, value in (("seconds", self.seconds), ("deadline", self.deadline_s), ("period", self.period_s)):
            if value is not None and not 0 < value <= 86_400:
                raise EvidenceError(f"the {name} is {value:g} s, allowed is over 0, up to 86400")


def run(options: ActBenchOptions) -> JitterReport:
    """Asks for a while; the report."""
    with closing(ActingServer(options.server)) as server:
        return _run(options, server)


def _run(options: ActBenchOptions, server: ActingServer) -> JitterReport:
    space = server.space()
    if options.period_s is not None:
        space = replace(space, period_s=options.period_s)
    observations = _from_file(options.observations) if options.observations is not None else _from_course()
    stop = threading.Event()
    chats = [threading.Thread(target=_chat, args=(options.server, number, stop), daemon=True)
             for number in range(options.chats)]
    log = None if options.log is None else options.log.open("w", encoding="utf-8")
    try:
        pilot = Pilot(space, server, lambda: next(observations), lambda command: None,
                      PilotOptions(deadline_s=options.deadline_s, real_time=options.real_time), log)
        for chat in chats:
            chat.start()
        pilot.arm()
        times = pilot.fly(max(round(options.seconds / space.period_s), 1))
    finally:
        stop.set()
        if log is not None:
            log.close()
    return jitter.summarize(times, space.period_s, options.deadline_s)


def _from_course() -> Iterator[Messages]:
    """What the expert sees on random missions, which repeat."""
    flights, states = gate_course.started(np.random.default_rng(0), "train", 8)
    seen: list[Messages] = []
    for _ in range(20):
        seen += [gate_task.messages_of(flight, states, at) for at, flight in enumerate(flights)]
        states = gate_course.advance(flights, states, gate_course.expert(flights, states))
    return cycle(seen)


def _from_file(path: Path) -> Iterator[Messages]:
    try:
        with path.open(encoding="utf-8") as file:
            rows = [json.loads(line) for _, line in zip(range(MAX_LINES), file, strict=False) if line.strip()]
        return cycle([row["messages"] for row in rows] or [_nothing(path)])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvidenceError(f"{path}: these are no JSON lines with 'messages': {error}") from error


def _nothing(path: Path) -> Messages:
    raise EvidenceError(f"{path}: the file has no observations")


def _chat(address: ServerAddress, number: int, stop: threading.Event) -> None:
    """A client that asks for one long answer after the other. What fails is asked again: it is only load."""
    parts = urlsplit(address.url)
    headers = {"content-type": "application/json"}
    if address.key is not None:
        headers["authorization"] = f"Bearer {address.key}"
    for turn in range(1_000_000):
        if stop.is_set():
            return
        text = f"Chat {number}, turn {turn}: tell a long story about the wind. " * 20
        body = {"model": address.model, "messages": [{"role": "user", "content": text}], "max_tokens": 200,
                "ignore_eos": True}
        connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port or 80, timeout=60)
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            stop.wait(0.1)
        finally:
            connection.close()
