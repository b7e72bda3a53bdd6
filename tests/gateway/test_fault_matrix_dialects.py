"""The fault matrix beside chats: legacy completions, responses, and chats that Anthropic's API answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from brise.dialects import sse
from brise.gateway.breaker import Breaker, BreakerSettings
from tests.engine.stub import stub_model
from tests.gateway.fake_answers import encode
from tests.gateway.fake_messages import message_events
from tests.gateway.fake_upstream import Behaviour, answer, events
from tests.gateway.rig import Rig, rig
from tests.gateway.test_fault_matrix import ERROR, GZIP, SAYS, in_gzip, sent, stand_in

Data = Sequence[object]
OWN = {"error": {"message": "no such field", "type": "invalid_request_error", "code": 400}}
ASKED: Mapping[str, Mapping[str, Any]] = {
    "/v1/completions": {"prompt": "hi", "max_tokens": 60}, "/v1/responses": {"input": "hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]}}
NOTHING: Sequence[tuple[str, Behaviour]] = (  # in place of an answer, with status 200
    ("error", answer(ERROR)), ("HTML", answer(b"<html></html>", headers={"content-type": "text/html"})),
    ("empty", answer(b"")), ("no JSON", answer(b"what?", 200, GZIP)), ("null", answer(b"null")), ("list", answer([])),
    ("no choices", answer({"choices": None, "output": None, "content": None})), ("detail", answer({"detail": "no"})),
    ("no event", events([])), ("error event", events([ERROR])), ("done", events(["[DONE]"])),
    ("vLLM's error", events([{"object": "error", "message": "stopped", "code": 500}, "[DONE]"])),
    ("no JSON event", events(["hold the line"])))


def breaker() -> Breaker:
    return Breaker(BreakerSettings(failures=1_000_000))


@pytest.fixture(scope="module")
def standing_in() -> Iterator[Rig]:
    with rig(model=stub_model(SAYS), breaker=breaker(), around=stand_in) as made:
        yield made


@pytest.fixture(scope="module")
def anthropic() -> Iterator[Rig]:
    with rig(model=stub_model(SAYS), breaker=breaker(), around=stand_in, is_anthropic=True) as made:
        yield made


def ask(made: Rig, path: str, behaviour: Behaviour, *, stream: bool) -> tuple[str, str | None]:
    """All the text that the client has, and the code of the error that ended it."""
    made.live.wait_idle()
    made.captured.clear()
    made.fake.then(behaviour)
    response = made.live.post(path, {"model": "big", "temperature": 0, "stream": stream, **ASKED[path]})
    if not response.headers["content-type"].startswith("text/event-stream"):
        return text_of(response.json()), None
    text, error, ids = "", None, set[object]()
    for event in sse.events(response.content):
        fields = event.fields or {}
        ids |= {fields["id"]} if "id" in fields else set()
        text += str(fields.get("delta") or "") if event.name == "response.output_text.delta" else "".join(
            str(choice.get("text") or (choice.get("delta") or {}).get("content") or "") for choice in fields.get(
                "choices", ()))
        error = fields.get("code") or fields["error"]["code"] if event.name == "error" else error
    assert len(ids) <= 1 and (error is not None or not event.is_readable or event.is_done or "response" in fields)
    return text, error


def text_of(body: Mapping[str, Any]) -> str:
    if "output" in body:
        return "".join(part["text"] for item in body["output"] for part in item.get("content", ()))
    return "".join(choice.get("text") or choice["message"]["content"] for choice in body["choices"])


def mode(made: Rig) -> str:
    exchange, = made.captured.wait()
    return exchange.mode


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("behaviour", [fault[1] for fault in NOTHING], ids=[fault[0] for fault in NOTHING])
def test_nothing_is_answered_by_the_small_model(standing_in: Rig, path: str, behaviour: Behaviour,
                                                stream: bool) -> None:
    assert ask(standing_in, path, behaviour, stream=stream) == (SAYS, None) and mode(standing_in) == "degraded"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("behaviour", [fault[1] for fault in NOTHING], ids=[fault[0] for fault in NOTHING])
def test_and_so_it_is_where_anthropics_api_answers(anthropic: Rig, behaviour: Behaviour, stream: bool) -> None:
    assert ask(anthropic, "/v1/chat/completions", behaviour, stream=stream) == (SAYS, None)
    assert mode(anthropic) == "degraded"


def piece(text: str, finish: str | None = None, **more: object) -> dict[str, Any]:
    return {"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": [
        {"index": 0, "text": text, "finish_reason": finish, **more}]}


BEGUN = [piece("one"), piece(" two")]
AFTER: Sequence[tuple[str, Behaviour]] = (
    ("ends", events(BEGUN)), ("reset", events(BEGUN, ends=False)), ("done", events([*BEGUN, "[DONE]"])),
    ("error", events([*BEGUN, ERROR])), ("finish reason", events([*BEGUN, piece("", "error"), "[DONE]"])),
    ("no JSON", events([*BEGUN, "hold the line"])), ("keep-alive", events([b"data:\n\n", *BEGUN, b": hi\n\n"])),
    ("BOM", events([b"\xef\xbb\xbf" + encode(BEGUN[0]), BEGUN[1]])), ("CR", events([
        encode(each).replace(b"\n", b"\r") for each in BEGUN])), ("no type", sent(*map(encode, BEGUN))),
    ("gzip", sent(*in_gzip(BEGUN), content_encoding="gzip")))


@pytest.mark.parametrize("behaviour", [fault[1] for fault in AFTER], ids=[fault[0] for fault in AFTER])
def test_a_completion_is_gone_on_with(standing_in: Rig, behaviour: Behaviour) -> None:
    assert ask(standing_in, "/v1/completions", behaviour, stream=True) == (SAYS, None)
    assert mode(standing_in) == "degraded"


RESPONSE = {"id": "r", "object": "response", "status": "in_progress", "output": []}
TOLD: Data = [
    {"type": "response.created", "response": RESPONSE},
    {"type": "response.output_item.added", "output_index": 0, "item": {"type": "message", "content": []}},
    {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "one"}]
FAILED = {"type": "response.failed", "response": {**RESPONSE, "status": "failed", "error": {
    "code": "server_error", "message": "it stopped"}}}


@pytest.mark.parametrize("end", [[], [FAILED], [ERROR], ["[DONE]"], ["hold the line"], [
    {"type": "response.cancelled", "response": {**RESPONSE, "status": "cancelled"}}]])
def test_a_response_that_has_begun_ends_with_an_error(standing_in: Rig, end: Data) -> None:
    named = [f"event: {each['type']}\n".encode() + encode(each) if isinstance(each, dict) and "type" in each else each
             for each in (*TOLD, *end)]
    text, error = ask(standing_in, "/v1/responses", events(named), stream=True)
    assert text == "one" and error is not None and error.startswith("upstream_")
    assert mode(standing_in) == "failed"


@pytest.mark.parametrize("end", [[], [{"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}],
                                 ["hold the line"]])
def test_a_message_that_has_begun_is_gone_on_with(anthropic: Rig, end: Data) -> None:
    begun = message_events("one two")[:-2]  # without what says that it ended
    assert ask(anthropic, "/v1/chat/completions", events([*begun, *end]), stream=True) == (SAYS, None)
    assert mode(anthropic) == "degraded"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_the_clients_own_error_passes_in_all_of_them(standing_in: Rig, path: str) -> None:
    for stream, behaviour in ((False, answer(OWN)), (True, events([OWN, "[DONE]"]))):
        standing_in.live.wait_idle()
        standing_in.captured.clear()
        standing_in.fake.then(behaviour)
        response = standing_in.live.post(path, {"model": "big", "stream": stream, **ASKED[path]})
        assert "no such field" in response.text and "degraded" not in response.text
        assert mode(standing_in) == "hosted"


def test_the_clients_own_error_passes_from_anthropics_api(anthropic: Rig) -> None:
    own = {"type": "error", "error": {"type": "invalid_request_error", "message": "no such field"}}
    for stream, behaviour in ((False, answer(own)), (True, events([b"event: error\n" + encode(own)]))):
        anthropic.live.wait_idle()
        anthropic.captured.clear()
        anthropic.fake.then(behaviour)
        response = anthropic.live.post("/v1/chat/completions", {"model": "big", "stream": stream, "messages": [
            {"role": "user", "content": "hi"}]})
        assert json.dumps("no such field") in response.text and "degraded" not in response.text
        assert mode(anthropic) == "hosted"
