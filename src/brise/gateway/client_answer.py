"""What the gateway itself sends to a client: a small model's answer, whole or as a stream, or an error of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable

from starlette.types import Send

from brise.dialects import sse
from brise.dialects.bodies import Body
from brise.dialects.dialect import Dialect
from brise.dialects.streams import assemble
from brise.gateway import headers
from brise.gateway.failure import UpstreamFailure
from brise.gateway.request import ClientRequest, Headers


class ClientStream:
    """A stream on its way to the client, collected as it leaves. `begun` is what the client has of it already."""

    def __init__(self, request: ClientRequest, send: Send, begun: bytes = b"") -> None:
        self._dialect, self._send, self._sent = request.dialect, send, bytearray(begun)

    async def begin(self, added: Headers) -> None:
        """Sends status and headers."""
        await self._send({"type": "http.response.start", "status": 200, "headers": [*sse.HEADERS, *added]})

    async def write(self, event: Body) -> None:
        """Sends one event."""
        piece = self._dialect.encode(event)
        self._sent += piece
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        """Sends the end that the dialect has for streams."""
        await self._send({"type": "http.response.body", "body": self._dialect.stream_end(), "more_body": False})

    async def break_off(self, message: str, code: str) -> None:
        """Sends an error as the last event."""
        event = self._dialect.encode(self._dialect.error_event(message, code))
        await self._send({"type": "http.response.body", "body": event, "more_body": False})

    def body(self) -> Body | None:
        """All that the client has of the stream, as one body."""
        return assemble(self._dialect, bytes(self._sent)).body


async def send_whole(body: Body, added: Headers, send: Send) -> None:
    """Sends a whole answer."""
    await _send_json(200, json.dumps(body, separators=(",", ":")).encode(), added, send)


async def send_stream(request: ClientRequest, events: Iterable[Body], added: Headers, send: Send) -> None:
    """Sends a stream that is complete already, all at once."""
    body = b"".join(map(request.dialect.encode, events)) + request.dialect.stream_end()
    await send({"type": "http.response.start", "status": 200, "headers": [*sse.HEADERS, *added]})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_error(dialect: Dialect, failure: UpstreamFailure, added: Headers, send: Send) -> None:
    """Sends an error as the whole answer. An upstream's own refusal goes out as it came."""
    refusal = failure.refusal
    if refusal is not None:
        kept = headers.downstream(refusal.headers)
        await send({"type": "http.response.start", "status": refusal.status, "headers": [*kept, *added]})
        await send({"type": "http.response.body", "body": refusal.body, "more_body": False})
        return
    if failure.retry_after_s is not None:
        added = [*added, (b"retry-after", str(max(round(failure.retry_after_s), 1)).encode())]
    body = json.dumps(dialect.error_body(failure.message, failure.code)).encode()
    await _send_json(failure.client_status, body, added, send)


async def end_with_error(dialect: Dialect, failure: UpstreamFailure, send: Send) -> None:
    """Sends an error as the last event of a stream, so that no client takes it for complete."""
    event = sse.encode(dialect.error_event(failure.message, failure.code), "error")
    await send({"type": "http.response.body", "body": event, "more_body": False})


async def _send_json(status: int, body: bytes, added: Headers, send: Send) -> None:
    sent = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *added]
    await send({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": body, "more_body": False})
