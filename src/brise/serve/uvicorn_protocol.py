"""CoalescingProtocol sends the head of a response together with the first bytes of its body.

uvicorn writes them separately. Each write is a system call and a packet, a tenth of the cost of an answer.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


class CoalescingProtocol(H11Protocol):
    """uvicorn's HTTP protocol over a transport that holds back heads of responses."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_CoalescingTransport(transport))


class _CoalescingTransport(asyncio.Transport):
    """Holds a head until the next write, or until the next iteration of the event loop."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport, self._held = transport, b""

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
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self._transport.get_extra_info(name, default)


def _is_head(data: bytes | bytearray | memoryview) -> bool:
    return isinstance(data, bytes) and data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n")
