"""The bytes of a request body as JSON: size, depth, encoding and duplicate fields are checked first."""

from __future__ import annotations

import asyncio
import json
import math
from typing import NoReturn, TypeAlias

from starlette.requests import ClientDisconnect, Request

from brise.errors import RequestError

Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"

# Deeper than any message or schema in earnest, far below the recursion limit of Python's parser.
MAX_DEPTH = 64


class BodyTooLargeError(RequestError):
    """The body has more bytes than the server reads."""

    status = 413


class BodyTimeoutError(RequestError):
    """The client did not send its body in time."""

    status = 408


class MediaTypeError(RequestError):
    """The body is not declared as JSON."""

    status = 415


async def read_json(request: Request, max_bytes: int, timeout_s: float) -> Json:
    """The body of a request; every way it can be wrong is a RequestError."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        # A web page may send other types to any address without asking first (CORS), JSON it may not.
        raise MediaTypeError(f"the content type is {media_type!r}, it must be 'application/json'",
                             code="unsupported_media_type", hint="curl -H 'Content-Type: application/json'")
    try:
        async with asyncio.timeout(timeout_s):
            body = await _read(request, max_bytes)
    except TimeoutError:
        message = f"the body did not arrive within {timeout_s:g} s"
        raise BodyTimeoutError(message, code="request_timeout") from None
    return parse_json(body)


def parse_json(body: bytes) -> Json:
    """JSON text as values; duplicate fields, NaN, lone surrogates and deep nesting are refused."""
    try:
        value: Json = json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant,
                                 parse_float=_finite)
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8: byte {error.start}", code="invalid_json") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # JSONDecodeError, or an integer with thousands of digits
        raise RequestError(f"the body is not JSON: {error}", code="invalid_json") from None
    _check(value)
    return value


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


def _check(root: Json) -> None:
    """Without recursion: a hostile body must not choose how deep our stack goes."""
    pending: list[tuple[Json, int]] = [(root, 1)]
    while pending:
        value, depth = pending.pop()
        if isinstance(value, str):
            _check_text(value)
        elif isinstance(value, (list, dict)):
            if depth > MAX_DEPTH:
                raise _too_deep()
            if isinstance(value, dict):
                for name in value:
                    _check_text(name)
            items = value.values() if isinstance(value, dict) else value
            pending.extend((item, depth + 1) for item in items if isinstance(item, (str, list, dict)))


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"a string holds a lone surrogate at character {error.start}; it is not text",
                               code="invalid_json") from None


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                name = name[:64]
                raise RequestError(f"the field {name!r} is given twice", param=name, code="invalid_json")
            seen.add(name)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:32]} is out of the range of a number")
    return number


def _too_deep() -> RequestError:
    return RequestError(f"the body is nested deeper than {MAX_DEPTH} levels", code="invalid_json")


def _too_large(max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is larger than {max_bytes} bytes", code="body_too_large")
