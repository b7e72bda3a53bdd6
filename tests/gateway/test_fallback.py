"""The small model answers where the large one cannot: whole, from the beginning, or behind what was said already."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from brise.gateway.breaker import Breaker, BreakerSettings
from brise.gateway.fallback import SmallModelFallback
from brise.gateway.gateway import Components
from brise.gateway.small_models import TaskModels
from brise.gateway.upstream import Limits
from brise.models.batch import Batch
from tests.engine.stub import stub_model
from tests.gateway.fake_answers import chat_body, chat_events
from tests.gateway.fake_upstream import Hold, answer, chat, cut, events, hang, raw, refuse
from tests.gateway.rig import SHORT, Rig, rig
from tests.waiting import LIMIT_S

SAYS = "one two three four five"  # the small model; the large one says the beginning of it
HI = [{"role": "user", "content": "hi"}]
NONSENSE = raw(b"this is no HTTP\r\n\r\n")
BODY: dict[str, Any] = {"model": "big", "messages": HI, "temperature": 0}


@pytest.fixture(scope="module")
def module_rig() -> Iterator[Rig]:
    with degrading() as made:
        yield made


@pytest.fixture
def gateway(module_rig: Rig) -> Rig:
    module_rig.live.wait_idle()  # what the test before asked is written down by then
    module_rig.captured.clear()
    return module_rig


def degrading(limits: Limits | None = None, on_step: Callable[[Batch], None] | None = None) -> Any:
    """A gateway whose small model stands in for every task."""
    return rig(limits, model=stub_model(SAYS, on_step=on_step), breaker=Breaker(BreakerSettings(failures=1_000_000)),
               around=lambda local, large, captured: Components(fallback=SmallModelFallback(local, TaskModels("stub"))))


def stream_of(gateway: Rig, **fields: object) -> tuple[httpx.Response, list[Any]]:
    """The chunks of a stream that ends as it should."""
    response = gateway.live.post("/v1/chat/completions", {**BODY, "stream": True, **fields})
    *lines, done = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert done == "[DONE]", response.text
    return response, [json.loads(line) for line in lines]


def said(chunks: list[Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def test_a_whole_answer_stands_in_and_says_so(gateway: Rig) -> None:
    gateway.fake.then(cut(answer(chat_body("never seen")), 400))
    response = gateway.live.post("/v1/chat/completions", {**BODY, "service_tier": "flex"})
    body = response.json()
    assert (response.status_code, body["choices"][0]["message"]["content"], body["model"]) == (200, SAYS, "stub")
    assert body["brise"] == {"mode": "degraded", "model": "stub", "reason": "cut",
                             "ignored": {"service_tier": "it changes no answer, and nothing is done for it here"}}
    assert response.headers["x-brise-mode"] == "degraded" and response.headers["x-brise-model"] == "stub"
    exchange, = gateway.captured.wait()
    assert (exchange.mode, exchange.served_by, exchange.status) == ("degraded", "stub", 200)
    assert len(exchange.fingerprint or "") == 32
    assert exchange.response == body and exchange.usage is not None and exchange.error is not None
    assert [pending.exchange for pending in gateway.captured.pending] == [exchange.id]


def test_a_stream_that_never_began_comes_from_the_small_model(gateway: Rig) -> None:
    gateway.fake.then(NONSENSE)
    response, chunks = stream_of(gateway, stream_options={"include_usage": True})
    assert said(chunks) == SAYS and response.headers["x-brise-mode"] == "degraded"
    assert [chunk["brise"]["mode"] for chunk in chunks if "brise" in chunk] == ["degraded"] * 2
    assert chunks[-1]["brise"]["reason"] == "malformed" and chunks[-1]["usage"]["completion_tokens"] > 0
    assert gateway.captured.wait()[0].first_token_s is not None


def test_a_stream_without_content_so_far_goes_on_under_its_id(gateway: Rig) -> None:
    gateway.fake.then(events(chat_events(SAYS)[:1], ends=False))
    response, chunks = stream_of(gateway)
    assert response.headers["x-brise-mode"] == "hosted"  # it was, when they were sent
    assert said(chunks) == SAYS and {chunk["id"] for chunk in chunks} == {"chatcmpl-fake"}
    assert sum("role" in choice["delta"] for chunk in chunks for choice in chunk["choices"]) == 1
    assert "continued" not in chunks[-1]["brise"] and gateway.captured.wait()[0].mode == "degraded"


def test_a_stream_with_content_goes_on_behind_it_and_says_so(gateway: Rig) -> None:
    gateway.fake.then(events(chat_events(SAYS)[:3], ends=False))
    _, chunks = stream_of(gateway)
    assert said(chunks) == SAYS and {chunk["id"] for chunk in chunks} == {"chatcmpl-fake"}
    assert chunks[-1]["brise"] == {"mode": "degraded", "model": "stub", "reason": "cut", "continued": True}
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    exchange, = gateway.captured.wait()
    assert exchange.mode == "degraded" and exchange.usage is not None and exchange.response is not None
    assert exchange.response["choices"][0]["message"]["content"] == SAYS


def test_a_response_that_began_with_a_comment_alone_comes_from_the_small_model(gateway: Rig) -> None:
    gateway.fake.then(raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n: ping\n\n"))
    stream = gateway.live.post("/v1/responses", {"model": "big", "input": "a", "temperature": 0, "stream": True}).text
    assert stream.startswith(": ping\n\nevent: response.created\n") and "event: response.completed\n" in stream
    exchange, = gateway.captured.wait()
    assert exchange.mode == "degraded" and exchange.response is not None
    assert exchange.response["output"][0]["content"][0]["text"] == SAYS


@pytest.mark.parametrize("fields, sent", [
    ({}, chat_events("", [("add", '{"x": 1}')])[:3]),
    ({"n": 2}, [{**chunk, "choices": [{**chunk["choices"][0], "index": 1}]}  # type: ignore[index, dict-item]
                for chunk in chat_events(SAYS)[:3]])])
def test_what_nobody_can_go_on_with_ends_in_a_typed_error(gateway: Rig, fields: dict[str, object],
                                                          sent: list[object]) -> None:
    gateway.fake.then(events(sent, ends=False))
    response = gateway.live.post("/v1/chat/completions", {**BODY, "stream": True, **fields})
    last = [line for line in response.text.split("\n\n") if line][-1]
    assert last.startswith("event: error\ndata: ") and "[DONE]" not in response.text
    error = json.loads(last.partition("data: ")[2])["error"]
    assert error["type"] == "server_error" and error["code"] == "upstream_cut"
    assert "several choices" in error["message"] or "calls a function" in error["message"]
    exchange, = gateway.captured.wait()
    assert exchange.mode == "failed" and exchange.error is not None and not gateway.captured.pending


def test_the_client_hears_why_the_small_model_cannot_answer_either(gateway: Rig) -> None:
    gateway.fake.then(NONSENSE)
    response = gateway.live.post("/v1/chat/completions", {**BODY, "typical_p": 0.5})
    assert response.status_code == 502 and response.headers["x-brise-mode"] == "failed"
    assert "'typical_p' is not supported" in response.json()["error"]["message"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422])
def test_the_clients_own_mistakes_pass_unchanged(gateway: Rig, status: int) -> None:
    gateway.fake.then(refuse(status, "yours"))
    response = gateway.live.post("/v1/chat/completions", BODY)
    assert response.status_code == status and response.json()["error"]["message"] == "yours"
    assert gateway.captured.wait()[0].mode == "hosted" and not gateway.captured.pending


def test_embeddings_and_unknown_paths_have_no_stand_in(gateway: Rig) -> None:
    for path in ("/v1/embeddings", "/v1/audio/speech"):
        gateway.fake.then(NONSENSE)
        response = gateway.live.post(path, {"model": "big", "input": "a"})
        assert response.status_code == 502 and response.json()["error"]["code"] == "upstream_malformed"


def test_a_completion_and_a_response_have(gateway: Rig) -> None:
    gateway.fake.then(NONSENSE, NONSENSE, NONSENSE)
    wanted = {"model": "big", "prompt": "a", "max_tokens": 9, "temperature": 0}
    completion = gateway.live.post("/v1/completions", wanted)
    assert completion.json()["choices"][0]["text"] == SAYS[:9] and completion.json()["brise"]["mode"] == "degraded"
    response = gateway.live.post("/v1/responses", {"model": "big", "input": "a", "temperature": 0})
    assert response.json()["output"][0]["content"][0]["text"] == SAYS
    stream = gateway.live.post("/v1/responses", {"model": "big", "input": "a", "temperature": 0, "stream": True}).text
    assert "event: response.completed" in stream and '"brise":{"mode":"degraded"' in stream and "[DONE]" not in stream


def test_a_message_has(gateway: Rig) -> None:
    gateway.fake.then(NONSENSE, NONSENSE)
    wanted = {"model": "big", "max_tokens": 99999, "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}
    message = gateway.live.post("/v1/messages", wanted).json()
    assert message["content"][0]["text"] == SAYS and message["brise"]["mode"] == "degraded"
    stream = gateway.live.post("/v1/messages", {**wanted, "stream": True}).text
    assert stream.startswith("event: message_start") and '"brise":{"mode":"degraded"' in stream
    assert "event: message_stop" in stream and "[DONE]" not in stream


def test_a_client_that_leaves_ends_the_small_models_answer() -> None:
    steps, go_on = list[Batch](), threading.Event()

    def hold(batch: Batch) -> None:
        steps.append(batch)
        assert len(steps) < 4 or go_on.wait(LIMIT_S)

    with degrading(on_step=hold) as gateway:
        gateway.fake.then(NONSENSE)
        with gateway.live.client() as client:
            stream = client.chat.completions.create(model="big", stream=True, temperature=0,
                                                    messages=[{"role": "user", "content": "hi"}])
            next(stream)
            stream.close()
        exchange, = gateway.captured.wait()
        assert (exchange.mode, exchange.status) == ("degraded", 499)
        go_on.set()
        gateway.live.wait_idle()
        assert len(steps) < len(SAYS)


def test_silence_counts_as_an_outage() -> None:
    hold = Hold()
    with degrading(SHORT) as gateway:
        gateway.outwaits(hold)
        gateway.fake.then(hang(hold), hang(hold), chat(SAYS, hold=hold, hold_after=3))
        assert gateway.live.post("/v1/chat/completions", BODY).json()["brise"]["reason"] == "first_byte_timeout"
        assert said(stream_of(gateway)[1]) == SAYS
        _, chunks = stream_of(gateway)
        assert said(chunks) == SAYS and chunks[-1]["brise"]["reason"] == "stalled"
        hold.release()


def test_nobody_listens_any_more() -> None:
    with degrading() as gateway:
        gateway.fake.stop()
        assert gateway.live.post("/v1/chat/completions", BODY).json()["brise"]["reason"] == "refused"
        assert said(stream_of(gateway)[1]) == SAYS
        gateway.fake.start()
        assert gateway.live.post("/v1/chat/completions", BODY).headers["x-brise-mode"] == "hosted"
