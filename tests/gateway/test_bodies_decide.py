"""The body decides whether there was an answer; without a fallback the client has what came, and the row says what."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import brotli
import httpx
import pytest

from brise.gateway.breaker import Breaker, BreakerSettings
from tests.engine.stub import stub_model
from tests.gateway.fake_answers import chat_body, encode
from tests.gateway.fake_upstream import Behaviour, Hold, Peer, answer, events, raw
from tests.gateway.rig import Rig, rig
from tests.gateway.test_fault_matrix import ERROR, STREAM, ended, finished, in_gzip, said, sent, stand_in

BODY: dict[str, Any] = {"model": "big", "messages": [{"role": "user", "content": "hi"}]}
DONE = "[DONE]"
OWN = {"error": {"message": "more tokens than the context", "type": "BadRequestError", "code": 400}}


@pytest.fixture(scope="module")
def alone() -> Iterator[Rig]:
    with rig(breaker=Breaker(BreakerSettings(failures=1_000_000))) as made:
        yield made


@pytest.fixture(scope="module")
def standing_in() -> Iterator[Rig]:
    with rig(model=stub_model("small"), breaker=Breaker(BreakerSettings(failures=1_000_000)), around=stand_in) as made:
        yield made


def ask(made: Rig, behaviour: Behaviour, path: str = "/v1/chat/completions", **fields: object) -> bytes:
    """The bytes that the client gets, as they come over the wire."""
    made.live.wait_idle()
    made.captured.clear()
    made.fake.then(behaviour)
    with httpx.Client(trust_env=False, timeout=30) as client, client.stream(
            "POST", made.live.url + path, json={**BODY, **fields}) as response:
        return b"".join(response.iter_raw())


def row(made: Rig) -> tuple[str, int, str | None]:
    exchange, = made.captured.wait()
    return exchange.mode, exchange.status, exchange.error


def counted(made: Rig) -> int:
    """How many failures of the upstream there were."""
    large = made.live.serving.gateway.large.each[""]  # type: ignore[union-attr]
    return sum(large.failures.values())


@pytest.mark.parametrize(("body", "why"), [
    (json.dumps(ERROR).encode(), "error_event: Provider returned error"), (b"<html>502</html>", "no JSON object"),
    (b"", "the body is empty"), (b'{"choices": null}', "no choices"), (b'{"choices": []}', "no choices"),
    (json.dumps(finished("error")).encode(), "the reason 'error'"), (json.dumps(finished(None, "")).encode(), "cut: ")])
def test_without_a_fallback_the_client_has_what_came(alone: Rig, body: bytes, why: str) -> None:
    before = counted(alone)
    assert ask(alone, answer(body, headers={"content-type": "application/json"})) == body
    mode, status, error = row(alone)
    assert (mode, status) == ("failed", 200) and error is not None and why in error
    assert counted(alone) == before + 1


@pytest.mark.parametrize(("data", "why"), [
    ([*STREAM[:3], ERROR, DONE], "Provider returned error"),
    ([*STREAM[:3], ended("error"), DONE], "the reason 'error'"),
    ([*STREAM[:3], {"detail": "Internal Server Error"}, DONE], "Internal Server Error"),
    ([DONE], "ended before its answer did"), (["hold the line", DONE], "no JSON object")])
def test_and_so_it_has_of_a_stream(alone: Rig, data: Sequence[object], why: str) -> None:
    before = counted(alone)
    assert ask(alone, events(data), stream=True) == b"".join(map(encode, data))
    mode, status, error = row(alone)
    assert (mode, status) == ("failed", 200) and error is not None and why in error
    assert counted(alone) == before + 1


@pytest.mark.parametrize(("data", "why"), [
    ([*STREAM[:3], DONE], "ended before its answer did"),
    ([*STREAM[:3], "hold the line", *STREAM[3:]], "no JSON object")])
def test_an_answer_of_a_server_with_odd_habits_is_no_outage_and_no_evidence(alone: Rig, data: Sequence[object],
                                                                            why: str) -> None:
    before = counted(alone)
    assert ask(alone, events(data), stream=True) == b"".join(map(encode, data))
    mode, status, error = row(alone)
    assert (mode, status) == ("hosted", 200) and error is not None and why in error and counted(alone) == before


@pytest.mark.parametrize("who", ["alone", "standing_in"])
def test_a_whole_answer_without_a_reason_for_its_end_is_passed_on(request: pytest.FixtureRequest, who: str) -> None:
    made: Rig = request.getfixturevalue(who)
    before, body = counted(made), finished(None)
    assert ask(made, answer(body)) == json.dumps(body).encode()
    mode, _, error = row(made)
    assert mode == "hosted" and error == "it ended without a finish reason" and counted(made) == before


@pytest.mark.parametrize("error", [
    OWN, {"error": {"message": "m", "code": "context_length_exceeded"}}, {"error": {"type": "request_too_large"}},
    {"error": {"message": "m", "type": "invalid_request_error"}}, {"error": {"message": "m", "code": "404"}}])
@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
def test_the_clients_own_error_is_no_outage(standing_in: Rig, error: Mapping[str, Any], streams: bool) -> None:
    behaviour = events([error, DONE]) if streams else answer(error)
    expected = encode(error) + encode(DONE) if streams else json.dumps(error).encode()
    before = counted(standing_in)
    assert ask(standing_in, behaviour, stream=streams) == expected
    mode, status, why = row(standing_in)
    assert (mode, status) == ("hosted", 200) and why is not None
    assert counted(standing_in) == before


KEEP_ALIVES = [b"data:\n\n", STREAM[0], b"data: \n\n", b"event: ping\ndata:\n\n", b": still here\n\n", b"\n",
               *STREAM[1:]]


@pytest.mark.parametrize("who", ["alone", "standing_in"])
def test_a_keep_alive_says_nothing(request: pytest.FixtureRequest, who: str) -> None:
    made: Rig = request.getfixturevalue(who)
    before = counted(made)
    assert ask(made, events(KEEP_ALIVES), stream=True) == b"".join(map(encode, KEEP_ALIVES))
    assert row(made) == ("hosted", 200, None) and counted(made) == before


@pytest.mark.parametrize("piece", [
    {"refusal": "I cannot tell you"}, {"content": [{"type": "refusal", "refusal": "I cannot"}]},
    {"content": [{"type": "reference", "reference_ids": [1]}]}, {"audio": {"data": "AAAA"}},
    {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]}])
def test_what_no_text_goes_on_from_ends_with_an_error(standing_in: Rig, piece: Mapping[str, Any]) -> None:
    begun = {**STREAM[1], "choices": [{"index": 0, "delta": piece, "finish_reason": None}]}
    text = ask(standing_in, events([begun]), stream=True)
    assert text.startswith(encode(begun) + b"event: error\ndata: ") and b"small" not in text
    assert row(standing_in)[0] == "failed"


def test_a_stream_that_nobody_asked_for_is_not_gone_on_with(standing_in: Rig) -> None:
    text = ask(standing_in, events(STREAM[:3]))
    assert text.startswith(b"".join(map(encode, STREAM[:3])) + b"event: error") and row(standing_in)[0] == "failed"


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/completions", {"choices": [{"index": 0, "text": "", "finish_reason": "error"}]}), ("/v1/completions", ERROR),
    ("/v1/responses", {"status": "failed", "output": []}), ("/v1/responses", {"status": "completed", "output": []}),
    ("/v1/responses", ERROR)])
@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
def test_sister_dialects_fail_over_too(standing_in: Rig, path: str, body: object, streams: bool) -> None:
    given = {"prompt": "hi"} if path == "/v1/completions" else {"input": "hi"}
    assert b'"degraded"' in ask(standing_in, answer(body), path, stream=streams, messages=None, **given)
    assert row(standing_in)[0] == "degraded"


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/embeddings", ERROR), ("/v1/embeddings", {"data": []}),
    ("/v1/messages", {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}),
    ("/v1/messages", {"content": None, "stop_reason": "end_turn"})])
def test_dialects_without_a_fallback_count_too(alone: Rig, path: str, body: object) -> None:
    before = counted(alone)
    assert ask(alone, answer(body), path, input="hi") == json.dumps(body).encode()
    assert row(alone)[0] == "failed" and counted(alone) == before + 1


@pytest.mark.parametrize("data", [
    [{"type": "response.created", "response": {"id": "r", "status": "in_progress", "output": []}},
     {"type": "response.failed", "response": {"id": "r", "status": "failed", "output": [], "error": {
         "code": "server_error", "message": "it stopped"}}}],
    [{"type": "error", "code": "server_error", "message": "it stopped"}]])
def test_a_response_that_failed(alone: Rig, data: Sequence[Mapping[str, Any]]) -> None:
    ask(alone, events(data), "/v1/responses", input="hi", stream=True)
    mode, _, error = row(alone)
    assert mode == "failed" and error == "error_event: it stopped"


def packed(name: str, body: bytes) -> bytes:
    zstd = pytest.importorskip("backports.zstd")
    packer = zlib.compressobj(wbits=-15)
    return {"gzip": gzip.compress(body), "x-gzip": gzip.compress(body[:9]) + gzip.compress(body[9:]),
            "deflate": zlib.compress(body), "Deflate": packer.compress(body) + packer.flush(),
            "br": brotli.compress(body), "zstd": zstd.compress(body), "identity": body,
            "gzip, br": brotli.compress(gzip.compress(body))}[name]


@pytest.mark.parametrize("name", ["gzip", "x-gzip", "deflate", "Deflate", "br", "zstd", "gzip, br", "identity"])
@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
def test_an_encoded_answer_is_read_and_its_bytes_stay(alone: Rig, name: str, streams: bool) -> None:
    body = packed(name, b"".join(map(encode, STREAM)) if streams else json.dumps(chat_body("one two")).encode())
    kind = {"content-type": "text/event-stream" if streams else "application/json", "content-encoding": name}
    assert ask(alone, answer(body, headers=kind), stream=streams) == body
    exchange, = alone.captured.wait()
    assert (exchange.mode, exchange.error) == ("hosted", None) and exchange.response is not None
    assert exchange.response["choices"][0]["message"]["content"].startswith("one two")


@pytest.mark.parametrize(("headers", "body", "why"), [
    ({"content-encoding": "compress"}, b"\x1f\x9d", "its content encoding is 'compress'"),
    ({"content-encoding": "gzip"}, b"no gzip", "not compressed as it says"),
    ({}, b'{"choices": [' + b" " * (33 << 20), "more than 32 MiB")])
def test_why_an_answer_was_not_kept_stands_in_its_row(alone: Rig, headers: dict[str, str], body: bytes,
                                                      why: str) -> None:
    assert ask(alone, answer(body, headers={"content-type": "application/json", **headers})) == body
    exchange, = alone.captured.wait()
    assert exchange.response is None and exchange.error is not None and why in exchange.error


def test_what_a_few_bytes_decompress_to_is_bounded(alone: Rig) -> None:
    bomb = gzip.compress(b'{"a": "' + bytes(64 << 20))
    assert ask(alone, answer(bomb, headers={"content-type": "application/json", "content-encoding": "gzip"})) == bomb
    exchange, = alone.captured.wait()
    assert exchange.error is not None and "longer than 32 MiB" in exchange.error


def test_a_length_beside_chunks_is_not_passed_on(alone: Rig) -> None:
    body = json.dumps(chat_body("one")).encode()
    both = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"
    assert ask(alone, raw(both + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))) == body
    assert row(alone) == ("hosted", 200, None)
    no = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n123456"
    assert b"upstream_malformed" in ask(alone, raw(no))


@pytest.mark.parametrize("end", [b"\n\r\n", b"\r\n\n", b"\r\r", b"\n\r", b"\r\n\r\n"])
def test_an_event_leaves_when_its_empty_line_is_there(alone: Rig, end: bytes) -> None:
    hold, first = Hold(), encode(STREAM[1]).rstrip(b"\n") + end

    async def behave(peer: Peer) -> None:
        await peer.start(200, {"content-type": "text/event-stream"})
        await peer.send(first)
        await hold.wait()
        for each in STREAM[2:]:
            await peer.send(encode(each).rstrip(b"\n") + end)
        await peer.end()

    alone.live.wait_idle()
    alone.captured.clear()
    alone.fake.then(behave)
    with httpx.Client(trust_env=False, timeout=30) as client, client.stream(
            "POST", f"{alone.live.url}/v1/chat/completions", json={**BODY, "stream": True}) as response:
        pieces = response.iter_raw()
        assert next(pieces) == first
        hold.release()
        assert b"".join(pieces) == b"".join(encode(each).rstrip(b"\n") + end for each in STREAM[2:])
    assert row(alone) == ("hosted", 200, None)


def test_a_compressed_stream_leaves_as_it_comes(alone: Rig) -> None:
    pieces = in_gzip(STREAM)
    assert ask(alone, sent(*pieces, content_encoding="gzip"), stream=True) == b"".join(pieces)
    assert row(alone) == ("hosted", 200, None)


def test_two_calls_without_ids_are_two(alone: Rig) -> None:
    calls = [{"index": 0, "id": "", "type": "function", "function": {
        "name": "get_weather", "arguments": json.dumps({"city": city})}} for city in "AB"]
    data = [*({**said(None), "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]} for call in calls),
            ended("tool_calls"), DONE]
    ask(alone, events(data), stream=True)
    exchange, = alone.captured.wait()
    assert exchange.error is None and exchange.response is not None
    assert [call["function"]["arguments"] for call in exchange.response["choices"][0]["message"]["tool_calls"]] == [
        '{"city": "A"}', '{"city": "B"}']
