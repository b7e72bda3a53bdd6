"""A task is switched and switched back while gateways run, over real sockets and one store."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from brise.gateway.gateway import Components
from brise.gateway.small_models import SmallModels
from brise.gateway.upstreams import Upstreams
from brise.switch import components
from brise.switch.rule import to_body
from brise.traffic.records import Exchange
from brise.traffic.sql_store import SqlStore
from brise.traffic.stores import open_store
from tests.engine.stub import stub_model
from tests.gateway.fake_answers import FINGERPRINT, MODEL
from tests.gateway.fake_upstream import FakeUpstream, chat, refuse
from tests.gateway.rig import Memory, Rig, rig
from tests.switch.ledger_lines import certified, switched
from tests.switch.small_models import FakeSmall, rule
from tests.waiting import wait_until


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    opened = open_store(tmp_path / "traffic.sqlite", tmp_path)
    yield opened
    opened.close()


def says(body: Any) -> tuple[str, float]:
    text = body["messages"][-1]["content"]
    return f"small: {text}", -5.0 if text.startswith("hard") else -0.1


@contextmanager
def gateway(store: SqlStore, small: FakeSmall | None = None) -> Iterator[Rig]:
    """With a fake small model, whose confidence the test chooses; or with the real engine under a stub."""
    def around(local: SmallModels, large: Upstreams, captured: Memory) -> Components:
        return components.switch_components(small or local, large, store, captured, io.StringIO())

    with rig(around=around, model=stub_model("Hello there!")) as running:
        yield running


def ask(running: Rig, text: str = "easy", **more: Any) -> httpx.Response:
    return running.live.post("/v1/chat/completions", {
        "model": "calls", "messages": [{"role": "user", "content": text}], **more})


def mode(running: Rig, text: str = "easy") -> str:
    answer = ask(running, text)
    assert answer.status_code == 200
    return answer.headers["x-brise-mode"]


def text_of(row: Exchange) -> str:
    assert row.request is not None
    return str(row.request["messages"][-1]["content"])


def begin(store: SqlStore, **changes: Any) -> None:
    certified = rule()
    store.append("cascade", to_body(certified))
    store.append("switch", switched(**{"rule": certified.digest, **changes}))


def test_a_running_gateway_follows_a_switch_and_its_end(store: SqlStore) -> None:
    with gateway(store, FakeSmall(says)) as running:
        assert mode(running) == "hosted"
        begin(store)
        wait_until(lambda: mode(running) == "small")
        assert ask(running).json()["choices"][0]["message"]["content"] == "small: easy"
        assert mode(running, "hard") == "escalated"
        store.append("back", {"task": "calls", "by": "user", "reason": "enough"})
        assert mode(running) != "small", "from the very next request on"
        wait_until(lambda: mode(running) == "hosted")


def test_what_was_kept_and_what_escalated_is_written_down(store: SqlStore) -> None:
    begin(store)
    with gateway(store, FakeSmall(says)) as running:
        wait_until(lambda: mode(running) == "small")
        ask(running, "easily told")
        ask(running, "hard")
        wait_until(lambda: {"easily told", "hard"} <= {text_of(row) for row in running.captured.exchanges})
        rows = {text_of(row): row for row in running.captured.exchanges}
        kept, escalated = rows["easily told"], rows["hard"]
        assert (kept.mode, kept.served_by, kept.audit_probability) == ("small", "small", 0.05)
        assert kept.signals["logprob"] == -0.1 and kept.response is not None
        assert escalated.mode == "escalated" and escalated.signals["logprob"] == -5.0
        draft = next(answer for answer in running.captured.answers if answer.role == "draft")
        assert draft.exchange == escalated.id and draft.response is not None


def test_an_alarm_in_one_gateway_switches_all_back(store: SqlStore) -> None:
    begin(store, audit=1.0)
    with gateway(store, FakeSmall(says)) as first, gateway(store, FakeSmall(says)) as second:
        wait_until(lambda: mode(second) == "small")

        def ends() -> bool:
            ask(first)
            return any(line.kind == "back" for line in store.ledger())

        wait_until(ends)  # the fake large model says "hello" to everything, so that all audits differ
        assert mode(first) != "small" and mode(second) != "small"
        lines = list(store.ledger())
        assert [line.kind for line in lines if line.kind in ("tighten", "back")][-1] == "back"
        assert "alarm" in next(line for line in lines if line.kind == "back").body["reason"]
        assert any(answer.role == "audit" for answer in first.captured.answers)


@pytest.mark.parametrize("streams", [False, True])
def test_another_hosted_model_is_seen_by_audits_where_it_answers_nobody(store: SqlStore, *, streams: bool) -> None:
    def begun(teacher: str) -> None:
        begin(store, audit=1.0, certificate=certified(expires_s=1e12, teachers=[teacher]))

    with gateway(store, FakeSmall(says)) as running:
        running.fake.default = chat("small: easy")
        begun(f"{MODEL} {FINGERPRINT}")
        wait_until(lambda: ask(running, stream=streams).headers["x-brise-mode"] == "small")
        wait_until(lambda: any(line.kind == "audit" for line in store.ledger()))
        assert not any(line.kind == "void" for line in store.ledger())
        begun(f"{MODEL} before")
        wait_until(lambda: ask(running, stream=streams).headers["x-brise-mode"] != "small")
        wait_until(lambda: any(line.kind == "void" for line in store.ledger()))
        line = next(line for line in store.ledger() if line.kind == "void")
        assert f"the large model is '{MODEL} {FINGERPRINT}'" in line.body["reason"]


def test_audits_wait_for_an_outage_to_end_and_users_do_not(store: SqlStore) -> None:
    begin(store, audit=1.0)
    with gateway(store, FakeSmall(says)) as running:
        running.fake.default = refuse(503)
        wait_until(lambda: mode_or_status(running) == "small")
        assert [ask(running).status_code for _ in range(5)] == [200] * 5
        assert not any(line.kind == "audit" for line in store.ledger())
        running.fake.default = chat("small: easy")
        wait_until(lambda: sum(line.kind == "audit" for line in store.ledger()) >= 6)
        assert all(line.body["difference"] == 0.0 for line in store.ledger() if line.kind == "audit")


def test_metrics_say_who_answers_and_what_audits_found(store: SqlStore) -> None:
    begin(store, audit=1.0)
    with gateway(store, FakeSmall(says)) as running:
        running.fake.default = chat("small: easy")
        wait_until(lambda: mode(running) == "small")
        wait_until(lambda: any(line.kind == "audit" for line in store.ledger()))
        wait_until(lambda: 'brise_audits_total{result="audited"}' in running.live.get("/metrics").text)
        text = running.live.get("/metrics").text
        assert 'brise_switch_share{candidate="small",task="calls"} 1.0' in text
        assert 'brise_switch_audit_probability{task="calls"} 1.0' in text and "brise_ledger_failures_total 0.0" in text
        store.append("back", {"task": "calls", "by": "user", "reason": "enough"})
        wait_until(lambda: 'brise_switch_share{candidate="small",task="calls"} 0.0'
                   in running.live.get("/metrics").text)


def mode_or_status(running: Rig) -> str:
    answer = ask(running)
    return str(answer.headers.get("x-brise-mode", answer.status_code))


def test_the_engine_gives_the_signals(store: SqlStore) -> None:
    store.append("switch", switched(candidate="stub"))
    with gateway(store) as running:
        wait_until(lambda: mode(running) == "small")
        running.live.wait_idle()
        running.captured.clear()
        assert ask(running).json()["choices"][0]["message"]["content"] == "Hello there!"
        kept = running.captured.wait()[0]
        assert kept.signals["veto"] == 0 and kept.signals["logprob"] <= 0 and kept.signals["margin"] >= 0
        streamed = ask(running, stream=True)
        assert streamed.headers["x-brise-mode"] == "small" and streamed.text.endswith("data: [DONE]\n\n")


def test_a_model_that_is_not_served_here_leaves_all_to_the_hosted_one(store: SqlStore) -> None:
    store.append("switch", switched(candidate="elsewhere"))
    with gateway(store) as running:
        wait_until(lambda: mode(running) == "escalated")


def behaviours(fake: FakeUpstream) -> int:
    return len(fake.received)


def test_nothing_of_an_unsure_answer_reaches_the_client(store: SqlStore) -> None:
    begin(store)
    with gateway(store, FakeSmall(says)) as running:
        wait_until(lambda: mode(running) == "small")
        before = behaviours(running.fake)
        streamed = ask(running, "hard", stream=True)
        assert "small" not in streamed.text and streamed.headers["x-brise-mode"] == "escalated"
        assert behaviours(running.fake) == before + 1
