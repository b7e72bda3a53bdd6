"""What a client of the gateway gets is what the large model sent."""

from __future__ import annotations

import json

import openai
import pytest

from tests.gateway.fake_answers import FINGERPRINT, MODEL, chat_body
from tests.gateway.fake_upstream import Hold, chat, refuse
from tests.gateway.rig import Rig
from tests.waiting import LIMIT_S

HI: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
BODY = {"model": "big", "messages": HI}


def test_an_answer_comes_back_byte_for_byte(made: Rig) -> None:
    answer = made.live.post("/v1/chat/completions", BODY)
    assert answer.content == json.dumps(chat_body("hello")).encode()
    assert answer.headers["x-brise-mode"] == "hosted" and answer.headers["x-brise-model"] == "big"


def test_a_request_goes_on_byte_for_byte(made: Rig) -> None:
    body = b'{"model":"big",  "messages":[{"role":"user","content":"hi"}], "unheard_of": 1}'
    made.live.post("/v1/chat/completions?a=%20b", content=body, headers={
        "content-type": "application/json", "authorization": "Bearer secret", "openai-organization": "o",
        "x-brise-task": "greet"})
    received, = made.fake.received
    assert (received.method, received.target, received.body) == ("POST", "/v1/chat/completions?a=%20b", body)
    assert received.header("authorization") == "Bearer secret" and received.header("openai-organization") == "o"
    assert not [name for name, _ in received.headers if name.startswith("x-brise")]
    assert made.captured.wait()[0].task == "greet"


def test_a_stream_reaches_the_client_as_it_comes(made: Rig) -> None:
    hold = Hold()
    made.fake.then(chat("one two three", hold=hold, hold_after=2))
    with made.live.client() as client:
        stream = client.chat.completions.create(model="big", messages=HI, stream=True)
        first = [next(stream).choices[0].delta.content for _ in range(2)]
        assert first == ["", "one"] and hold.reached.wait(LIMIT_S)
        hold.release()
        rest = [chunk.choices[0].delta.content for chunk in stream]
    assert rest == [" two", " three", None]
    exchange = made.captured.wait()[0]
    assert (exchange.mode, exchange.status, exchange.served_by, exchange.streamed) == ("hosted", 200, MODEL, True)
    assert exchange.first_token_s is not None and 0 < exchange.first_token_s < exchange.total_s


def test_an_error_comes_back_as_it_is(made: Rig) -> None:
    made.fake.then(refuse(400, "no such field", {"x-request-id": "req_theirs"}))
    with made.live.client() as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="big", messages=HI)
    assert caught.value.request_id == "req_theirs" and caught.value.code == "fake"
    exchange = made.captured.wait()[0]
    assert (exchange.mode, exchange.status, exchange.error) == ("hosted", 400, "no such field")


def test_what_is_served_here_is_answered_here(made: Rig) -> None:
    answer = made.live.chat()
    assert answer.json()["model"] == "stub" and "x-brise-mode" not in answer.headers
    assert not made.fake.received


def test_a_client_that_leaves_ends_the_request_upstream(made: Rig) -> None:
    hold = Hold()
    made.fake.then(chat("one two three", hold=hold, hold_after=2))
    with made.live.client() as client:
        stream = client.chat.completions.create(model="big", messages=HI, stream=True)
        next(stream)
        stream.close()
    exchange = made.captured.wait()[0]
    assert exchange.status == 499
    made.live.wait_idle()


def test_the_row_holds_the_request_the_answer_and_the_counts(made: Rig) -> None:
    made.live.post("/v1/chat/completions", BODY, headers={
        "x-brise-subject": "ann", "x-brise-label-route": "caf%C3%A9", "x-brise-conversation": "c1"})
    exchange = made.captured.wait()[0]
    assert exchange.request == BODY and exchange.response == chat_body("hello")
    assert exchange.usage is not None and exchange.usage.prompt_tokens == 10 and exchange.usage.cached_tokens == 4
    assert (exchange.subject, exchange.conversation, exchange.labels) == ("ann", "c1", {"route": "café"})
    assert exchange.fingerprint == FINGERPRINT and exchange.task == "big"


def test_capture_off_leaves_no_row(made: Rig) -> None:
    made.live.post("/v1/chat/completions", BODY, headers={"x-brise-capture": "off"})
    made.live.post("/v1/chat/completions", BODY)
    assert len(made.captured.wait()) == 1


def test_a_name_too_long_for_an_index_is_kept_cut(made: Rig) -> None:
    made.live.post("/v1/chat/completions", {**BODY, "model": "m" * 100_000})
    exchange, = made.captured.wait()
    assert exchange.model == exchange.task == "m" * 256
    assert exchange.request is not None and len(exchange.request["model"]) == 100_000
