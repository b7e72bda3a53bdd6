"""A connection to an upstream: each wait has its own limit, whatever the one before it had."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from brise.gateway.connection import Connection

HEAD, LONG_S, SHORT_S = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", 60.0, 0.001


class Sink(asyncio.Transport):
    """Takes what is sent."""

    def write(self, data: Any) -> None:
        """Nothing."""

    def abort(self) -> None:
        """Nothing."""


async def begun() -> Connection:
    """A connection whose answer has begun."""
    connection = Connection(lambda lost: None)
    connection.connection_made(Sink())
    connection.send("GET", b"/", [(b"host", b"h")], b"")
    asyncio.get_running_loop().call_soon(connection.data_received, HEAD)
    assert (await connection.answer(LONG_S)).status_code == 200
    return connection


def test_a_long_wait_before_makes_no_short_one_longer() -> None:
    async def waits() -> None:
        connection = await begun()
        asyncio.get_running_loop().call_soon(connection.data_received, b"2\r\nab\r\n")
        assert await connection.piece(LONG_S) == b"ab"
        with pytest.raises(TimeoutError):
            await connection.piece(SHORT_S)

    asyncio.run(waits())


def test_a_short_wait_before_makes_no_long_one_shorter() -> None:
    async def waits() -> None:
        connection, loop = await begun(), asyncio.get_running_loop()
        loop.call_soon(connection.data_received, b"2\r\nab\r\n")
        assert await connection.piece(SHORT_S * 20) == b"ab"
        loop.call_later(SHORT_S * 40, connection.data_received, b"1\r\nc\r\n0\r\n\r\n")
        assert await connection.piece(LONG_S) == b"c" and await connection.piece(LONG_S) == b""
        assert connection.is_renewed()

    asyncio.run(waits())


def test_a_piece_may_come_after_a_wait_that_was_too_short() -> None:
    async def waits() -> None:
        connection = await begun()
        with pytest.raises(TimeoutError):
            await connection.piece(SHORT_S)
        connection.data_received(b"2\r\nab\r\n")
        assert await connection.piece(LONG_S) == b"ab"
        connection.abort()

    asyncio.run(waits())
