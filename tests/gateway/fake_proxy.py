"""A fake forward proxy on a real socket: CONNECT for https, whole URLs for http."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.waiting import LIMIT_S


@dataclass
class FakeProxy:
    """`heads` are what it was asked. With a status other than 200 it lets nobody through."""

    status: int = 200
    port: int = 0
    heads: list[str] = field(default_factory=list)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head.decode("latin-1"))
            method, target, _ = self.heads[-1].split(" ", 2)
            if self.status != 200:
                writer.write(b"HTTP/1.1 %d No\r\ncontent-length: 0\r\n\r\n" % self.status)
            else:
                parts = urlsplit(target if "//" in target else f"//{target}")
                there = await asyncio.open_connection(parts.hostname, parts.port)
                if method == "CONNECT":
                    writer.write(b"HTTP/1.1 200 Established\r\n\r\n")
                else:
                    there[1].write(head)
                await asyncio.gather(_pass(reader, there[1]), _pass(there[0], writer))
            await writer.drain()
        writer.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextmanager
def fake_proxy(status: int = 200) -> Iterator[FakeProxy]:
    """Runs in a thread of its own until the block ends."""
    proxy, loop = FakeProxy(status), asyncio.new_event_loop()

    async def serve() -> None:
        server = await asyncio.start_server(proxy.connection, "127.0.0.1", 0)
        proxy.port = server.sockets[0].getsockname()[1]
        ready.set()
        await stopped.wait()
        server.close()
        connections = asyncio.all_tasks() - {asyncio.current_task()}
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)  # pending at the end of the loop they would warn

    ready, stopped = threading.Event(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), name="fake-proxy")
    thread.start()
    assert ready.wait(LIMIT_S)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(LIMIT_S)
        loop.close()
