"""After an outage the large model is asked again, with the key that a request came with or the gateway's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from brise.gateway.breaker import Breaker, BreakerSettings
from brise.gateway.fallback import SmallModelFallback
from brise.gateway.gateway import Components
from brise.gateway.reanswer import Reanswer, ReanswerOptions
from brise.gateway.small_models import TaskModels
from brise.traffic.capture import Capture
from brise.traffic.records import RecordedAnswer
from brise.traffic.sql_store import SqlStore
from brise.traffic.stores import open_store
from tests.gateway.fake_answers import chat_body
from tests.gateway.fake_upstream import Behaviour, answer, chat, raw, refuse
from tests.gateway.rig import Rig, rig
from tests.waiting import wait_until

BODY: dict[str, Any] = {"model": "big", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
NONSENSE = raw(b"this is no HTTP\r\n\r\n")
KEY = {"authorization": "Bearer clients"}
SOON = ReanswerOptions(every_s=0.001, probe_s=30.0, attempts=3)


@dataclass
class Degrading:
    """A gateway with a store, a stand-in, and the fetching of answers afterwards."""

    rig: Rig
    store: SqlStore
    reanswer: Reanswer

    def ask(self, *behaviours: Behaviour, mode: str, stream: bool = False) -> str:
        """A user's request; its id."""
        self.rig.fake.then(*behaviours)
        response = self.rig.live.post("/v1/chat/completions", {**BODY, "stream": stream}, headers=KEY)
        assert response.headers["x-brise-mode"] == mode
        return response.headers["x-brise-id"]

    def answer(self, exchange: str) -> RecordedAnswer:
        wait_until(lambda: bool(list(self.store.answers([exchange], "reanswer"))))
        wait_until(lambda: exchange not in [pending.exchange for pending in self.store.pending()])
        answer, = self.store.answers([exchange], "reanswer")
        return answer


@contextmanager
def degrading(home: Path, key: str | None = None, options: ReanswerOptions = SOON) -> Iterator[Degrading]:
    store, made = open_store(None, home), list[Reanswer]()
    capture = Capture(store)

    def around(local: Any, large: Any, _: Any) -> Components:
        made.append(Reanswer(large, store, capture, options))
        return Components(fallback=SmallModelFallback(local, TaskModels("stub")), observers=made, background=made,
                     capture=capture)

    try:
        with rig(around=around, key=key, breaker=Breaker(BreakerSettings(failures=1_000_000))) as running:
            yield Degrading(running, store, made[0])
    finally:
        capture.drain()
        store.close()


@pytest.mark.parametrize("stream", [False, True])
def test_when_it_is_back_it_is_asked_with_the_key_that_the_request_came_with(tmp_path: Path, stream: bool) -> None:
    with degrading(tmp_path) as gateway:
        degraded = gateway.ask(NONSENSE, mode="degraded", stream=stream)
        gateway.ask(chat("back"), chat("the answer"), mode="hosted")
        answer = gateway.answer(degraded)
        assert answer.response == chat_body("the answer") and answer.error is None and answer.usage is not None
        received = gateway.rig.fake.received[-1]
        assert received.header("authorization") == "Bearer clients" and "stream" not in received.json
        assert gateway.reanswer.counts == {"answered": 1}


def test_nobody_asks_while_it_is_away(tmp_path: Path) -> None:
    with degrading(tmp_path) as gateway:
        waiting = {gateway.ask(NONSENSE, mode="degraded") for _ in range(3)}
        wait_until(lambda: {pending.exchange for pending in gateway.store.pending()} == waiting)
        assert len(gateway.rig.fake.received) == 3


@pytest.mark.parametrize("failure", [refuse(503), answer({"error": {"message": "no", "code": 502}}), answer(b"")])
def test_a_failed_attempt_waits_for_the_next_sign_of_life_and_ends_after_some(tmp_path: Path,
                                                                              failure: Behaviour) -> None:
    with degrading(tmp_path) as gateway:
        degraded = gateway.ask(NONSENSE, mode="degraded")
        for number in range(1, 4):
            gateway.ask(chat("back"), failure, mode="hosted")
            wait_until(lambda number=number: [each.attempts for each in gateway.store.pending()] == [number])  # type: ignore[misc]
        gateway.ask(chat("back"), mode="hosted")
        assert [each.exchange for each in gateway.store.pending()] == [degraded]
        assert gateway.reanswer.counts == {"failed": 3} and len(gateway.rig.fake.received) == 8


def test_finding_out_that_the_outage_goes_on_costs_no_attempt(tmp_path: Path) -> None:
    with degrading(tmp_path, options=ReanswerOptions(every_s=0.001, probe_s=0.01, attempts=2)) as gateway:
        gateway.rig.fake.default = NONSENSE
        degraded = gateway.ask(mode="degraded")
        wait_until(lambda: gateway.reanswer.counts["failed"] >= 5)
        wait_until(lambda: [pending.attempts for pending in gateway.store.pending()] == [0])
        gateway.rig.fake.default = chat("the answer")
        assert gateway.answer(degraded).response == chat_body("the answer")


@pytest.mark.parametrize(("refusal", "status", "error"), [
    (refuse(400, "too long"), 400, "too long"),
    (answer({"error": {"message": "too long", "code": 400}}), 200, "it reports an error: too long")])
def test_a_request_that_the_hosted_model_refuses_has_its_answer(tmp_path: Path, refusal: Behaviour, status: int,
                                                                error: str) -> None:
    with degrading(tmp_path) as gateway:
        degraded = gateway.ask(NONSENSE, mode="degraded")
        gateway.ask(chat("back"), refusal, mode="hosted")
        given = gateway.answer(degraded)
        assert (given.status, given.error) == (status, error) and gateway.reanswer.counts == {"refused": 1}


def test_after_a_restart_the_gateways_own_key_serves_and_a_clients_is_gone(tmp_path: Path) -> None:
    with degrading(tmp_path) as gateway:
        degraded = gateway.ask(NONSENSE, mode="degraded")
    with degrading(tmp_path) as gateway:
        gateway.ask(chat("back"), mode="hosted")
        assert [pending.exchange for pending in gateway.store.pending()] == [degraded]
    with degrading(tmp_path, key="own") as gateway:
        gateway.ask(chat("back"), chat("the answer"), mode="hosted")
        assert gateway.answer(degraded).response == chat_body("the answer")
        assert gateway.rig.fake.received[-1].header("authorization") == "Bearer own"


def test_no_key_is_written_down(tmp_path: Path) -> None:
    with degrading(tmp_path) as gateway:
        gateway.ask(NONSENSE, mode="degraded")
        wait_until(lambda: len(gateway.store.pending()) == 1)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"Bearer clients" in path.read_bytes()]


def test_keys_are_held_for_so_many_requests_only(tmp_path: Path) -> None:
    with degrading(tmp_path, options=ReanswerOptions(every_s=0.001, max_held=1)) as gateway:
        first, second = (gateway.ask(NONSENSE, mode="degraded") for _ in range(2))
        gateway.ask(chat("back"), chat("the answer"), mode="hosted")
        assert gateway.answer(second).error is None
        assert [pending.exchange for pending in gateway.store.pending()] == [first]
        assert gateway.reanswer.counts == {"let_go": 1, "answered": 1}
