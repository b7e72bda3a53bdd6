"""Silent streams get a comment line, between events only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest
from starlette.types import Message

from brise.dialects import sse
from brise.serve.silent_stream import COMMENT, SilentStream
from brise.serve.sse import EventStream
from tests.waiting import LIMIT_S

STREAM, SOON_S = (b"content-type", b"text/event-stream; charset=utf-8"), 0.02


def sent_by(pieces: Sequence[bytes], headers: Sequence[tuple[bytes, bytes]] = (STREAM,), *, num_comments: int = 0
            ) -> list[bytes]:
    """The pieces that reach a client, if the server waits for so many comments after the last of them."""
    sent = list[bytes]()

    async def run() -> None:
        enough = asyncio.Event()

        async def send(message: Message) -> None:
            sent.append(message.get("body", b""))
            if sent.count(COMMENT) >= num_comments:
                enough.set()

        stream = SilentStream(send, SOON_S)
        await stream.send({"type": "http.response.start", "status": 200, "headers": list(headers)})
        for piece in pieces:
            await stream.send({"type": "http.response.body", "body": piece, "more_body": True})
        if num_comments:
            await asyncio.wait_for(enough.wait(), LIMIT_S)
        else:
            await asyncio.sleep(4 * SOON_S)
        await stream.send({"type": "http.response.body", "body": b"end", "more_body": False})
        stream.end()
        await asyncio.sleep(2 * SOON_S)

    asyncio.run(run())
    return sent[1:]


@pytest.mark.parametrize("event", [b"data: 1\n\n", b"data: 1\r\n\r\n", b"data: 1\r\r"])
def test_a_silent_stream_gets_comments_after_a_whole_event_and_none_after_its_end(event: bytes) -> None:
    assert sent_by([event], num_comments=2) == [event, COMMENT, COMMENT, b"end"]


def test_a_stream_without_an_event_yet_gets_them_too() -> None:
    assert sent_by([], num_comments=1) == [COMMENT, b"end"]


def test_the_end_of_an_event_may_come_in_two_pieces() -> None:
    assert sent_by([b"data: 1\n", b"\n"], num_comments=1) == [b"data: 1\n", b"\n", COMMENT, b"end"]


@pytest.mark.parametrize("pieces", [[b"data: {\"a\""], [b"data: 1\n"], [b"data: 1\n\nda"]])
def test_no_comment_inside_an_event(pieces: list[bytes]) -> None:
    assert COMMENT not in sent_by(pieces)


@pytest.mark.parametrize("headers", [
    [(b"content-type", b"application/x-ndjson")], [(b"content-type", b"application/json")], [],
    [STREAM, (b"content-encoding", b"gzip")], [STREAM, (b"content-length", b"30")]])
def test_other_answers_get_none(headers: list[tuple[bytes, bytes]]) -> None:
    assert COMMENT not in sent_by([b"{}\n\n"], headers)


def test_comments_are_no_events_for_a_client() -> None:
    stream = COMMENT + sse.encode({"a": 1}) + COMMENT + sse.END
    assert [event.data for event in sse.events(stream)] == ['{"a":1}', "[DONE]"]


def test_the_head_of_a_slow_stream_leaves_before_its_first_event() -> None:
    sent = list[Message]()

    async def run() -> None:
        commented = asyncio.Event()

        async def events() -> AsyncGenerator[bytes, None]:
            await commented.wait()
            yield b"data: 1\n\n"

        async def send(message: Message) -> None:
            sent.append(message)
            if message.get("body") == COMMENT:
                commented.set()

        async def receive() -> Message:
            await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        await EventStream(events(), silence_s=SOON_S)({"type": "http"}, receive, send)

    asyncio.run(run())
    assert [message["type"] for message in sent] == ["http.response.start"] + ["http.response.body"] * 3
    assert [message.get("body") for message in sent[1:]] == [COMMENT, b"data: 1\n\n", b""]
