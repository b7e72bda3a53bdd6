"""A stream of events that falls silent gets a comment line, so that no proxy on its way takes it for dead.

Clients skip comments (WHATWG HTML, 9.2.6). One is sent between two events only; a compressed stream, and one whose
length was stated, get none, and neither does NDJSON, which has no comments.
"""

from __future__ import annotations

import asyncio

from starlette.types import Message, Send

SILENCE_S = 15.0  # proxies give up after 60 s (nginx, AWS), some after 30 (Heroku: 55)
COMMENT = b": still there\n\n"
EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
LONGEST_END = 4


class SilentStream:
    """The way of one response to its client. `end` must be called when the request is over."""

    def __init__(self, send: Send, silence_s: float = SILENCE_S) -> None:
        self._send, self._silence_s = send, silence_s
        self._loop: asyncio.AbstractEventLoop | None = None  # None: this is no stream of events
        self._sent_s, self._tail, self._is_sending = 0.0, b"", False
        self._timer: asyncio.TimerHandle | None = None
        self._comment: asyncio.Task[None] | None = None

    async def send(self, message: Message) -> None:
        """Sends a part of the response. It runs for every event, so it must be cheap."""
        loop = self._loop
        if loop is None:
            if message["type"] == "http.response.start" and _takes_comments(message):
                self._watch()
            await self._send(message)
            return
        if self._comment is not None:
            await self._comment
        body = message.get("body", b"")
        self._tail = body if len(body) >= LONGEST_END else (self._tail + body)[-LONGEST_END:]
        self._is_sending = True
        try:
            await self._send(message)
        finally:
            self._is_sending, self._sent_s = False, loop.time()
        if not message.get("more_body"):
            self.end()

    def end(self) -> None:
        """Nothing more is sent."""
        self._loop = None
        if self._timer is not None:
            self._timer.cancel()
        if self._comment is not None:
            self._comment.cancel()

    def _watch(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._sent_s = self._loop.time()
        self._timer = self._loop.call_later(self._silence_s, self._look)

    def _look(self) -> None:
        """After so much silence a comment goes out, unless an event has begun or waits for a slow client."""
        if self._loop is None:
            return
        due_s = self._sent_s + self._silence_s
        if self._loop.time() >= due_s:
            due_s = self._loop.time() + self._silence_s
            if self._comment is None and not self._is_sending and self._is_between_events():
                self._comment = self._loop.create_task(self._send_comment())
        self._timer = self._loop.call_at(due_s, self._look)

    def _is_between_events(self) -> bool:
        return not self._tail or self._tail.endswith(EVENT_ENDS)

    async def _send_comment(self) -> None:
        try:
            await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})
        finally:
            self._comment = None


def _takes_comments(head: Message) -> bool:
    headers = dict(head.get("headers", ()))
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    return (headers.get(b"content-type", b"").lower().startswith(b"text/event-stream")
            and b"content-length" not in headers and encoding in (b"", b"identity"))
