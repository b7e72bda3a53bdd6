"""GuardedProtocol is uvicorn's HTTP protocol with limits on time and connections, for clients as they are.

A head must be whole in time. When there are too many connections, the one that has waited longest without a request
goes. A client that closes its sending side is answered, and one that is refused while it sends can read why. The head
of a response leaves together with the first bytes of its body.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState as Served

HEAD_S = 30.0  # from the connection, or the first byte of a later request, to the end of the head
MOST_CONNECTIONS = 8192
MAX_HEAD_BYTES = 16 << 10  # as h11 and uvicorn have it
LINGER_S = 10.0  # for a client that still sends its body when it is refused
LINGER_BYTES = 256 << 20
PROBE_S = 0.1  # between looks at whether a client that sends no more has gone
CHUNKED = b"\r\ntransfer-encoding: chunked\r\n"  # as h11 writes it into a head
_TOO_MANY = (b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
             b"connection: close\r\ncontent-length: %d\r\n\r\n%s")
_TOO_MANY_BODY = (b'{"error":{"message":"the server has no connection to spare","type":"server_error","param":null,'
                  b'"code":"too_many_connections"}}')


def most_connections() -> int:
    """How many connections a server keeps: a quarter of the descriptors, and 32 at least, are for other things."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return min(MOST_CONNECTIONS, max(8, soft - max(32, soft // 4)))


class QuickConnection(h11.Connection):
    """h11's connection, which frames a piece of a chunked body itself: that takes a tenth of the time."""

    _is_chunked = False

    def send(self, event: h11.Event) -> bytes | None:  # type: ignore[override]  # its overloads say no more
        if isinstance(event, h11.Data):
            if self._is_chunked and event.data and self.our_state is h11.SEND_BODY:
                return b"%x\r\n%b\r\n" % (len(event.data), event.data)
        elif isinstance(event, h11.Response):
            head = super().send(event)
            self._is_chunked = head is not None and CHUNKED in head.lower()
            return head
        return super().send(event)


class GuardedProtocol(H11Protocol):
    """One connection."""

    _head_timer: asyncio.TimerHandle | None = None
    _linger_timer: asyncio.TimerHandle | None = None
    _since_s = 0.0  # when it began to wait for a request
    _sends_no_more = False
    _num_discarded = -1  # bytes after a refusal; -1: none was refused

    def __init__(self, config: uvicorn.Config, server_state: Served, app_state: dict[str, Any],
                 _loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = QuickConnection(h11.SERVER, config.h11_max_incomplete_event_size or MAX_HEAD_BYTES)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_CoalescingTransport(transport, self._close))
        self._inner = transport
        self._await_head()
        if len(self.connections) > most_connections() or self._is_near_the_limit_of_files():
            self._make_room()

    def data_received(self, data: bytes) -> None:
        if self._num_discarded >= 0:
            self._num_discarded += len(data)
            if self._num_discarded > LINGER_BYTES:
                self._inner.abort()
            return
        super().data_received(data)
        if not self._waits_for_head():
            self._stop_head_timer()
        elif self._head_timer is None and not self._is_busy():
            self._await_head()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """True leaves the connection open for the answer.

        In the middle of an answer it means that the client has gone: one that only sends no more says so at once.
        """
        if self._num_discarded >= 0 or not self._is_busy() or self.cycle.more_body:
            return None
        if self.conn.our_state is not h11.SEND_RESPONSE:
            return None
        self._sends_no_more = True
        if self.scope["http_version"] == "1.1":
            # A client that is gone answers this with a reset; one that only sends no more skips it.
            self.transport.write(self.conn.send(h11.InformationalResponse(status_code=100, headers=[],
                                                                          reason="Continue")) or b"")
        self.loop.call_later(PROBE_S, self._probe)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._since_s = self.loop.time()
        super().on_response_complete()
        if self._sends_no_more and not self._is_busy():
            self.transport.close()

    def _is_near_the_limit_of_files(self) -> bool:
        """Descriptors are numbered from below: a high one means that few are free, whatever has taken the others."""
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raw = self._inner.get_extra_info("socket")
        return raw is not None and soft != resource.RLIM_INFINITY and bool(raw.fileno() >= soft - max(8, soft // 8))

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _waits_for_head(self) -> bool:
        return self.conn.their_state is h11.IDLE

    def _await_head(self) -> None:
        self._since_s = self.loop.time()
        self._head_timer = self.loop.call_later(HEAD_S, self._end_head)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_head(self) -> None:
        self._head_timer = None
        if self._waits_for_head():
            self._inner.abort()

    def _make_room(self) -> None:
        """Closes the connection that has been idle longest; this one if all are busy."""
        idle = [other for other in self.connections
                if isinstance(other, GuardedProtocol) and other is not self and not other._is_busy()
                and other._waits_for_head()]
        if idle:
            oldest = min(idle, key=lambda other: other._since_s)
            self.connections.discard(oldest)
            oldest._inner.abort()
            return
        self._inner.write(_TOO_MANY % (len(_TOO_MANY_BODY), _TOO_MANY_BODY))
        self._inner.close()

    def _probe(self) -> None:
        if not self._is_busy() or self._inner.is_closing():
            return
        raw = self._inner.get_extra_info("socket")
        if raw is not None and raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._inner.abort()
        else:
            self.loop.call_later(PROBE_S, self._probe)

    def _close(self) -> None:
        """Closes with care: unread bytes of a body would turn the close into a reset, which takes the answer along."""
        if self.conn.their_state is not h11.SEND_BODY and not (
                self.cycle is not None and self.cycle.more_body) or self._sends_no_more:
            self._inner.close()
        elif self._num_discarded < 0:
            self._num_discarded = 0
            self._inner.write_eof()
            self._inner.resume_reading()
            self._linger_timer = self.loop.call_later(LINGER_S, self._inner.abort)
        else:
            self._inner.close()


class _CoalescingTransport(asyncio.Transport):
    """Holds a head until the next write, or until the next iteration of the event loop.

    uvicorn writes head and body separately. Each write is a system call and a packet, a tenth of the cost of an answer.
    """

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        super().__init__()
        self._transport, self._held = transport, b""
        self._close, self._is_closing = close, False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._held:
            data, self._held = self._held + bytes(data), b""
        elif _is_head(data):
            self._held = bytes(data)
            asyncio.get_running_loop().call_soon(self._flush)
            return
        if data:
            self._transport.write(data)

    def _flush(self) -> None:
        if self._held:
            self.write(b"")

    def close(self) -> None:
        self._flush()
        self._is_closing = True
        self._close()

    def abort(self) -> None:
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._is_closing or self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self._transport.get_extra_info(name, default)


def _is_head(data: bytes | bytearray | memoryview) -> bool:
    return isinstance(data, bytes) and data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n")
