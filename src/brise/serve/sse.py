"""EventStream sends server-sent events; an error becomes a status before the first event, and an event after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from brise.dialects import sse
from brise.errors import RequestError
from brise.serve.error_response import GenerationError, error_body

T = TypeVar("T")
HEADERS: Mapping[str, str] = {name.decode(): value.decode() for name, value in sse.HEADERS}


class ClientGoneError(Exception):
    """The client closed the connection before the answer was complete."""


class EventStream(Response):
    """A response that sends what `events` yields. `events` is always closed before the call returns."""

    def __init__(self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status_code=200, headers={**HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_gone(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        """Raises an error before the first event, so that it becomes the response; a later one is sent as an event."""
        started = False
        async with aclosing(self._events) as events:
            try:
                async for chunk in events:
                    if not started:
                        started = True
                        await send({"type": "http.response.start", "status": 200,
                                    "headers": self.raw_headers})
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except Exception as error:
                if not started:
                    raise
                await send({"type": "http.response.body", "body": _error_event(error), "more_body": False})
                if isinstance(error, RequestError):
                    return
                raise  # a bug: AccessMiddleware logs it
            await send({"type": "http.response.body", "body": b"", "more_body": False})


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


def _error_event(error: Exception) -> bytes:
    shown = error if isinstance(error, RequestError) else GenerationError(
        "the server failed while it answered", code="internal_error")
    return sse.encode(error_body(shown), "error")
