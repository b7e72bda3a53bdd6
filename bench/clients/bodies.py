"""Reads the requests that a run has recorded: one JSON line for each shape of a body, with its client and path.

python bench/clients/bodies.py FOLDER > bodies.jsonl
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h11

LONGEST = 200  # characters of a text that are kept


def main() -> None:
    seen = set()
    for agent, path, body in (request for file in Path(sys.argv[1]).glob("*.requests") for request in requests(file)):
        shape = (path, json.dumps(_shape(body), sort_keys=True))
        if shape not in seen:
            seen.add(shape)
            print(json.dumps({"client": agent, "path": path, "body": _short(body)}))


def requests(file: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """User agent, path and body of each POST; servers.Relay says how the file is laid out."""
    data, start = file.read_bytes(), 0
    while start < len(data):
        end = start + 8 + int.from_bytes(data[start:start + 8])
        yield from _connection(data[start + 8:end])
        start = end


def _connection(sent: bytes) -> Iterator[tuple[str, str, dict[str, Any]]]:
    connection, request, parts = h11.Connection(h11.SERVER), None, list[bytes]()
    connection.receive_data(sent)
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            request, parts = event, []
        elif isinstance(event, h11.Data):
            parts.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            if request.method == b"POST":
                agent = dict(request.headers).get(b"user-agent", b"").decode()
                yield agent, request.target.decode().partition("?")[0], json.loads(b"".join(parts))
            connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is h11.MUST_CLOSE:
                return
            connection.start_next_cycle()
        else:
            return


def _shape(value: Any) -> Any:
    """Names and kinds of values; lists by the shapes in them."""
    if isinstance(value, dict):
        return {name: _shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return sorted({json.dumps(_shape(each), sort_keys=True) for each in value})
    return type(value).__name__


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _short(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_short(each) for each in value]
    return value[:LONGEST] if isinstance(value, str) else value


if __name__ == "__main__":
    main()
