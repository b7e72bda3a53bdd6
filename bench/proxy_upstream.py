"""A hosted model for bench/proxy.py that takes next to no time: fixed answers, written in one piece an event.

usage: python bench/proxy_upstream.py [EVENTS] [GAP_MS]      prints its port
"""

from __future__ import annotations

import asyncio
import json
import sys

TEXT = "The quick brown fox jumps over the lazy dog and goes on to the next field."


def main() -> None:
    num_events = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    gap_s = float(sys.argv[2]) / 1000 if len(sys.argv) > 2 else 0.0
    asyncio.run(serve(num_events, gap_s))


async def serve(num_events: int, gap_s: float) -> None:
    whole, plain, counted = answer(), events(num_events), events(num_events, counts=True)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Peer(whole, plain, counted, gap_s), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class Peer(asyncio.Protocol):
    """Looks for no more of a request than where it ends, and whether it wants a stream and its count of tokens."""

    def __init__(self, whole: bytes, plain: list[bytes], counted: list[bytes], gap_s: float) -> None:
        self._whole, self._plain, self._counted, self._gap_s, self._read = whole, plain, counted, gap_s, b""
        self._pieces = plain

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        if not end:
            return
        lowered = head.lower()
        length = int(lowered.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if len(body) < length:
            return
        self._read = body[length:]
        if b'"stream":true' in body.replace(b" ", b""):
            self._pieces = self._counted if b'"include_usage":true' in body.replace(b" ", b"") else self._plain
            self._next(0)
        else:
            self._transport.write(self._whole)

    def _next(self, number: int) -> None:
        """One event after the other, each in a turn of the loop of its own: so they come apart."""
        if self._transport.is_closing():
            return
        self._transport.write(self._pieces[number])
        if number + 1 < len(self._pieces):
            loop = asyncio.get_running_loop()
            loop.call_later(self._gap_s, self._next, number + 1)


def answer() -> bytes:
    """The answer in one piece, head and all."""
    body = json.dumps({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "big-2026", "system_fingerprint": "fp",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 200, "completion_tokens": 20, "total_tokens": 220}}).encode()
    return (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_1\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body))


def events(number: int, *, counts: bool = False) -> list[bytes]:
    """The answer as a stream of so many words, with its count of tokens as OpenAI sends it if that is asked for."""
    def chunk(delta: object, finish: str | None = None) -> bytes:
        return event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}], None)

    def event(choices: list[object], usage: object) -> bytes:
        data = json.dumps({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "big-2026",
                           "system_fingerprint": "fp", "choices": choices, **({"usage": usage} if counts else {})})
        return framed(f"data: {data}\n\n".encode())

    def framed(data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data)

    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    count = [event([], {"prompt_tokens": 200, "completion_tokens": number})] if counts else []
    words = [chunk({"content": f" word{n}"}) for n in range(number)]
    return [head + chunk({"role": "assistant", "content": ""}), *words, chunk({}, "stop"), *count,
            framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"]


if __name__ == "__main__":
    main()
