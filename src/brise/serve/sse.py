"""EventStream sends server-sent events; an error becomes a status before the first event, and an event after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from brise.dialects import sse
from brise.errors import RequestError
from brise.serve.error_response import GenerationError, error_body
from brise.serve.silent_stream import COMMENT, SILENCE_S

T = TypeVar("T")
NEVER_S = 1e9
HEADERS: Mapping[str, str] = {name.decode(): value.decode() for name, value in sse.HEADERS}


class ClientGoneError(Exception):
    """The client closed the connection before the answer was complete."""


def error_event(error: RequestError) -> bytes:
    """An error after the first event of a stream of OpenAI's API."""
    return sse.encode(error_body(error), "error")


class EventStream(Response):
    """A response that sends what `events` yields. `events` is always closed before the call returns.

    If the first event takes `silence_s`, as that of a long prompt does, the head leaves without it, with a comment.
    `encode_error` puts an error after the first event into the stream's form.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str] | None = None,
                 silence_s: float = SILENCE_S, encode_error: Callable[[RequestError], bytes] = error_event) -> None:
        super().__init__(status_code=200, headers={**HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self._events, self._silence_s, self._encode_error = events, silence_s, encode_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_gone(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        """Raises an error before the first event, so that it becomes the response; a later one is sent as an event."""
        head = _Head(self.raw_headers, send)
        takes_comments = self.headers["content-type"].startswith("text/event-stream")
        silence_s = self._silence_s if takes_comments else NEVER_S
        timer = asyncio.get_running_loop().call_later(silence_s, head.send_soon)
        async with aclosing(self._events) as events:
            try:
                async for chunk in events:
                    if not head.is_whole:
                        timer.cancel()
                        await head.send()
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except Exception as error:
                if not head.has_begun:
                    raise
                await head.send()
                shown = error if isinstance(error, RequestError) else GenerationError(
                    "the server failed while it answered", code="internal_error")
                await send({"type": "http.response.body", "body": self._encode_error(shown), "more_body": False})
                if isinstance(error, RequestError):
                    return
                raise  # a bug: AccessMiddleware logs it
            finally:
                timer.cancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Head:
    """The head of a stream, which leaves once: with the first event, or before it."""

    def __init__(self, raw_headers: list[tuple[bytes, bytes]], send: Send) -> None:
        self._headers, self._send = raw_headers, send
        self._early: asyncio.Task[None] | None = None
        self.is_whole = False

    @property
    def has_begun(self) -> bool:
        return self.is_whole or self._early is not None

    def send_soon(self) -> None:
        """Before the first event."""
        self._early = asyncio.create_task(self._send_early())

    async def send(self) -> None:
        """Returns when it has been sent."""
        if self._early is not None:
            await self._early
        elif not self.is_whole:
            await self._send_start()
        self.is_whole = True

    async def _send_early(self) -> None:
        await self._send_start()
        await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})

    async def _send_start(self) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})


async def unless_gone(receive: Receive, work: Coroutine[object, object, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client disconnects."""
    task, has_disconnected = asyncio.current_task(), False
    assert task is not None

    def cancel(gone: asyncio.Task[None]) -> None:
        nonlocal has_disconnected
        if not gone.cancelled():
            has_disconnected = True
            task.cancel()
    gone = asyncio.ensure_future(_wait_gone(receive))
    gone.add_done_callback(cancel)
    try:
        return await work
    except asyncio.CancelledError:
        if has_disconnected and task.uncancel() == 0:  # as in asyncio.timeout: nobody else cancelled the task
            raise ClientGoneError from None
        raise
    finally:
        gone.remove_done_callback(cancel)
        gone.cancel()


async def _wait_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
