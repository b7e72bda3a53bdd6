"""What a client sees when the large model fails and nobody else is there to answer."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import openai
import pytest

from brise.gateway.breaker import Breaker, BreakerSettings
from brise.gateway.failure import FailureKind
from brise.gateway.large_model import LargeModel
from brise.gateway.retry import Retries, RetrySettings
from brise.gateway.upstream import Limits, Upstream, UpstreamSettings
from brise.gateway.upstreams import Upstreams
from tests.gateway.fake_answers import chat_body, chat_events, encode
from tests.gateway.fake_upstream import Behaviour, Hold, Peer, answer, chat, cut, events, hang, raw, refuse
from tests.gateway.rig import SHORT, SHORT_S, Rig, rig
from tests.gateway.test_breaker import Clock

HI: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
BODY = {"model": "big", "messages": HI}
STREAM = {**BODY, "stream": True}


class Waits:
    """Takes the place of sleeping."""

    def __init__(self) -> None:
        self.waited_s: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.waited_s.append(seconds)


@pytest.fixture(scope="module")
def once() -> Iterator[Rig]:
    """Nothing is sent twice, and the breaker stays closed."""
    with rig(breaker=Breaker(BreakerSettings(failures=1000))) as made:
        yield made


@pytest.fixture(scope="module")
def hasty() -> Iterator[Rig]:
    """The same, and it waits for next to no time until an answer begins."""
    with rig(SHORT, breaker=Breaker(BreakerSettings(failures=1000))) as made:
        yield made


def ask(made: Rig, body: object = BODY) -> httpx.Response:
    return made.live.post("/v1/chat/completions", body)


def kind_of(answer: httpx.Response) -> str:
    error = answer.json()["error"]
    assert answer.headers["x-brise-mode"] == "failed" and error["type"] == "server_error"
    return f"{answer.status_code} {error['code']}"


@pytest.mark.parametrize(("behaviour", "seen"), [
    (cut(chat("hello"), 0), "502 upstream_cut"), (cut(chat("hello"), 0, reset=True), "502 upstream_cut"),
    (cut(chat("hello"), 30), "502 upstream_cut"), (cut(chat("hello"), 200), "502 upstream_cut"),
    (raw(b"220 smtp.example ESMTP\r\n\r\n"), "502 upstream_malformed")])
@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
def test_an_answer_that_breaks_before_it_begins(once: Rig, behaviour: Behaviour, seen: str, body: object) -> None:
    if body is STREAM and seen == "502 upstream_cut":
        behaviour = cut(chat("hello"), 0)  # the head of a stream leaves with its first event, or not at all
    once.fake.then(behaviour)
    assert kind_of(ask(once, body)) == seen


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
def test_a_server_that_takes_the_request_and_says_nothing(hasty: Rig, body: object) -> None:
    hold = Hold()
    hasty.outwaits(hold)
    hasty.fake.then(hang(hold))
    assert kind_of(ask(hasty, body)) == "504 upstream_first_byte_timeout"
    hold.release()


def test_a_stream_that_has_a_head_and_no_body(hasty: Rig) -> None:
    hold = Hold()
    hasty.outwaits(hold)
    hasty.fake.then(events(chat_events("hello"), hold=hold, hold_after=0))
    assert kind_of(ask(hasty, STREAM)) == "504 upstream_first_byte_timeout"
    hold.release()


@pytest.mark.parametrize(("behaviour", "kind"), [
    (cut(chat("one two three"), 700), "cut"), (events(chat_events("one two three")[:3], ends=False), "cut"),
    (events(chat_events("one two three")[:3]), "cut")], ids=["bytes", "reset", "ended too soon"])
def test_a_stream_that_breaks_ends_with_an_error_event(once: Rig, behaviour: Behaviour, kind: FailureKind) -> None:
    once.fake.then(behaviour)
    lines = [line for line in ask(once, STREAM).text.split("\n\n") if line]
    name, data = lines[-1].split("\n")
    assert name == "event: error" and json.loads(data.removeprefix("data: "))["error"]["code"] == f"upstream_{kind}"
    assert all(json.loads(line.removeprefix("data: "))["id"] == "chatcmpl-fake" for line in lines[:-1])


def test_the_official_client_raises_where_a_stream_breaks(once: Rig) -> None:
    once.fake.then(cut(chat("one two three"), 900))
    with once.live.client() as client, pytest.raises(openai.APIError, match="did not answer"):
        list(client.chat.completions.create(model="big", messages=HI, stream=True))


def test_a_stream_that_drips_for_ever_ends_with_an_error_event() -> None:
    async def drip(peer: Peer) -> None:
        await peer.start(200, {"content-type": "text/event-stream"})
        for number, event in enumerate(itertools.chain(chat_events("one")[:2], itertools.repeat(b": still here\n\n"))):
            await peer.send(encode(event))
            if number == 2:
                made.live.pass_time(SHORT_S + 2)
            await asyncio.sleep(0)

    with rig(Limits(between_s=60.0, total_s=SHORT_S)) as made:
        made.fake.then(drip)
        text = ask(made, STREAM).text
        assert "one" in text and "upstream_stalled" in text and "not complete after 10 s" in text
        assert "[DONE]" not in text and made.captured.wait()[0].mode == "failed"


def test_a_stream_that_stalls_ends_with_an_error_event() -> None:
    hold = Hold()
    with rig(Limits(between_s=SHORT_S)) as made:
        made.outwaits(hold)
        made.fake.then(chat("one two three", hold=hold, hold_after=2))
        text = ask(made, STREAM).text
        assert "one" in text and "upstream_stalled" in text and "[DONE]" not in text
        hold.release()


def test_a_stream_of_no_events_is_malformed(once: Rig) -> None:
    once.fake.then(events([]))
    assert kind_of(ask(once, STREAM)) == "502 upstream_malformed"


def test_a_server_that_is_not_there() -> None:
    with rig() as made:
        made.fake.stop()
        assert kind_of(ask(made)) == "502 upstream_refused"
        made.fake.start()
        assert ask(made).status_code == 200


def test_a_machine_that_does_not_answer_at_all() -> None:
    with rig() as made, black_hole() as port:
        made.live.serving.gateway.large.close()  # type: ignore[union-attr]
        lost = Upstream(UpstreamSettings(f"http://127.0.0.1:{port}/v1", limits=Limits(connect_s=0.5)))
        made.live.serving.gateway.large = Upstreams.only(  # type: ignore[union-attr]
            LargeModel(lost, retries=Retries(RetrySettings(0))))
        assert kind_of(ask(made)) == "504 upstream_connect_timeout"


def test_a_refusal_comes_back_as_it_is_when_it_is_not_repeated(once: Rig) -> None:
    once.fake.then(refuse(429, "slow down", {"Retry-After": "30", "x-ratelimit-remaining": "0"}))
    answer = ask(once)
    assert answer.status_code == 429 and answer.json()["error"]["message"] == "slow down"
    assert answer.headers["retry-after"] == "30" and answer.headers["x-ratelimit-remaining"] == "0"
    assert answer.headers["x-brise-mode"] == "failed"


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
def test_a_busy_server_is_asked_again_as_it_says(body: object) -> None:
    waits = Waits()
    with rig(retries=Retries(RetrySettings(2)), wait=waits) as made:
        made.fake.then(refuse(429, headers={"retry-after": "2"}), cut(chat("hello"), 0), chat("hello"))
        answer = ask(made, body)
        assert answer.status_code == 200 and answer.headers["x-brise-mode"] == "hosted" and "hello" in answer.text
        assert waits.waited_s[0] == 2.0 and len(made.fake.received) == 3
        assert [exchange.mode for exchange in made.captured.wait()] == ["hosted"]


def test_an_idle_connection_that_the_server_ended_costs_no_attempt() -> None:
    with rig() as made:
        assert ask(made).status_code == 200
        made.fake.then(cut(chat("hello"), 0), chat("hello"))
        assert ask(made).status_code == 200
        assert len(made.fake.received) == 3


def test_after_failures_in_a_row_nothing_is_sent_until_a_probe_finds_the_server_well() -> None:
    clock = Clock()
    with rig(breaker=Breaker(BreakerSettings(failures=2, pause_s=5), clock)) as made:
        made.fake.then(refuse(500), refuse(503))
        assert [ask(made).status_code for _ in range(3)] == [500, 503, 503]
        refused = ask(made)
        assert refused.json()["error"]["code"] == "upstream_open" and refused.headers["retry-after"] == "5"
        assert len(made.fake.received) == 2
        clock.now_s = 5.0
        assert [ask(made).status_code for _ in range(2)] == [200, 200]


def test_a_limit_of_one_clients_key_opens_no_breaker() -> None:
    with rig(breaker=Breaker(BreakerSettings(failures=2))) as made:
        made.fake.then(*[refuse(429)] * 4)
        assert [ask(made).status_code for _ in range(5)] == [429, 429, 429, 429, 200]


def test_a_slow_request_is_sent_twice_and_the_loser_is_ended() -> None:
    hold = Hold()
    with rig(hedge_after_s=0.05) as made:
        made.fake.then(chat("slow", hold=hold), chat("fast"))
        assert ask(made).json() == chat_body("fast")
        made.live.wait_idle()
        assert len(made.fake.received) == 2
        hold.release()


def test_bytes_that_are_cut_leave_the_client_with_a_broken_answer(once: Rig) -> None:
    once.fake.then(cut(answer(b"\x00" * 5000, headers={"content-type": "audio/mpeg"}), 3000))
    with pytest.raises(httpx.RemoteProtocolError):
        once.live.post("/v1/audio/speech", BODY)


@contextmanager
def black_hole() -> Iterator[int]:
    """A port whose queue of connections is full: Linux then drops what comes, as a firewall does."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        filling = [socket.socket() for _ in range(3)]
        for each in filling:
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        try:
            yield listener.getsockname()[1]
        finally:
            for each in filling:
                each.close()
