"""The candidate answers in the background what the large model answered, and is never in a user's way."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from brise.dialects.bodies import Body
from brise.gateway.exchange import exchange_of
from brise.gateway.gateway import Components
from brise.gateway.interfaces import RequestOutcome
from brise.gateway.request import ClientRequest, read
from brise.gateway.small_models import SmallModelDownError, TaskModels
from brise.models.batch import Batch
from brise.switch.shadow import Reask, Shadow, ShadowOptions
from brise.traffic.records import NOT_DRAWN, SHED, RecordedAnswer, not_written, shadow_skip, shadow_skipped
from tests.engine.stub import stub_model
from tests.gateway.fake_answers import chat_body, chat_events
from tests.gateway.fake_upstream import Behaviour, answer, chat, events, refuse
from tests.gateway.rig import Memory, Rig, rig
from tests.switch.small_models import FakeSmall
from tests.waiting import LIMIT_S, wait_until

BODY: dict[str, Any] = {"model": "big", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


@dataclass
class Shadowing:
    """The gateway, and its shadow."""

    rig: Rig
    made: list[Shadow] = field(default_factory=list)

    @property
    def shadow(self) -> Shadow:
        return self.made[0]

    def answers(self, number: int = 1) -> list[RecordedAnswer]:
        wait_until(lambda: len(self.rig.captured.answers) >= number)
        return self.rig.captured.answers


@contextmanager
def shadowing(on_step: Callable[[Batch], None] | None = None, **options: Any) -> Iterator[Shadowing]:
    made: list[Shadow] = []

    def around(local: Any, large: Any, captured: Memory) -> Components:
        made.append(Shadow(local, TaskModels("stub"), ShadowOptions(**{"share": 1.0, **options}), captured))
        return Components(observers=made, background=made)

    with rig(model=stub_model("small", on_step=on_step), around=around) as running:
        yield Shadowing(running, made)


def test_the_user_has_the_hosted_answer_and_the_store_both() -> None:
    with shadowing() as got:
        response = got.rig.live.post("/v1/chat/completions", {**BODY, "service_tier": "flex", "made_up": 1})
        assert response.json() == chat_body("hello") and response.headers["x-brise-mode"] == "hosted"
        shadow, = got.answers()
        scraped = got.rig.live.metrics()
    exchange, = got.rig.captured.exchanges
    assert (shadow.role, shadow.exchange, shadow.served_by, shadow.probability) == ("shadow", exchange.id, "stub", 1.0)
    assert shadow.response is not None and shadow.response["choices"][0]["message"]["content"] == "small"
    assert shadow.response["brise"]["ignored"].keys() == {"service_tier", "made_up"}
    assert shadow.response["brise"].keys() == {"ignored"} and len(shadow.fingerprint or "") == 32
    assert shadow.signals["ignored_fields"] == 2
    assert shadow.signals["logprob"] <= 0 and shadow.usage is not None and shadow.error is None
    assert got.shadow.counts == {"answered": 1} and got.shadow.ignored == {"service_tier": 1, "unknown": 1}
    assert 'brise_gateway_shadow_total{outcome="answered"} 1.0' in scraped
    assert 'brise_gateway_ignored_fields_total{field="unknown",part="shadow"} 1.0' in scraped


def test_a_stream_is_shadowed_too() -> None:
    with shadowing() as got:
        assert "hello" in got.rig.live.post("/v1/chat/completions", {**BODY, "stream": True}).text
        assert got.answers()[0].response is not None


@pytest.mark.parametrize("headers, behaviour, body", [
    ({"x-brise-capture": "off"}, chat("hello"), BODY), ({}, refuse(400), BODY), ({}, refuse(503), BODY),
    ({}, answer({"error": {"code": 502}}), BODY), ({}, answer({"error": {"code": 400}}), BODY), ({}, answer(b""), BODY),
    ({}, answer({"choices": None}), BODY), ({}, answer(b"<html>"), BODY),
    ({}, events([*chat_events("one")[:2], "[DONE]"]), {**BODY, "stream": True}),
    ({}, answer({"data": []}), {"model": "big", "input": "x"})])
def test_only_what_may_be_held_against_a_hosted_answer_is_shadowed(headers: dict[str, str], behaviour: Any,
                                                                   body: dict[str, Any]) -> None:
    with shadowing() as got:
        got.rig.fake.then(behaviour)
        path = "/v1/embeddings" if "input" in body else "/v1/chat/completions"
        got.rig.live.post(path, body, headers=headers)
        asked = got.rig.live.post("/v1/chat/completions", BODY)
        shadow, = got.answers()
        assert shadow.exchange == asked.headers["x-brise-id"]


def test_what_the_candidate_cannot_answer_is_kept_as_its_failure() -> None:
    with shadowing() as got:
        got.rig.live.post("/v1/chat/completions", {**BODY, "web_search_options": {}})
        shadow, = got.answers()
        assert (shadow.status, shadow.response) == (400, None) and "web_search_options" in (shadow.error or "")


def test_a_users_answer_ends_the_shadows_which_begins_anew_afterwards() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hold(batch: Batch) -> None:
        begun.set()
        assert go_on.wait(LIMIT_S)

    with shadowing(on_step=hold) as got:
        got.rig.live.post("/v1/chat/completions", BODY)
        assert begun.wait(LIMIT_S)
        user = threading.Thread(target=got.rig.live.chat)
        user.start()
        wait_until(lambda: not got.rig.live.worker._calls.empty())  # it waits for the step that runs, and for no more
        go_on.set()
        user.join(LIMIT_S)
        assert got.answers()[0].error is None
        assert got.shadow.counts == {"preempted": 1, "answered": 1}


def test_nothing_begins_while_a_users_answer_is_written() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hold(batch: Batch) -> None:
        begun.set()
        assert go_on.wait(LIMIT_S)

    with shadowing(on_step=hold) as got:
        user = threading.Thread(target=got.rig.live.chat)
        user.start()
        assert begun.wait(LIMIT_S)
        got.rig.live.post("/v1/chat/completions", BODY)
        assert got.rig.live.worker.stats().background == 0
        go_on.set()
        user.join(LIMIT_S)
        assert got.answers()[0].error is None and got.shadow.counts == {"answered": 1}


def test_a_defect_is_written_down_and_ends_nothing_else() -> None:
    calls: list[Body] = []

    def says(body: Body) -> tuple[str, float]:
        calls.append(body)
        return ("x", -0.1) if len(calls) > 1 else (1 / 0, 0.0)  # type: ignore[return-value]

    log, captured = io.StringIO(), Memory()
    shadow = Shadow(FakeSmall(says), TaskModels("small"), ShadowOptions(1.0), captured, log=log)

    async def run() -> None:
        note(shadow, [asked(), asked()])
        running = asyncio.create_task(shadow.run())
        while not captured.answers:
            await asyncio.sleep(0)
        running.cancel()

    asyncio.run(asyncio.wait_for(run(), LIMIT_S))
    assert shadow.counts == {"defect": 1, "answered": 1} and "ZeroDivisionError" in log.getvalue()


def test_an_outage_of_the_small_model_is_no_answer_of_it() -> None:
    class Down(FakeSmall):
        def fingerprint(self, model: str) -> str:
            raise SmallModelDownError(model, "its server does not answer")

    captured = Memory()
    shadow = Shadow(Down(lambda _: ("x", -0.1)), TaskModels("small"), ShadowOptions(1.0), captured)

    async def run() -> None:
        note(shadow, [asked()])
        running = asyncio.create_task(shadow.run())
        while not captured.skipped:
            await asyncio.sleep(0)
        running.cancel()

    asyncio.run(asyncio.wait_for(run(), LIMIT_S))
    assert shadow.counts == {"unavailable": 1, "shed": 1} and not captured.answers


def shadow_of(share: float, max_waiting: int = 10_000) -> Shadow:
    return Shadow(FakeSmall(lambda _: ("x", -0.1)), TaskModels("small"), ShadowOptions(share, max_waiting=max_waiting),
                  Memory())


def asked() -> ClientRequest:
    return read("POST", "/v1/chat/completions", b"/v1/chat/completions", (), b'{"model": "big", "messages": []}')


def note(shadow: Shadow, requests: list[ClientRequest]) -> list[str]:
    """The ids of those that were drawn."""
    drawn = []
    for each in requests:
        before = len(shadow._waiting)
        shadow.observe(each, exchange_of(each, RequestOutcome("hosted", 200), 0.1))
        drawn += [each.id] if len(shadow._waiting) > before else []
    return drawn


def test_the_draw_depends_on_the_request_only_and_meets_its_share() -> None:
    requests = [asked() for _ in range(2000)]
    drawn = note(shadow_of(0.25), requests)
    assert drawn == note(shadow_of(0.25), requests) and abs(len(drawn) - 500) < 100
    assert set(drawn) <= set(note(shadow_of(0.5), requests))


def test_a_full_queue_sheds_and_counts() -> None:
    shadow = shadow_of(1.0, max_waiting=3)
    assert len(note(shadow, [asked() for _ in range(10)])) == 3 and shadow.counts == {"shed": 7}


@pytest.mark.parametrize("outage", [refuse(503), answer({"error": {"message": "no", "code": 502}}), answer(b""),
                                    answer({"choices": []})])
def test_the_hosted_model_is_asked_once_more_and_an_outage_is_no_disagreement(outage: Behaviour) -> None:
    made: list[Reask] = []

    def around(local: Any, large: Any, captured: Memory) -> Components:
        made.append(Reask(large, 1.0, captured))
        return Components(observers=made, background=made)

    with rig(around=around) as running:
        running.fake.then(chat("one"), outage, chat("two"), chat("three"))
        running.live.post("/v1/chat/completions", {**BODY, "stream": True}, headers={"authorization": "Bearer k"})
        wait_until(lambda: made[0].counts["failed"] == 1)
        running.live.post("/v1/chat/completions", BODY)
        wait_until(lambda: len(running.captured.answers) == 1)
        reask, = running.captured.answers
    assert (reask.role, reask.exchange) == ("reask", running.captured.exchanges[1].id)
    assert reask.response == chat_body("three") and reask.usage is not None and reask.probability == 1.0
    assert running.fake.received[1].json == {**BODY} and running.fake.received[1].header("authorization") == "Bearer k"


def test_what_is_not_drawn_or_finds_no_room_is_counted_in_the_store_by_task() -> None:
    with shadowing(share=0.0) as got:
        got.rig.live.post("/v1/chat/completions", BODY)
        wait_until(lambda: got.rig.captured.skipped == [shadow_skip(NOT_DRAWN, "big")])
    with shadowing(max_waiting=0) as got:
        got.rig.live.post("/v1/chat/completions", BODY)
        wait_until(lambda: got.rig.captured.skipped == [shadow_skip(SHED, "big")])
        assert got.shadow.counts == {"shed": 1}


def test_the_counts_of_the_shadow_are_told_from_requests_that_were_not_written() -> None:
    counts = {"off": 3, shadow_skip(SHED, "a: b"): 4, shadow_skip(NOT_DRAWN, "a: b"): 5, "sampled": 1}
    assert shadow_skipped(counts) == {"a: b": {SHED: 4, NOT_DRAWN: 5}}
    assert not_written(counts) == {"off": 3, "sampled": 1}
