"""Every fault of the large model, streaming and not: the client has the whole answer once, or a typed error.

Here somebody stands in; test_faults.py has the faults where nobody does.
"""

from __future__ import annotations

import gzip
import json
import random
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from brise.dialects.answers import text_of
from brise.gateway.breaker import Breaker, BreakerSettings
from brise.gateway.fallback import SmallModelFallback
from brise.gateway.gateway import Components
from brise.gateway.retry import Retries, RetrySettings
from brise.gateway.small_models import TaskModels
from brise.traffic.records import Mode
from tests.engine.stub import stub_model
from tests.gateway.fake_answers import chat_body, chat_events, encode
from tests.gateway.fake_upstream import Behaviour, Hold, Peer, answer, chat, cut, events, hang, raw, refuse
from tests.gateway.rig import SHORT, Rig, rig
from tests.gateway.test_breaker import Clock
from tests.waiting import LIMIT_S

SAYS = "one two three four five"
BODY: dict[str, Any] = {"model": "big", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
STREAM = chat_events(SAYS)
FOREVER = Hold()  # never released while a test looks


@dataclass(frozen=True)
class Got:
    """What a client has: all the text, and the error that ended it."""

    text: str
    error: str | None
    mode: str  # of the header
    label: Any


@pytest.fixture(scope="module")
def standing_in() -> Iterator[Rig]:
    """Nothing is sent twice, the breaker stays closed, and the small model says what the large one says."""
    breaker = Breaker(BreakerSettings(failures=1_000_000))
    with rig(SHORT, model=stub_model(SAYS), breaker=breaker, around=stand_in) as made:
        made.outwaits(FOREVER)
        yield made
        FOREVER.release()


@pytest.fixture
def gateway(standing_in: Rig) -> Rig:
    standing_in.live.wait_idle()
    standing_in.captured.clear()
    return standing_in


def stand_in(local: Any, large: Any, captured: Any) -> Components:
    return Components(fallback=SmallModelFallback(local, TaskModels("stub")))


def ask(gateway: Rig, *, stream: bool, **fields: object) -> Got:
    return read(gateway.live.post("/v1/chat/completions", {**BODY, "stream": stream, **fields}))


def read(response: httpx.Response) -> Got:
    mode = response.headers["x-brise-mode"]
    if response.headers["content-type"].startswith("text/event-stream"):
        return read_stream(response, mode)
    body = response.json()
    if "error" in body:
        return Got("", body["error"]["code"], mode, None)
    return Got(body["choices"][0]["message"]["content"], None, mode, body.get("brise"))


def read_stream(response: httpx.Response, mode: str) -> Got:
    """Strictly: each event is JSON under one id, and the stream ends with [DONE] or with an error, not with both."""
    text, ids, roles, label = "", set[str](), 0, None
    *lines, last = [line for line in response.text.removeprefix("\ufeff").split("\n\n")
                    if line and not line.startswith(":") and not line.rstrip().endswith("data:")]
    for line in lines if last == "data: [DONE]" or last.startswith("event: error") else [*lines, last]:
        chunk = json.loads(line.removeprefix("data: "))
        ids.add(chunk["id"])
        label = chunk.get("brise", label)
        for choice in chunk["choices"]:
            text += text_of(choice["delta"].get("content"))
            roles += "role" in choice["delta"]
    assert len(ids) <= 1 and roles <= 1
    if last == "data: [DONE]":
        return Got(text, None, mode, label)
    assert last.startswith("event: error\ndata: "), last
    return Got(text, json.loads(last.partition("data: ")[2])["error"]["code"], mode, label)


GZIP = {"content-type": "application/json", "content-encoding": "gzip"}
ERROR = {"error": {"message": "Provider returned error", "code": 502}}


def finished(reason: object, text: str = "half an") -> dict[str, Any]:
    """A whole answer that ended like this."""
    body = chat_body(text)
    body["choices"][0]["finish_reason"] = reason
    return body


def sent(*data: bytes, **headers: str) -> Behaviour:
    """A stream in these bytes, whatever the headers say of it."""
    async def behave(peer: Peer) -> None:
        await peer.start(200, {name.replace("_", "-"): value for name, value in headers.items()})
        for each in data:
            await peer.send(each)
        await peer.end()
    return behave


def said(content: object) -> dict[str, Any]:
    """A chunk of content."""
    return {**STREAM[1], "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None}]}


def ended(reason: str, **more: object) -> dict[str, Any]:
    """A last chunk."""
    return {**STREAM[1], "choices": [{"index": 0, "delta": {}, "finish_reason": reason, **more}]}


def in_gzip(data: Sequence[object]) -> Sequence[bytes]:
    """Each event flushed, as servers of streams do it."""
    packed = zlib.compressobj(wbits=31)
    return [packed.compress(encode(each)) + packed.flush(zlib.Z_SYNC_FLUSH) for each in data]


def broken(text: str) -> Behaviour:
    """A stream whose second event of content is no JSON."""
    return events([*STREAM[:2], text, *STREAM[3:]])


FAULTS: Sequence[tuple[str, Behaviour, str]] = (
    ("black hole", hang(FOREVER), "first_byte_timeout"),
    ("no first byte", chat(SAYS, hold=FOREVER, hold_after=0), "first_byte_timeout"),
    ("half-open after the role", chat(SAYS, hold=FOREVER, hold_after=1), "stalled"),
    ("half-open after two words", chat(SAYS, hold=FOREVER, hold_after=3), "stalled"),
    ("no HTTP", raw(b"220 smtp.example\r\n\r\n"), "malformed"),
    ("429", refuse(429, headers={"retry-after": "9"}), "status"),
    *((str(status), refuse(status), "status") for status in (408, 500, 502, 503, 504, 529)),
    ("500 in HTML", answer(b"<html>Bad Gateway</html>", 502, {"content-type": "text/html"}), "status"),
    # With status 200, and in one piece, whatever was asked for.
    ("error in 200", answer(ERROR), "error_event"),
    ("rate limit in 200", answer({"error": {"code": 429}}), "error_event"),
    ("error in 200, as text", answer(ERROR, headers={"content-type": "text/plain"}), "error_event"),
    ("error in 200, as a stream", answer(ERROR, headers={"content-type": "text/event-stream"}), "error_event"),
    ("error in 200, gzip", answer(gzip.compress(json.dumps(ERROR).encode()), 200, GZIP), "error_event"),
    ("HTML in 200", answer(b"<html>502 Bad Gateway</html>", headers={"content-type": "text/html"}), "malformed"),
    ("HTML in 200, as JSON", answer(b"<html>502</html>", headers={"content-type": "application/json"}), "malformed"),
    ("empty 200", answer(b"", headers={"content-type": "application/json"}), "malformed"),
    ("no gzip", answer(b"what?", 200, GZIP), "malformed"),
    *((f"choices {some}", answer({"id": "c", "choices": some}), "malformed") for some in (None, [], [None], {})),
    ("no message", answer({"choices": [{"index": 0, "finish_reason": "stop"}]}), "malformed"),
    ("finish reason error", answer(finished("error")), "error_event"), ("cut whole", answer(finished(None, "")), "cut"),
    ("detail in 200", answer({"detail": "Internal Server Error"}), "error_event"))
STREAM_FAULTS: Sequence[tuple[str, Behaviour, str]] = (
    ("no event", events([]), "malformed"), ("ends too soon", events(STREAM[:4]), "cut"),
    ("reset", events(STREAM[:4], ends=False), "cut"), ("half an event", broken('{"id": "chatcmpl-fa'), "malformed"),
    ("no JSON", broken("busy, please hold the line"), "malformed"), ("an array", broken("[1, 2]"), "malformed"),
    ("error first", events([{"error": {"message": "overloaded", "type": "server_error"}}]), "error_event"),
    ("error later", events([*STREAM[:3], {"error": {"message": "oh", "type": "overloaded_error"}}]), "error_event"),
    ("not chunked", raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + encode(STREAM[0])
                        + encode(STREAM[1])[:40]), "cut"),
    # A failure that the stream itself reports, or an end that is none. What was said stays said.
    ("vLLM's error", events([*STREAM[:3], {"object": "error", "message": "stopped", "code": 500}, "[DONE]"]),
     "error_event"), ("rate limit later", events([*STREAM[:3], {"error": {"code": "429"}}]), "error_event"),
    ("FastAPI's error", events([*STREAM[:3], {"detail": "Internal Server Error"}, "[DONE]"]), "error_event"),
    ("finish reason error", events([*STREAM[:3], ended("error"), "[DONE]"]), "error_event"),
    ("error in a choice", events([*STREAM[:3], ended("error", error={"code": 502, "message": "lost"})]), "error_event"),
    ("done too soon", events([*STREAM[:4], "[DONE]"]), "cut"), ("done at once", events(["[DONE]"]), "cut"),
    # Streams that are hard to read, and are cut: what cannot be read cannot be gone on from.
    ("a byte order mark", events([b"\xef\xbb\xbf" + encode(STREAM[1]), STREAM[2]]), "cut"),
    ("parts", events([said([{"type": "text", "text": "one"}]), said([{"type": "text", "text": " two"}])]), "cut"),
    ("thoughts and parts", events([said([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]),
                                   said([{"type": "text", "text": "one"}])]), "cut"),
    ("empty events", events([b"data:\n\n", STREAM[1], b"event: ping\ndata: \n\n", b": hi\n\n", STREAM[2]]), "cut"),
    ("no type", sent(*map(encode, STREAM[:3])), "cut"),
    ("a wrong type", sent(*map(encode, STREAM[:3]), content_type="application/json"), "cut"),
    ("gzip", sent(*in_gzip(STREAM[:3]), content_type="text/event-stream", content_encoding="gzip"), "cut"),
    ("gzip, no type", sent(*in_gzip(STREAM[:3]), content_encoding="gzip"), "cut"),
    ("gzip that breaks", sent(*in_gzip(STREAM[:3]), b"what?" * 99, content_type="text/event-stream",
                              content_encoding="deflate"), "malformed"),
    ("wrong chunk size", raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                             b"zz\r\n" + encode(STREAM[0])), "malformed"))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("behaviour", "reason"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_every_fault_is_answered(gateway: Rig, behaviour: Behaviour, reason: str, stream: bool) -> None:
    gateway.fake.then(behaviour)
    got = ask(gateway, stream=stream)
    assert (got.text, got.error) == (SAYS, None)
    assert got.label["mode"] == "degraded" and (stream or got.label["reason"] in (reason, "first_byte_timeout"))
    check_row(gateway, "degraded")


@pytest.mark.parametrize(("behaviour", "reason"), [fault[1:] for fault in STREAM_FAULTS],
                         ids=[fault[0] for fault in STREAM_FAULTS])
def test_every_fault_of_a_stream_is_gone_on_from(gateway: Rig, behaviour: Behaviour, reason: str) -> None:
    gateway.fake.then(behaviour)
    got = ask(gateway, stream=True)
    assert (got.text, got.error, got.label["reason"]) == (SAYS, None, reason)
    check_row(gateway, "degraded")


def check_row(gateway: Rig, mode: Mode) -> None:
    exchange, = gateway.captured.wait()
    assert exchange.mode == mode and exchange.error is not None and exchange.response is not None
    assert text_of(exchange.response["choices"][0]["message"]["content"]) == SAYS
    assert [pending.exchange for pending in gateway.captured.pending] == [exchange.id]


SMALL_EVENTS = [{"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]} for delta, finish in (
    ({"role": "assistant", "content": ""}, None), ({"content": "one"}, None), ({"content": " two"}, None),
    ({"content": " three four five"}, None), ({}, "stop"))]


async def cut_as_asked(peer: Peer) -> None:
    """The request says after how many bytes, and how."""
    wanted = peer.received.json["metadata"]
    whole = events([*SMALL_EVENTS, "[DONE]"]) if peer.received.json["stream"] else answer(chat_body(SAYS))
    await cut(whole, int(wanted["bytes"]), reset=wanted["how"] == "reset")(peer)


@pytest.mark.slow
@pytest.mark.parametrize(("stream", "how", "places"), [
    (True, "end", [*range(0, 100, 9), *range(100, 560)]), (True, "reset", range(0, 560, 13)),
    (False, "end", range(0, 500, 13)), (False, "reset", range(0, 500, 29))],
    ids=["stream", "stream reset", "whole", "whole reset"])
def test_cut_after_any_number_of_bytes(gateway: Rig, pytestconfig: pytest.Config, stream: bool, how: str,
                                       places: Sequence[int]) -> None:
    if not pytestconfig.getoption("slow"):
        places = places[::3]
    gateway.fake.default = cut_as_asked
    url = f"{gateway.live.url}/v1/chat/completions"
    try:
        with httpx.Client(trust_env=False, timeout=30) as client:
            bodies = [{**BODY, "stream": stream, "metadata": {"bytes": str(place), "how": how}} for place in places]
            all_got = [read(client.post(url, json=body)) for body in bodies]
    finally:
        gateway.fake.default = chat(SAYS)
    assert {(got.text, got.error) for got in all_got} == {(SAYS, None)}
    rows = gateway.captured.wait(len(places))
    assert {row.mode for row in rows} <= {"degraded", "hosted"} and len({row.id for row in rows}) == len(places)
    assert len(gateway.captured.pending) == sum(row.mode == "degraded" for row in rows) > len(places) // 2


def test_a_storm_of_429_is_asked_again_as_it_says_and_then_answered_here() -> None:
    waited: list[float] = []

    async def wait(seconds: float) -> None:
        waited.append(seconds)

    with rig(SHORT, model=stub_model(SAYS), retries=Retries(RetrySettings(2)), wait=wait, around=stand_in) as made:
        made.fake.default = refuse(429, headers={"retry-after": "3"})
        for stream in (False, True) * 10:
            assert ask(made, stream=stream).text == SAYS
        assert waited and set(waited) == {3.0} and {row.mode for row in made.captured.wait(20)} == {"degraded"}
        assert len(made.fake.received) == 20 + len(waited) < 60  # the budget of retries ends


def test_while_the_breaker_is_open_nobody_waits_for_the_hosted_model() -> None:
    clock = Clock()
    breaker = Breaker(BreakerSettings(failures=2, pause_s=5.0), clock)
    with rig(SHORT, model=stub_model(SAYS), breaker=breaker, around=stand_in) as made:
        made.fake.default = refuse(503)
        labels = [ask(made, stream=False).label["reason"] for _ in range(4)]
        assert labels == ["status", "status", "open", "open"] and len(made.fake.received) == 2
        made.fake.default = chat(SAYS)
        clock.now_s += 5.1
        assert [ask(made, stream=True).mode for _ in range(2)] == ["hosted", "hosted"]


def test_the_machines_clock_may_jump(gateway: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    real, jumps = time.time, random.Random(1)
    monkeypatch.setattr(time, "time", lambda: real() + jumps.uniform(-1e8, 1e8))
    for stream in (False, True):
        assert ask(gateway, stream=stream, messages=BODY["messages"]).mode == "hosted"
        gateway.fake.then(chat(SAYS, hold=FOREVER, hold_after=3))
        assert ask(gateway, stream=stream).text == SAYS
    monkeypatch.undo()
    rows = gateway.captured.wait(4)
    assert [row.mode for row in rows] == ["hosted", "degraded"] * 2 and all(0 <= row.total_s < LIMIT_S for row in rows)


def test_a_hosted_model_that_comes_and_goes_is_never_missed() -> None:
    with rig(SHORT, model=stub_model(SAYS), around=stand_in) as made:
        made.fake.default = chat(SAYS)
        modes = []
        for is_up in (True, False, True, False):
            (made.fake.start if is_up and modes else made.fake.stop if not is_up else lambda: None)()
            with suppress(httpx.HTTPError):
                modes += [ask(made, stream=stream).mode for stream in (False, True)]
        assert modes == ["hosted"] * 2 + ["degraded"] * 2 + ["hosted"] * 2 + ["degraded"] * 2
        made.fake.start()
