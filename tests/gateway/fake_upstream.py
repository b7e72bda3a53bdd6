"""A fake large model on a real socket. Every request is answered by the next behaviour of its script.

    with fake_upstream() as fake:
        fake.then(refuse(429, headers={"retry-after": "1"}), chat("hello"))
        ... requests to fake.url ...
        assert fake.received[0].header("authorization") == "Bearer key"

A behaviour is an async function of a `Peer`; when the script is empty, `fake.default` answers: `chat("hello")`.
Nothing sleeps: a behaviour that has to wait holds at a `Hold`, which the test releases.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import h11

from brise.demo.child import reserved_port
from tests.gateway.fake_answers import chat_body, chat_events, encode
from tests.waiting import LIMIT_S

Behaviour = Callable[["Peer"], Awaitable[None]]


@dataclass(frozen=True)
class Received:
    """A request as it came over the wire."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]  # names in lower case
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for known, value in self.headers if known == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Hold:
    """Where a behaviour waits until the test says go on. `reached` is set when it is there, and `on_reached` called."""

    def __init__(self) -> None:
        self.reached, self._released = threading.Event(), threading.Event()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._lock = threading.Lock()
        self.on_reached: Callable[[], object] = lambda: None

    def release(self) -> None:
        with self._lock:
            self._released.set()
            for loop, event in self._waiting:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(event.set)

    async def wait(self) -> None:
        event = asyncio.Event()
        with self._lock:
            self._waiting.append((asyncio.get_running_loop(), event))
            if self._released.is_set():
                event.set()
        self.reached.set()
        self.on_reached()
        await event.wait()


class Peer:
    """The server's end of one request. What is written here is on the wire, right or wrong."""

    def __init__(self, received: Received, writer: asyncio.StreamWriter) -> None:
        self.received, self._writer = received, writer
        self.keeps_open = True
        self._is_chunked = False

    async def raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def start(self, status: int = 200, headers: Mapping[str, str] | None = None, *,
                    length: int | None = None) -> None:
        """Status and headers; without `length` the body is chunked."""
        self._is_chunked = length is None
        framing = {"transfer-encoding": "chunked"} if length is None else {"content-length": str(length)}
        named = {**(headers or {}), **framing}
        lines = [f"HTTP/1.1 {status} Fake", *(f"{name}: {value}" for name, value in named.items())]
        await self.raw("\r\n".join((*lines, "", "")).encode("latin-1"))

    async def send(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)

    async def end(self) -> None:
        if self._is_chunked:
            await self.raw(b"0\r\n\r\n")

    def close(self) -> None:
        """Ends the connection after what was written."""
        self.keeps_open = False

    def reset(self) -> None:
        """Ends it with a TCP reset, as a machine does that falls over."""
        self.keeps_open = False
        endpoint: socket.socket = self._writer.get_extra_info("socket")
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@dataclass
class FakeUpstream:
    """What the test sees of a running fake."""

    port: int
    received: list[Received] = field(default_factory=list)
    gone: list[Received] = field(default_factory=list)  # requests whose client went away before their answer was over
    default: Behaviour = field(default_factory=lambda: chat("hello"))
    num_connections: int = 0  # opened so far
    tls: ssl.SSLContext | None = None
    _script: deque[Behaviour] = field(default_factory=deque)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}/v1"

    def then(self, *behaviours: Behaviour) -> None:
        """The next requests, in the order in which they come, are answered like this."""
        self._script.extend(behaviours)

    def stop(self) -> None:
        """Refuses connections and ends those that are there, as a server that has died."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(LIMIT_S)

    def start(self) -> None:
        """Listens again, on the same port."""
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(LIMIT_S)

    async def _start(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self._server = await asyncio.start_server(self._connection, sock=listener, backlog=1024, ssl=self.tls)

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._server = None

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.num_connections += 1
        try:
            await self._serve(reader, writer)
        except asyncio.CancelledError:
            pass  # the fake is stopped: its connections end
        finally:
            self._tasks.discard(task)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        early = b""  # of the next request, which came before this one's answer was over
        while (received := await _request(reader, early)) is not None:
            self.received.append(received)
            behaviour = self._script.popleft() if self._script else self.default
            peer = Peer(received, writer)
            answering = asyncio.ensure_future(behaviour(peer))
            next_byte = asyncio.ensure_future(reader.read(1))
            try:
                await asyncio.wait((answering, next_byte), return_when=asyncio.FIRST_COMPLETED)
                if not answering.done() and not _has_left(next_byte):
                    await asyncio.wait((answering,))
                if not answering.done() or isinstance(answering.exception(), OSError):
                    self.gone.append(received)
                    return
                answering.result()
                if not peer.keeps_open:
                    return
                early = await _cancelled(next_byte)
            finally:
                for task in (answering, next_byte):
                    task.cancel()
                await asyncio.gather(answering, next_byte, return_exceptions=True)


def _has_left(next_byte: asyncio.Future[bytes]) -> bool:
    return next_byte.done() and (next_byte.exception() is not None or not next_byte.result())


async def _cancelled(next_byte: asyncio.Future[bytes]) -> bytes:
    """The byte, if it was read before it could be cancelled."""
    next_byte.cancel()
    await asyncio.wait((next_byte,))  # to await it itself would swallow the end of the one who waits
    if next_byte.cancelled() or isinstance(next_byte.exception(), OSError):
        return b""
    return next_byte.result()


async def _request(reader: asyncio.StreamReader, early: bytes) -> Received | None:
    """The next request of a connection, None at its end."""
    connection = h11.Connection(h11.SERVER)
    if early:
        connection.receive_data(early)
    request, body = None, bytearray()
    while True:
        match connection.next_event():
            case h11.NEED_DATA:
                try:
                    data = await reader.read(65536)
                except OSError:
                    return None
                if not data and request is None:
                    return None
                connection.receive_data(data)
            case h11.Request() as request:
                pass
            case h11.Data(data=data):
                body += data
            case h11.EndOfMessage():
                assert request is not None
                headers = tuple((name.decode(), value.decode("latin-1")) for name, value in request.headers)
                return Received(request.method.decode(), request.target.decode("latin-1"), headers, bytes(body))
            case _:
                return None


@contextmanager
def fake_upstream(tls: ssl.SSLContext | None = None) -> Iterator[FakeUpstream]:
    """A fake that runs, in an event loop and thread of its own, until the block ends."""
    with reserved_port() as port:  # it is this fake's while it is stopped, too
        yield from _running(FakeUpstream(port, tls=tls))


def _running(fake: FakeUpstream) -> Iterator[FakeUpstream]:
    thread = threading.Thread(target=fake._loop.run_forever, name="fake-upstream")
    thread.start()
    try:
        fake.start()
        yield fake
    finally:
        fake.stop()
        fake._loop.call_soon_threadsafe(fake._loop.stop)
        thread.join(LIMIT_S)
        fake._loop.close()


def answer(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Behaviour:
    """A whole answer: an object as JSON, bytes as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = {} if isinstance(body, bytes) else {"content-type": "application/json"}

    async def behave(peer: Peer) -> None:
        await peer.start(status, {**kind, **(headers or {})}, length=len(data))
        await peer.raw(data)
    return behave


def refuse(status: int, message: str = "no", headers: Mapping[str, str] | None = None) -> Behaviour:
    """An error in OpenAI's shape."""
    return answer({"error": {"message": message, "type": "fake_error", "param": None, "code": "fake"}}, status, headers)


def chat(text: str = "", calls: Sequence[tuple[str, str]] = (), *, hold: Hold | None = None,
         hold_after: int = 1) -> Behaviour:
    """A chat's answer, as a stream if one is asked for: a word an event. It waits at `hold` after so many events."""
    async def behave(peer: Peer) -> None:
        if not peer.received.json.get("stream"):
            if hold is not None:
                await hold.wait()
            await answer(chat_body(text, calls))(peer)
            return
        wants_usage = (peer.received.json.get("stream_options") or {}).get("include_usage")
        await events(chat_events(text, calls, with_usage=bool(wants_usage)), hold=hold, hold_after=hold_after)(peer)
    return behave


def events(data: Sequence[object], *, hold: Hold | None = None, hold_after: int = 1, ends: bool = True) -> Behaviour:
    """A stream of server-sent events: objects as JSON, strings as they are, bytes without `data: ` before them.

    Without `ends` it is cut after the last.
    """
    async def behave(peer: Peer) -> None:
        await peer.start(200, {"content-type": "text/event-stream; charset=utf-8"})
        for number, each in enumerate(data):
            if hold is not None and number == hold_after:
                await hold.wait()
            await peer.send(encode(each))
        if ends:
            await peer.end()
        else:
            peer.reset()
    return behave


def cut(behaviour: Behaviour, after_bytes: int, *, reset: bool = False) -> Behaviour:
    """The same answer, whose connection ends after so many bytes on the wire, headers included."""
    async def behave(peer: Peer) -> None:
        short = _Short(peer, after_bytes)
        with suppress(_CutError):
            await behaviour(short)
        peer.keeps_open = False
        if reset:
            peer.reset()
    return behave


def hang(hold: Hold) -> Behaviour:
    """Takes the request, and says nothing until it is released; then it ends the connection."""
    async def behave(peer: Peer) -> None:
        await hold.wait()
        peer.close()
    return behave


def raw(data: bytes) -> Behaviour:
    """Writes these bytes, whatever they are, and ends the connection."""
    async def behave(peer: Peer) -> None:
        await peer.raw(data)
        peer.close()
    return behave


class _CutError(Exception):
    """So many bytes were written."""


class _Short(Peer):
    """Writes so many bytes, and no more."""

    def __init__(self, peer: Peer, left: int) -> None:
        super().__init__(peer.received, peer._writer)
        self._left = left

    async def raw(self, data: bytes) -> None:
        await super().raw(data[:self._left])
        self._left -= len(data)
        if self._left <= 0:
            raise _CutError
