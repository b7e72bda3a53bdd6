"""A hosted model for the gateway's benches, which fails as often as it is told.

usage: python bench/faulty_upstream.py PORT [--faults SHARE] [--seed N] [--words N] [--gap-ms MS]

The faults, all as likely: 503, 429, the connection ends before the answer or in the middle of it, an event that is no
JSON, an error event, and an answer that stalls for good. Same seed, same faults in the order of the requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Sequence

FAULTS = ("503", "429", "cut before", "cut within", "no JSON", "error event", "stall")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--words", type=int, default=8)
    parser.add_argument("--gap-ms", type=float, default=5.0)
    asyncio.run(_serve(parser.parse_args()))


async def _serve(options: argparse.Namespace) -> None:
    chance = random.Random(options.seed)

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await _one(reader, writer, options, chance):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", options.port, backlog=1024, reuse_address=True)
    await server.serve_forever()


async def _one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, options: argparse.Namespace,
               chance: random.Random) -> bool:
    """One request; whether the connection goes on."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
    body = json.loads(await reader.readexactly(length) or b"{}")
    fault = chance.choice(FAULTS) if chance.random() < options.faults else None
    if fault in ("503", "429"):
        _whole(writer, int(fault), {"error": {"message": "try later", "type": "server_error"}})
        return True
    if fault == "cut before":
        return False
    if body.get("stream"):
        return await _stream(reader, writer, options, fault)
    await asyncio.sleep(options.words * options.gap_ms / 1000)
    if fault is not None:
        if fault == "stall":
            await reader.read(1)  # until the gateway has had enough
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9999\r\n\r\n{")
        return False
    message = {"role": "assistant", "content": "".join(_words(options.words))}
    _whole(writer, 200, {"id": "c", "object": "chat.completion", "created": 1, "model": "big-2026",
                         "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                         "usage": {"prompt_tokens": 9, "completion_tokens": options.words, "total_tokens": 9}})
    return True


async def _stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, options: argparse.Namespace,
                  fault: str | None) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    _event(writer, _chunk({"role": "assistant", "content": ""}))
    for number, word in enumerate(_words(options.words)):
        await asyncio.sleep(options.gap_ms / 1000)
        if fault is not None and number == options.words // 2:
            return await _break_off(reader, writer, fault)
        _event(writer, _chunk({"content": word}))
        await writer.drain()
    _event(writer, _chunk({}, "stop"))
    _event(writer, "[DONE]")
    writer.write(b"0\r\n\r\n")
    return True


async def _break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: str) -> bool:
    match fault:
        case "no JSON":
            _event(writer, "please hold the line")
        case "error event":
            _event(writer, json.dumps({"error": {"message": "overloaded", "type": "server_error"}}))
        case "stall":
            await reader.read(1)
    return False


def _words(number: int) -> Sequence[str]:
    return [f" word{index}" for index in range(number)]


def _chunk(delta: object, finish: str | None = None) -> str:
    return json.dumps({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "big-2026",
                       "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def _event(writer: asyncio.StreamWriter, data: str) -> None:
    event = f"data: {data}\n\n".encode()
    writer.write(b"%x\r\n%b\r\n" % (len(event), event))


def _whole(writer: asyncio.StreamWriter, status: int, body: object) -> None:
    data = json.dumps(body).encode()
    writer.write(b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                 % (status, len(data), data))


if __name__ == "__main__":
    main()
