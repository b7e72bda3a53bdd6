"""Request bodies are read as bytes or JSON, within limits on type, size and time."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from brise.errors import RequestError
from brise.files import long_json
from brise.gateway import client_body
from brise.text.json_text import Json, parse_json

T = TypeVar("T")


class BodyTooLargeError(RequestError):
    """The body is larger than the server allows."""

    status = 413


class BodyTimeoutError(RequestError):
    """The client did not send its body in time."""

    status = 408


class MediaTypeError(RequestError):
    """The body is not declared as JSON."""

    status = 415


async def read_json(request: Request, max_bytes: int, timeout_s: float, *, is_declared: bool = True) -> Json:
    """The JSON in the body of a request. RequestError if there is anything wrong with it, or with its type, unless
    it need not be declared as JSON."""
    return await read_parsed(request, max_bytes, timeout_s, lambda value: value, is_declared=is_declared)


async def read_parsed(request: Request, max_bytes: int, timeout_s: float, parse: Callable[[Json], T], *,
                      is_declared: bool = True) -> T:
    """What `parse` makes of the JSON in the body of a request; see `read_json`.

    A body that takes long to read is parsed in a thread, so that the other clients need not wait for it.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if is_declared and media_type != "application/json":
        # Web pages may send other types to any address without a CORS preflight, but not JSON.
        raise MediaTypeError(f"the content type is {media_type!r}, it must be 'application/json'",
                             code="unsupported_media_type", hint="curl -H 'Content-Type: application/json'")
    body = await _decoded(request, await read_bytes(request, max_bytes, timeout_s), max_bytes)
    if long_json.is_long(body):
        return await asyncio.to_thread(lambda: parse(parse_json(body)))
    return parse(parse_json(body))


async def _decoded(request: Request, body: bytes, max_bytes: int) -> bytes:
    """The body without its content codings, and without a byte order mark. The limit counts for what comes out, too."""
    if "content-encoding" in request.headers:
        _, body = await asyncio.to_thread(client_body.decompressed, request.headers.raw, body, max_bytes)
    return body.removeprefix(codecs.BOM_UTF8)


async def read_bytes(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """The body as bytes, of any content type."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(request, max_bytes)
    except TimeoutError:
        message = f"the body did not arrive within {timeout_s:g} s"
        raise BodyTimeoutError(message, code="request_timeout") from None


class Replay:
    """Gives a body that was already read to the next application."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._message: Mapping[str, Any] | None = {"type": "http.request", "body": body, "more_body": False}
        self._receive = receive

    async def receive(self) -> Message:
        message, self._message = self._message, None
        return dict(message) if message is not None else await self._receive()


async def _read(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise _too_large(max_bytes)
    except ClientDisconnect:
        raise RequestError("the client went away before its body was complete", code="invalid_json") from None
    return bytes(body)


def _too_large(max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is larger than {max_bytes} bytes", code="body_too_large")
