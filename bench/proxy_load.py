"""The load of bench/proxy.py: requests at random moments (Poisson), whether or not the ones before are answered.

A time is counted from the moment at which a request was to be sent, so a server that holds up the next request does not
hide it. Connections are kept and shared, as clients' pools do.

usage: python bench/proxy_load.py URL[,URL...] RATE SECONDS SEED KEY [--stream]
It prints JSON: seconds to the first and the last byte of each answer.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

WORDS = 150  # of the prompt


@dataclass
class Times:
    """Seconds from the moment that was meant, of every request; and how late the load itself was."""

    first_s: list[float] = field(default_factory=list)
    last_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    num_failed: int = 0


def main() -> None:
    url, rate, seconds, seed = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    gc.disable()  # its pauses are the client's, not the server's
    times = asyncio.run(load(url, rate, seconds, seed, sys.argv[5], streams="--stream" in sys.argv))
    print(json.dumps(vars(times)))


async def load(url: str, rate: float, seconds: float, seed: int, key: str, *, streams: bool) -> Times:
    clients = [client_of(each, key, streams) for each in url.split(",")]
    chance, times, tasks = random.Random(seed), Times(), set[asyncio.Task[None]]()
    begun = at = time.perf_counter() + 0.05
    while at < begun + seconds:
        await asyncio.sleep(max(at - time.perf_counter(), 0))
        task = asyncio.create_task(chance.choice(clients).ask(at, times))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        at += chance.expovariate(rate)
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    for client in clients:
        client.close()
    return times


def client_of(url: str, key: str, streams: bool) -> Client:
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    return Client(parts.hostname, parts.port, request(parts.path, parts.netloc, key, streams))


def request(path: str, host: str, key: str, streams: bool) -> bytes:
    body = json.dumps({"model": "big", "temperature": 0, **({"stream": True} if streams else {}), "messages": [
        {"role": "system", "content": "You are an assistant in a car."},
        {"role": "user", "content": " ".join(f"word{number}" for number in range(WORDS))}]}).encode()
    return (f"POST {path}/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
            f"authorization: Bearer {key}\r\naccept: application/json\r\nuser-agent: bench\r\n"
            f"content-length: {len(body)}\r\n\r\n").encode() + body


class Client:
    """Connections that wait for the next request."""

    def __init__(self, host: str, port: int, sent: bytes) -> None:
        self._host, self._port, self._sent = host, port, sent
        self._idle: list[Connection] = []

    async def ask(self, at: float, times: Times) -> None:
        times.late_s.append(time.perf_counter() - at)
        try:
            connection = self._idle.pop() if self._idle else await self._connect()
            first, last, is_good = await connection.ask(self._sent)
        except OSError:
            times.num_failed += 1
            return
        self._idle.append(connection)
        times.num_failed += not is_good
        times.first_s.append(first - at)
        times.last_s.append(last - at)

    async def _connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, self._host, self._port)
        return connection

    def close(self) -> None:
        for connection in self._idle:
            connection.transport.close()


class Connection(asyncio.Protocol):
    """One request at a time. It knows an answer's end, and nothing else of HTTP."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self._done = transport, asyncio.get_running_loop().create_future()

    async def ask(self, sent: bytes) -> tuple[float, float, bool]:
        """Times of the first and the last byte, and whether the status is 200."""
        self._done = asyncio.get_running_loop().create_future()
        self._read, self._first = bytearray(), 0.0
        self.transport.write(sent)
        return await self._done

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._first = self._first or now
        self._read += data
        head, _, body = bytes(self._read).partition(b"\r\n\r\n")
        lowered = head.lower()
        is_over = self._read.endswith(b"0\r\n\r\n") if b"chunked" in lowered else (
            len(body) == int(lowered.partition(b"content-length:")[2].partition(b"\r\n")[0] or -1))
        if is_over and not self._done.done():
            self._done.set_result((self._first, now, head.startswith(b"HTTP/1.1 200")))

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(ConnectionResetError("the server ended the connection"))


if __name__ == "__main__":
    main()
