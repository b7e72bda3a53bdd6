"""Connections to the upstream, and the pool of those that wait for the next request.

httpcore's pool asks the kernel about every idle connection for every request, so under load it spends its time on that;
here the event loop reports a lost connection. h11 reads the heads, framing.py the bodies. Waiting has a limit, for
which a connection has one timer: another one for each event took a tenth of what the event takes.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

import h11

from brise.gateway.framing import Body, FramingError
from brise.gateway.request import Headers

MOST_IDLE, IDLE_S = 128, 55.0  # many servers close idle connections after a minute
MAX_HEAD_BYTES = 256 << 10
TUNNEL_S = 600.0  # whoever connects waits for less
UNREAD_BYTES = 256 << 10  # received but not read yet; more makes the sender wait


class LostError(Exception):
    """The connection ended before its answer did."""


class NotHttpError(Exception):
    """What came is not HTTP/1.1."""


@dataclass(frozen=True)
class Address:
    """Where to connect. `proxy` is host, port and the value of Proxy-Authorization, or b""."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    proxy: tuple[str, int, bytes] | None = None


class Pool:
    """Connections to one address. The one used last is used next, so that the others can expire."""

    def __init__(self, address: Address, now: Callable[[], float] = time.monotonic) -> None:
        self._address, self._now = address, now
        self._idle: list[Connection] = []

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def take(self) -> Connection | None:
        """An idle one that is still open, or None."""
        self._drop_old()
        return self._idle.pop() if self._idle else None

    async def connect(self) -> Connection:
        """A new one; OSError if none can be made."""
        address = self._address
        loop = asyncio.get_running_loop()
        host, port = (address.host, address.port) if address.proxy is None else address.proxy[:2]
        tls = address.tls if address.proxy is None else None
        transport, connection = await loop.create_connection(
            lambda: Connection(self._forget), host, port, ssl=tls, happy_eyeballs_delay=0.25)
        if address.proxy is not None and address.tls is not None:
            try:
                await connection.tunnel(f"{address.host}:{address.port}".encode(), address.proxy[2])
                secured = await loop.start_tls(transport, connection, address.tls, server_hostname=address.host)
                assert secured is not None
                connection.connection_made(secured)
            except BaseException:
                transport.abort()
                raise
        return connection

    def give_back(self, connection: Connection) -> None:
        """Keeps it for the next request if it can take one; otherwise ends it."""
        if len(self._idle) < MOST_IDLE and connection.is_renewed():
            connection.idle_since_s = self._now()
            self._idle.append(connection)
        else:
            connection.abort()

    def close(self) -> None:
        """Ends the idle ones."""
        while self._idle:
            self._idle.pop().abort()

    def _drop_old(self) -> None:
        while self._idle and self._now() - self._idle[0].idle_since_s > IDLE_S:
            self._idle.pop(0).abort()

    def _forget(self, connection: Connection) -> None:
        """The other side closed it, or sent something unasked."""
        if connection in self._idle:
            self._idle.remove(connection)


class Connection(asyncio.Protocol):
    """One connection: one request after the other."""

    def __init__(self, on_loss: Callable[[Connection], None]) -> None:
        self._on_loss = on_loss
        self._transport: asyncio.Transport | None = None
        self._head: h11.Connection | None = None  # of the request that runs, until its answer's head is read
        self._body: Body | None = None
        self._received, self._is_paused = bytearray(), False
        self._waiting: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._end_s = 0.0  # of waiting, by the event loop's clock
        self._is_lost, self._error, self._keeps_open = False, "", True
        self._method = ""
        self.idle_since_s = 0.0
        self.num_requests = 0

    def is_renewed(self) -> bool:
        """Makes it ready for another request; False if its last answer was not read to the end, or it is closed."""
        body = self._body
        if self._is_lost or not self._keeps_open or body is None or not body.is_over or body.rest or self._received:
            return False
        self._head, self._body = None, None
        return True

    def send(self, method: str, target: bytes, headers: Headers, body: bytes) -> None:
        """Sends the whole request in one piece."""
        assert self._transport is not None and self._head is None
        self.num_requests += 1
        self._method = method
        self._head = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        head = self._head.send(h11.Request(method=method, target=target, headers=list(headers)))
        assert head is not None
        if body:
            self._head.send(h11.Data(data=body))  # it checks the length
        self._head.send(h11.EndOfMessage())
        self._transport.write(head + body)

    async def answer(self, wait_s: float) -> h11.Response:
        """Waits for status and headers; TimeoutError if they do not come in time."""
        head = self._head
        assert head is not None
        end_s = asyncio.get_running_loop().time() + wait_s
        while True:
            if self._received:
                head.receive_data(bytes(self._received))
                self._received.clear()
            try:
                event = head.next_event()
            except h11.RemoteProtocolError as error:
                raise NotHttpError(str(error)) from None
            if isinstance(event, h11.Response):
                return self._begun(head, event)
            if isinstance(event, type):  # NEED_DATA
                if self._is_lost:
                    raise LostError(self._error or "the server ended the connection and did not answer")
                await self._more(end_s)

    async def piece(self, wait_s: float) -> bytes:
        """The next piece of the body, all that has come of it; b"" at its end. TimeoutError if none comes in time."""
        body, end_s = self._body, 0.0
        assert body is not None
        while True:
            data = bytes(self._received)
            self._received.clear()
            try:
                piece = body.feed(data)
            except FramingError as error:
                raise NotHttpError(str(error)) from None
            if piece or body.is_over:
                return piece
            if self._is_lost:
                self._check_end(body)
                return b""
            end_s = end_s or asyncio.get_running_loop().time() + wait_s
            await self._more(end_s)

    async def tunnel(self, target: bytes, authorization: bytes) -> None:
        """Asks a proxy for a tunnel to the server; then the connection is as good as new."""
        headers = [(b"host", target), *([(b"proxy-authorization", authorization)] if authorization else [])]
        self.send("CONNECT", target, headers, b"")
        try:
            answer = await self.answer(TUNNEL_S)
        except (LostError, NotHttpError) as error:
            raise OSError(f"the proxy did not let us through: {error}") from None
        if answer.status_code // 100 != 2:
            raise OSError(f"the proxy did not let us through: status {answer.status_code}")
        self._head, self._body, self.num_requests = None, None, 0

    def abort(self) -> None:
        """Ends it at once."""
        self._is_lost = True
        self._stop_timer()
        if self._transport is not None:
            self._transport.abort()

    def _begun(self, head: h11.Connection, response: h11.Response) -> h11.Response:
        """What comes from here on is the body. A length beside a transfer encoding says nothing, and must not be passed
        on (RFC 9112, 6.3); and whoever sends both is not asked again on this connection."""
        headers = [*response.headers]
        named = b",".join(value for name, value in headers if name == b"connection").lower()
        self._keeps_open = response.http_version >= b"1.1" and b"close" not in named
        try:
            self._body = Body(headers, response.status_code, self._method)
        except FramingError as error:
            raise NotHttpError(str(error)) from None
        self._received[:0] = head.trailing_data[0]
        names = {name for name, _ in headers}
        if not names >= {b"transfer-encoding", b"content-length"}:
            return response
        self._keeps_open = False
        return h11.Response(status_code=response.status_code, reason=response.reason,
                            http_version=response.http_version,
                            headers=[header for header in headers if header[0] != b"content-length"])

    def _check_end(self, body: Body) -> None:
        """The end of the connection ends only an answer without a stated length."""
        try:
            body.end()
        except FramingError:
            raise LostError(self._error or "the server ended the connection in the middle of its answer") from None
        if self._error:
            raise LostError(self._error)

    async def _more(self, end_s: float) -> None:
        """Waits until something has come, or the connection has ended; TimeoutError if neither happens by `end_s`."""
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()
        loop = asyncio.get_running_loop()
        self._waiting, self._end_s = loop.create_future(), end_s
        if self._timer is None or self._timer.when() > end_s:
            self._stop_timer()
            self._timer = loop.call_at(end_s, self._look)
        try:
            await self._waiting
        finally:
            self._waiting = None

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._head is None:  # no request is open
            self._on_loss(self)
            self.abort()
            return
        self._received += data
        if len(self._received) > UNREAD_BYTES and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        self._end("")
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._end(str(error or ""))

    def _end(self, error: str) -> None:
        if self._is_lost:
            return
        self._is_lost, self._error = True, error
        self._stop_timer()
        self._on_loss(self)
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _look(self) -> None:
        """Ends a wait whose time is over. One that began later has the timer set again."""
        self._timer = None
        if self._waiting is None or self._waiting.done():
            return
        loop = asyncio.get_running_loop()
        if loop.time() < self._end_s:
            self._timer = loop.call_at(self._end_s, self._look)
        else:
            self._waiting.set_exception(TimeoutError())

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
