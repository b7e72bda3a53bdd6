"""Reads forms (multipart/form-data, RFC 7578) that are in memory already.

    --BOUNDARY CRLF headers CRLF CRLF content CRLF --BOUNDARY ... CRLF --BOUNDARY--

Of a part's headers only `Content-Disposition: form-data; name="..."; filename="..."` is read. Everything is counted, so
that a body of n bytes is read in time proportional to n.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from brise.errors import RequestError

MAX_PARTS = 64
MAX_HEADER_BYTES = 4096  # of one part
MAX_FIELD_BYTES = 64 << 10  # of a field that is no file
MAX_BOUNDARY = 70  # RFC 2046
# A boundary is visible ASCII; in quotes it may hold what stands between parameters.
_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"\r\n]{1,70})"|([^\s";,]{1,70}))\s*(?:;|$)', re.IGNORECASE)
_NAME = re.compile(r';\s*name="((?:[^"\\\r\n]|\\.){0,256})"', re.IGNORECASE)
_FILENAME = re.compile(r';\s*filename\*?=', re.IGNORECASE)


@dataclass(frozen=True)
class FormPart:
    """One field of a form; `is_file` if it came with a name of a file."""

    name: str
    content: bytes
    is_file: bool

    def text(self) -> str:
        """The value of a field; RequestError if it is too long or not UTF-8."""
        if len(self.content) > MAX_FIELD_BYTES:
            raise RequestError(f"{self.name!r} has {len(self.content)} bytes, allowed are {MAX_FIELD_BYTES}",
                               param=self.name)
        try:
            return self.content.decode()
        except UnicodeDecodeError:
            raise RequestError(f"{self.name!r} is not UTF-8", param=self.name, code="invalid_form") from None


def read_form(content_type: str, body: bytes) -> tuple[FormPart, ...]:
    """The parts of a form in their order; RequestError says what is wrong with it."""
    boundary = _BOUNDARY.search(content_type[:1024])
    if boundary is None:
        raise _wrong(f"the content type {content_type[:64]!r} names no boundary of up to {MAX_BOUNDARY} characters")
    mark = b"--" + (boundary[1] or boundary[2]).encode("latin-1", "replace")
    at = body.find(mark) if not body.startswith(mark) else 0
    if at < 0:
        raise _wrong("the body does not hold the boundary that its content type names")
    at += len(mark)
    parts: list[FormPart] = []
    while body[at:at + 2] != b"--":
        start = _line_end(body, at)
        end = body.find(b"\r\n" + mark, max(start - 2, 0))
        if end < 0:
            raise _wrong("the body ends before its last boundary")
        if len(parts) == MAX_PARTS:
            raise _wrong(f"the form has more than {MAX_PARTS} parts")
        parts.append(_part(body, start, end))
        at = end + 2 + len(mark)
    return tuple(parts)


def _line_end(body: bytes, at: int) -> int:
    """The place behind the line of a boundary, which may end in spaces."""
    line = body[at:at + 64]
    stripped = line.lstrip(b" \t")
    if not stripped.startswith(b"\r\n"):
        raise _wrong("a boundary is not at the end of its line")
    return at + len(line) - len(stripped) + 2


def _part(body: bytes, start: int, end: int) -> FormPart:
    head_end = body.find(b"\r\n\r\n", start, min(start + MAX_HEADER_BYTES, end + 4))
    if head_end < 0:
        raise _wrong(f"a part has no end of its headers in {MAX_HEADER_BYTES} bytes")
    disposition = _disposition(body[start:head_end].decode("utf-8", "replace"))
    name = _NAME.search(disposition)
    if name is None:
        raise _wrong("a part has no name: no Content-Disposition: form-data; name=\"...\"")
    return FormPart(name[1].replace('\\"', '"'), body[head_end + 4:end] if head_end + 4 <= end else b"",
                    _FILENAME.search(disposition) is not None)


def _disposition(head: str) -> str:
    """The value of the header that names a part."""
    for line in head.split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-disposition" and value.strip().lower().startswith("form-data"):
            return value
    return ""


def _wrong(what: str) -> RequestError:
    return RequestError(what, code="invalid_form")
