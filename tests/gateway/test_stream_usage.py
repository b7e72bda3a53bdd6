"""Tokens of streams are counted although the client did not ask, and the client sees nothing of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message

from brise.dialects import sse
from brise.dialects.bodies import Usage
from brise.dialects.streams import assemble
from brise.dialects.table import CHAT
from brise.gateway.failure import Delivery, UpstreamError
from brise.gateway.relay import pass_on
from brise.gateway.request import read
from brise.gateway.stream_usage import CountedStream, without_count, without_member
from brise.gateway.upstream import UpstreamResponse
from tests.cpu_time import cpu_s
from tests.gateway.fake_messages import message_events
from tests.gateway.fake_upstream import Behaviour, Peer, answer, chat, events, refuse
from tests.gateway.rig import Rig, rig
from tests.gateway.test_proxy import HI
from tests.profiles import examples

BODY = b'{"model":"big", "messages":[{"role":"user","content":"hi"}],  "stream":true }'
COUNT = '{"id":"c","choices":[],"usage":{"prompt_tokens":110,"completion_tokens":9,"total_tokens":119}}'


def stream(rig: Rig, body: bytes = BODY, path: str = "/v1/chat/completions") -> bytes:
    """What a client gets, byte for byte."""
    return bytes(rig.live.post(path, content=body, headers={"content-type": "application/json"}).content)


def openai_like(*chunks: str, count: str = COUNT, pieces: Callable[[bytes], Iterator[bytes]] | None = None
                ) -> Behaviour:
    """A server that counts if it is asked, as OpenAI's does: null in every chunk, and one more at the end."""
    async def behave(peer: Peer) -> None:
        is_asked = (peer.received.json.get("stream_options") or {}).get("include_usage")
        lines = [chunk.replace("@", ',"usage":null' if is_asked else "") for chunk in chunks]
        said = "".join(f"data: {line}\n\n" for line in (*lines, *([count] if is_asked else ()), "[DONE]")).encode()
        await peer.start(200, {"content-type": "text/event-stream"})
        for piece in (pieces or (lambda whole: iter((whole,))))(said):
            await peer.send(piece)
        await peer.end()
    return behave


def chunk(delta: str, more: str = "", finish: str = "null") -> str:
    return f'{{"id":"c","choices":[{{"index":0,"delta":{delta},"finish_reason":{finish}}}]@{more}}}'


CHUNKS = ('{"id":"c", "choices":[]@ ,"prompt_filter_results":[{}]}',
          chunk('{"role":"assistant","content":""}', ',"obfuscation":"x9"'),
          chunk('{"content":",\\"usage\\":null é \\ud83d\\ude00"}'),
          chunk('{"content":"usage"}', ', "service_tier" : 1.0'),
          chunk('{"content":"","usage":null}'), chunk("{}", finish='"stop"'))


def bytes_of(said: bytes) -> Iterator[bytes]:
    return (said[at:at + 7] for at in range(0, len(said), 7))


@pytest.mark.parametrize("pieces", [None, bytes_of])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_the_count_is_asked_for_and_taken_out_again(made: Rig, path: str, pieces: Any) -> None:
    made.fake.then(openai_like(*CHUNKS, pieces=pieces))
    unasked = "".join(f"data: {line.replace('@', '')}\n\n" for line in (*CHUNKS, "[DONE]"))
    assert stream(made, path=path) == unasked.encode()
    assert made.fake.received[0].body == BODY[:-1] + b',"stream_options":{"include_usage":true}}'
    exchange = made.captured.wait()[0]
    assert (exchange.usage, exchange.error) == (Usage(110, 9), None)
    assert exchange.request == json.loads(BODY), "it is written down as the client wrote it"


@pytest.mark.parametrize(("options", "sent"), [
    (b"null", {"include_usage": True}), (b"{}", {"include_usage": True}),
    (b'{"include_usage":false,"include_obfuscation":false}', {"include_usage": True, "include_obfuscation": False}),
    (b'{"include_usage":true}', {"include_usage": True}), (b'"odd"', "odd"), (b'{"include_usage":1}',
                                                                              {"include_usage": 1})])
def test_options_of_the_client_stay(made: Rig, options: bytes, sent: object) -> None:
    made.fake.then(openai_like(*CHUNKS[1:]) if isinstance(sent, dict) else chat("hi"))
    got = stream(made, BODY[:-2] + b',"stream_options":' + options + b"}")
    assert made.fake.received[0].json["stream_options"] == sent
    assert (COUNT.encode() in got) == (b":true" in options or b":1" in options)


def test_a_client_of_openai_sees_what_it_asked_for(made: Rig) -> None:
    with made.live.client() as client:
        plain = list(client.chat.completions.create(model="big", messages=HI, stream=True))
        counted = list(client.chat.completions.create(model="big", messages=HI, stream=True,
                                                      stream_options={"include_usage": True}))
    assert [each.usage for each in plain] == [None] * len(plain) and len(counted) == len(plain) + 1
    assert all(each.choices for each in plain) and counted[-1].usage is not None
    assert [exchange.usage for exchange in made.captured.wait(2)] == [Usage(10, 1, 4)] * 2


@pytest.mark.parametrize("refusal", [
    refuse(400, "Unrecognized request argument supplied: stream_options"), refuse(400, "bad request"),
    answer({"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options"]}]}, 422)])
def test_an_upstream_that_refuses_the_option_is_asked_without(made: Rig, refusal: Behaviour) -> None:
    made.fake.then(refusal, openai_like(*CHUNKS), openai_like(*CHUNKS))
    first, second = stream(made), stream(made)
    assert first == second and first.endswith(b"data: [DONE]\n\n")
    assert ["stream_options" in received.json for received in made.fake.received] == [True, False, False]
    assert [(row.status, row.usage) for row in made.captured.wait(2)] == [(200, None)] * 2
    stream(made, BODY.replace(b"big", b"other"))
    assert "stream_options" in made.fake.received[-1].json, "another model may take it"


def test_an_error_of_the_request_comes_back_as_it_is(made: Rig) -> None:
    made.fake.then(refuse(400, "no"), refuse(400, "too long"), openai_like(*CHUNKS), refuse(400, "too long"),
                   refuse(400, "unknown: stream_options"), openai_like(*CHUNKS))
    assert b"too long" in stream(made), "it was asked without, too"
    assert b"[DONE]" in stream(made)
    assert b"too long" in stream(made) and len(made.fake.received) == 4, "it takes the option, so that is not why"
    assert b"[DONE]" in stream(made) and len(made.fake.received) == 6, "unless the refusal names it"


def test_an_upstream_that_is_not_to_be_asked(off: Rig) -> None:
    off.fake.then(openai_like(*CHUNKS))
    assert stream(off).endswith(b"data: [DONE]\n\n")
    assert off.fake.received[0].body == BODY and off.captured.wait()[0].usage is None


@pytest.fixture
def made() -> Iterator[Rig]:
    """A gateway that has learnt nothing yet of what its upstream takes."""
    with rig() as running:
        yield running


@pytest.fixture
def off() -> Iterator[Rig]:
    with rig(asks_for_usage=False) as made:
        yield made


def test_a_count_that_comes_unasked_with_the_last_choice_stays(made: Rig) -> None:
    last = chunk("{}", ',"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6}', '"stop"').replace("@", "")
    made.fake.then(events([chunk('{"content":"hi"}').replace("@", ""), last, "[DONE]"]))
    assert last.encode() in stream(made) and made.captured.wait()[0].usage == Usage(5, 1)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_stream_of_anthropic_s_is_always_counted(path: str) -> None:
    with rig(is_anthropic=True) as made:
        made.fake.then(events(message_events("one two")))
        said = stream(made, BODY, path)
        assert (b"usage" in said) == (path == "/v1/messages")
        assert made.captured.wait()[0].usage == Usage(17, 5, 4, 3)


def test_a_stream_of_anthropic_s_that_breaks_has_the_prompt_s_count() -> None:
    with rig(is_anthropic=True) as made:
        made.fake.then(events(message_events("one two")[:6], ends=False))
        stream(made)
        assert made.captured.wait()[0].usage == Usage(17, None, 4, 3)


LETTERS = st.characters(codec="utf-8", exclude_characters="@")


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(LETTERS, max_size=6), st.sampled_from(["null", '"stop"']), st.booleans()),
                max_size=6),
       st.sampled_from(["\n\n", "\r\n\r\n"]), st.booleans(), st.randoms(use_true_random=False))
def test_any_stream_in_any_pieces_is_what_it_would_have_been(said: list[tuple[str, str, bool]], end: str,
                                                             is_ended: bool, random: Random) -> None:
    def whole(is_asked: bool) -> bytes:
        chunks = [chunk(json.dumps({"content": text}, ensure_ascii=is_ascii), finish=finish).replace(
            "@", ',"usage":null' if is_asked else "") for text, finish, is_ascii in said]
        lines = [f"data: {line}{end}" for line in (*chunks, *([COUNT] if is_asked else ()), "[DONE]")]
        return (": ping" + end + "".join(lines) if is_ended else "".join(lines).rstrip()).encode()

    asked, plain = whole(True), whole(False)
    cuts = sorted(random.sample(range(1, 200), 3))
    pieces = [asked[start:stop] for start, stop in zip([0, *cuts], [*cuts, None], strict=True)]
    got, kept = asyncio.run(passed(CountedStream(Pieces(pieces))))
    assert got == asyncio.run(passed(Pieces([plain])))[0] and plain.startswith(got.rstrip())
    assert CHAT.usage(assemble(CHAT, kept).body or {}) == Usage(110, 9)


async def passed(reply: UpstreamResponse) -> tuple[bytes, bytes]:
    """What a client gets of a stream, and what is kept of it."""
    sent, delivery = bytearray(), Delivery(200)

    async def send(message: Message) -> None:
        sent.extend(message.get("body", b""))

    request = read("POST", "/v1/chat/completions", b"/v1/chat/completions", [], BODY)
    with suppress(UpstreamError):  # it has no end
        await pass_on(reply, request, send, (), delivery)
    return bytes(sent), bytes(delivery.body)


class Pieces:
    """An upstream's stream, as it comes over the wire."""

    status, usage, adds_usage = 200, None, False
    headers = ((b"content-type", b"text/event-stream"),)

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        for piece in self._pieces:
            yield piece

    def close(self) -> None:
        """Nothing to close."""


VALUES = st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
                      lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
                          st.sampled_from(["usage", "a", "b"]), inner, max_size=3), max_leaves=8)


@given(st.dictionaries(st.sampled_from(["usage", "a", '"usage', "c"]), VALUES, max_size=4),
       st.sampled_from([None, 1]), st.booleans())
def test_one_member_goes_and_the_others_stay(value: dict[str, Any], indent: int | None, is_ascii: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=is_ascii)
    rest = without_member(text, "usage")
    assert json.loads(rest) == {name: item for name, item in value.items() if name != "usage"}
    assert "usage" in value or rest == text
    assert without_member(f"data: {text}\r\n", "usage") == f"data: {rest}\r\n"
    compact = json.dumps(value, separators=(",", ":"))
    kept = {name: item for name, item in value.items() if name != "usage"}
    assert without_member(compact, "usage") == json.dumps(kept, separators=(",", ":"))



NULLS = st.sampled_from([None, 1, "a-b", ',"usage":null}', {"usage": None}, [{"usage": None}, 1], "usage", "\n"])


@settings(deadline=None, max_examples=examples(1000))
@given(st.dictionaries(st.sampled_from(["usage", "a", "obfuscation", "b,"]), NULLS, min_size=1),
       st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", " :  ")]), st.sampled_from(["\n\n", "\r\n\r\n", " \n\n"]),
       st.sampled_from(["data: ", "data:", "event: e\ndata: ", ": c\ndata: "]))
def test_a_count_of_nothing_goes_however_it_is_found(value: dict[str, Any], separators: tuple[str, str], end: str,
                                                     start: str) -> None:
    text = json.dumps(value, separators=separators)
    is_null = "usage" in value and value["usage"] is None
    is_count = isinstance(value.get("usage"), dict)
    plain = "" if is_count else start + (without_member(text, "usage") if is_null else text) + end
    (block,) = sse.Splitter().push((start + text + end).encode())
    assert without_count(block) == plain.encode()


@pytest.mark.parametrize("data", [
    b'data: {"a":1,\ndata: "usage":null}\n\n', b'data: {"a":{"b":1,"usage":null}}\n\n', b': {"a":1,"usage":null}\n\n',
    b'data: {"a":",\\"usage\\":null}"}\n\n', b'data: {"a":1,"usage":null,"usage":{}}\n\n'])
def test_what_only_looks_like_a_count_of_nothing_stays(data: bytes) -> None:
    (block,) = sse.Splitter().push(data)
    assert without_count(block) == data or block.event is not None and without_count(block) == b""


def test_many_counts_in_one_event_take_time_in_proportion() -> None:
    (block,) = sse.Splitter().push(b"data: {" + b',"usage":null' * 200_000 + b"\n\n")
    assert cpu_s(lambda: without_count(block)) < 2
