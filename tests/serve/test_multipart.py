"""Forms are read as clients send them, and what is no form is refused in linear time."""

from __future__ import annotations

import time

import httpx
import pytest

from brise.errors import RequestError
from brise.serve.multipart import MAX_PARTS, FormPart, read_form

KIND = "multipart/form-data; boundary=xyz"


def form(*parts: tuple[str, bytes], end: bytes = b"--xyz--\r\n") -> bytes:
    return b"".join(b"--xyz\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (head.encode(), body)
                    for head, body in parts) + end


def test_a_form_of_httpx() -> None:
    request = httpx.Request("POST", "http://x", data={"model": "m", "name": 'a"b'},
                            files={"file": ("s.wav", b"RIFF\r\n--\r\n\0\xff")})
    parts = read_form(request.headers["content-type"], request.read())
    assert {part.name: (part.content, part.is_file) for part in parts} == {
        "model": (b"m", False), "name": (b'a"b', False), "file": (b"RIFF\r\n--\r\n\0\xff", True)}


@pytest.mark.parametrize("kind", [KIND, 'Multipart/Form-Data; charset=utf-8; boundary="xyz"',
                                  "multipart/form-data;boundary=xyz; x=y"])
def test_spellings_of_the_content_type(kind: str) -> None:
    assert read_form(kind, form(('name="a"', b"1"), ('name="b"; filename="f"', b""))) == (
        FormPart("a", b"1", False), FormPart("b", b"", True))


def test_a_preamble_spaces_and_other_headers_are_passed_over() -> None:
    body = (b"hello\r\n--xyz \t\r\nX-A: b\r\ncontent-disposition: form-data; name=\"a\"\r\nContent-Type: text/plain\r\n"
            b"\r\n1\r\n--xyz--")
    assert read_form(KIND, body) == (FormPart("a", b"1", False),)
    assert read_form(KIND, b"--xyz--") == ()


@pytest.mark.parametrize(("kind", "body", "message"), [
    ("multipart/form-data", b"", "names no boundary"), (KIND, b"nothing", "does not hold the boundary"),
    ("multipart/form-data; boundary=" + "x" * 71, b"", "names no boundary"),
    (KIND, form(('name="a"', b"1"), end=b""), "ends before its last boundary"),
    (KIND, b"--xyzabc\r\n\r\n--xyz--", "not at the end of its line"),
    (KIND, b"--xyz\r\nX: y\r\n\r\n1\r\n--xyz--", "has no name"),
    (KIND, b"--xyz\r\n" + b"X" * 5000 + b"\r\n\r\n1\r\n--xyz--", "no end of its headers"),
    (KIND, form(*[('name="a"', b"")] * (MAX_PARTS + 1)), "more than 64 parts")])
def test_what_is_no_form_is_refused(kind: str, body: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_form(kind, body)


def test_a_field_is_short_and_utf_8() -> None:
    with pytest.raises(RequestError, match="allowed are 65536"):
        FormPart("a", b"x" * 70000, False).text()
    with pytest.raises(RequestError, match="not UTF-8"):
        FormPart("a", b"\xff", False).text()


@pytest.mark.parametrize("piece", [b"\r\n--xy", b"\r\n--xyz", b"--xyz\r\n", b"\r\n\r\n", b"\r\n"])
def test_no_body_takes_more_than_linear_time(piece: bytes) -> None:
    body = form(('name="a"', b"1"), end=b"") + b"--xyz\r\n" + piece * (4_000_000 // len(piece))
    start = time.process_time()
    with pytest.raises(RequestError):
        read_form(KIND, body)
    assert time.process_time() - start < 0.5
