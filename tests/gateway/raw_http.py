"""Requests that no client library would send, byte by byte."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.waiting import LIMIT_S


@dataclass(frozen=True)
class RawAnswer:
    """Status, headers (names in lower case) and body of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def send(url: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None,
         method: str = "POST") -> RawAnswer:
    """Sends one request with this target, as it is, and reads the answer."""
    where = urlsplit(url)
    named = {"host": "localhost", "connection": "close", "content-length": str(len(body)), **(headers or {})}
    head = "\r\n".join((f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items()), "", ""))
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=LIMIT_S) as connection:
        connection.sendall(head.encode("latin-1") + body)
        response = http.client.HTTPResponse(connection, method=method)
        response.begin()
        return RawAnswer(response.status, {name.lower(): value for name, value in response.getheaders()},
                         response.read())
