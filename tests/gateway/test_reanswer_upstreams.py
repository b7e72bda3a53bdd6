"""With several upstreams, what was answered in an outage is asked of the one that it was meant for, once it is back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brise.gateway.fallback import SmallModelFallback
from brise.gateway.gateway import Components
from brise.gateway.reanswer import Reanswer, ReanswerOptions
from brise.gateway.small_models import TaskModels
from brise.traffic.capture import Capture
from brise.traffic.sql_store import SqlStore
from brise.traffic.stores import open_store
from tests.gateway.fake_answers import chat_body
from tests.gateway.fake_upstream import chat, raw
from tests.gateway.rig import SeveralRig, several
from tests.waiting import wait_until

NONSENSE = raw(b"this is no HTTP\r\n\r\n")
KEYS = {"a": "key-a", "b": "key-b"}


@dataclass(frozen=True)
class Two:
    rig: SeveralRig
    store: SqlStore
    reanswer: Reanswer

    def ask(self, model: str, mode: str) -> str:
        """A client's request; its id."""
        answered = self.rig.live.post("/v1/chat/completions", {"model": model, "temperature": 0, "messages": [
            {"role": "user", "content": "hi"}]})
        assert answered.headers["x-brise-mode"] == mode and answered.headers["x-brise-upstream"] == model[0]
        return answered.headers["x-brise-id"]

    def pending(self) -> list[str]:
        return [pending.exchange for pending in self.store.pending()]


@contextmanager
def two(home: Path, probe_s: float = 30.0) -> Iterator[Two]:
    store, made = open_store(None, home), list[Reanswer]()
    capture = Capture(store)

    def around(local: Any, large: Any, _: Any) -> Components:
        made.append(Reanswer(large, store, capture, ReanswerOptions(every_s=0.001, probe_s=probe_s, attempts=2)))
        return Components(fallback=SmallModelFallback(local, TaskModels("stub")), observers=made, background=made,
                          capture=capture)

    try:
        with several(["a", "b"], keys=KEYS, around=around) as running:
            yield Two(running, store, made[0])
    finally:
        capture.drain()
        store.close()


def test_answers_of_another_upstream_are_no_sign_of_life(tmp_path: Path) -> None:
    with two(tmp_path) as gateway:
        gateway.rig.fakes["a"].default = NONSENSE
        waiting = gateway.ask("a/big", "degraded")
        for _ in range(10):
            gateway.ask("b/big", "hosted")
        wait_until(lambda: gateway.pending() == [waiting])
        assert len(gateway.rig.fakes["a"].received) == 1 and gateway.reanswer.counts["failed"] == 0
        gateway.rig.fakes["a"].default = chat("late")
        gateway.ask("a/big", "hosted")
        wait_until(lambda: gateway.pending() == [])
        answer, = gateway.store.answers([waiting], "reanswer")
        assert answer.response == chat_body("late")
        assert gateway.rig.fakes["a"].received[-1].header("authorization") == "Bearer key-a"


def test_after_a_restart_each_goes_to_the_one_that_it_was_meant_for(tmp_path: Path) -> None:
    with two(tmp_path) as gateway:
        for fake in gateway.rig.fakes.values():
            fake.default = NONSENSE
        ids = [gateway.ask("a/one", "degraded"), gateway.ask("b/two", "degraded")]
        wait_until(lambda: sorted(gateway.pending()) == sorted(ids))
    with two(tmp_path, probe_s=0.01) as gateway:
        wait_until(lambda: gateway.pending() == [])
        assert [(seen.json["model"], seen.header("authorization")) for name in "ab"
                for seen in gateway.rig.fakes[name].received] == [("one", "Bearer key-a"), ("two", "Bearer key-b")]
        exchange = gateway.store.exchange(ids[1])
        assert exchange is not None and (exchange.upstream, exchange.model) == ("b", "b/two")
        assert exchange.response is not None and exchange.response["brise"]["upstream"] == "b"
