"""EventStream sends events, and reports errors before and after the first one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message

from brise.dialects.sse import encode as event
from brise.errors import RequestError
from brise.serve.sse import ClientGoneError, EventStream


def run(stream: AsyncGenerator[bytes, None], disconnect_after: int | None = None) -> list[Message]:
    """The messages of a stream to a client that disconnects after so many."""
    sent: list[Message] = []

    async def main() -> None:
        gone = asyncio.Event()

        async def send(message: Message) -> None:
            sent.append(message)
            if len(sent) == disconnect_after:
                gone.set()

        async def receive() -> Message:
            await gone.wait()
            return {"type": "http.disconnect"}

        await EventStream(stream)({"type": "http"}, receive, send)

    try:
        asyncio.run(main())
    except Exception as error:
        sent.append({"type": "raised", "error": error})
    return sent


def bodies(sent: list[Message]) -> bytes:
    return b"".join(message.get("body", b"") for message in sent)


def test_a_stream_that_ends() -> None:
    async def events() -> AsyncGenerator[bytes, None]:
        yield b"a"
        yield b"b"

    sent = run(events())
    assert [message["type"] for message in sent] == ["http.response.start"] + ["http.response.body"] * 3
    assert bodies(sent) == b"ab" and sent[-1]["more_body"] is False


def test_an_error_before_the_first_event_is_raised() -> None:
    async def events() -> AsyncGenerator[bytes, None]:
        raise RequestError("no")
        yield b""

    assert [message["type"] for message in run(events())] == ["raised"]


@pytest.mark.parametrize(("error", "shown", "is_raised"), [
    (RequestError("said so", code="c"), "said so", False),
    (ValueError("secret of ours"), "the server failed while it answered", True)])
def test_a_later_error_is_the_last_event(error: Exception, shown: str, is_raised: bool) -> None:
    async def events() -> AsyncGenerator[bytes, None]:
        yield b"a"
        raise error

    sent = run(events())
    assert (sent[-1]["type"] == "raised") == is_raised
    last = next(message for message in reversed(sent) if message["type"] == "http.response.body")
    assert last["more_body"] is False and last["body"].startswith(b"event: error\ndata: ")
    assert json.loads(last["body"].partition(b"data: ")[2])["error"]["message"] == shown


def test_hanging_up_closes_the_source_at_once() -> None:
    closed = []

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            yield b"a"
            await asyncio.sleep(1000)
        finally:
            closed.append(True)

    sent = run(events(), disconnect_after=2)
    assert isinstance(sent[-1]["error"], ClientGoneError) and closed == [True]


def test_no_text_can_break_an_event() -> None:
    text = "a\nb\r\n\u2028\u2029\x85data: x"
    sent = event({"text": text})
    assert len(sent.decode().splitlines()) == 2 and json.loads(sent[6:]) == {"text": text}
