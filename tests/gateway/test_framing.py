"""Bodies end where h11 says that they end, however they are cut into pieces."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from brise.gateway.framing import Body, FramingError

CHUNKED = [(b"transfer-encoding", b"chunked")]


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted(cut % (len(data) + 1) for cut in cuts)
    return [data[begin:end] for begin, end in zip([0, *ends], [*ends, len(data)], strict=True)]


def read(body: Body, pieces: list[bytes]) -> bytes:
    return b"".join(body.feed(piece) for piece in pieces)


def by_h11(headers: list[tuple[bytes, bytes]], data: bytes) -> bytes | None:
    """The body as h11 reads it, None if it finds something wrong or the body is not over."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[(b"host", b"h")]))
    connection.send(h11.EndOfMessage())
    head = b"".join(b"%b: %b\r\n" % header for header in headers)
    connection.receive_data(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + data)
    found = b""
    try:
        while True:
            match connection.next_event():
                case h11.Data(data=piece):
                    found += bytes(piece)
                case h11.EndOfMessage():
                    return found
                case h11.Response():
                    pass
                case _:
                    return None
    except h11.RemoteProtocolError:
        return None


def ours(headers: list[tuple[bytes, bytes]], data: bytes, cuts: list[int]) -> bytes | None:
    body = Body(headers, 200, "GET")
    try:
        found = read(body, pieces_of(data, cuts))
    except FramingError:
        return None
    return found if body.is_over else None


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(0, 500), max_size=12),
       st.binary(max_size=5), st.sampled_from([b"", b";name=value", b" "]), st.booleans())
def test_chunks(chunks: list[bytes], cuts: list[int], behind: bytes, extension: bytes, has_trailers: bool) -> None:
    data = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    data += b"0\r\n" + (b"x-trailer: 1\r\n" if has_trailers else b"") + b"\r\n"
    body = Body(CHUNKED, 200, "GET")
    assert read(body, pieces_of(data + behind, cuts)) == b"".join(chunks)
    assert body.is_over and body.rest == behind
    assert by_h11(CHUNKED, data) == b"".join(chunks)


@given(st.lists(st.sampled_from([b"0", b"3", b"a", b"\r\n", b"\r", b"\n", b"abc", b";", b" ", b"-1", b"\r\n0\r\n\r\n"]),
                max_size=12), st.lists(st.integers(0, 50), max_size=5))
@example([b"0", b"\r\n", b"\n"], [])
@example([b"0", b"\r\n", b"a", b"\n", b"\n"], [])
def test_what_is_no_chunk_is_refused_as_h11_refuses_it(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(parts)
    theirs = by_h11(CHUNKED, data)
    if theirs is not None:
        assert ours(CHUNKED, data, cuts) == theirs
    elif ours(CHUNKED, data, cuts) is not None:
        assert b"\r\n" in data  # h11 also checks what stands in trailers, of which we keep nothing


@given(st.binary(max_size=60), st.binary(max_size=5), st.lists(st.integers(0, 100), max_size=5))
def test_a_stated_length(data: bytes, behind: bytes, cuts: list[int]) -> None:
    body = Body([(b"content-length", str(len(data)).encode())], 200, "GET")
    assert read(body, pieces_of(data + behind, cuts)) == data
    assert body.is_over and body.rest == behind


def test_the_connections_end_ends_a_body_of_no_stated_length_and_no_other() -> None:
    open_ended, stated = Body([], 200, "GET"), Body([(b"content-length", b"4")], 200, "GET")
    assert open_ended.feed(b"abc") == b"abc" and not open_ended.is_over
    open_ended.end()
    assert stated.feed(b"abc") == b"abc"
    with pytest.raises(FramingError, match="cut"):
        stated.end()


@pytest.mark.parametrize(("status", "method"), [(204, "GET"), (304, "GET"), (200, "HEAD")])
def test_answers_without_a_body(status: int, method: str) -> None:
    assert Body([(b"content-length", b"4")], status, method).is_over


@pytest.mark.parametrize("headers", [
    [(b"transfer-encoding", b"gzip, chunked")], [(b"content-length", b"-1")], [(b"content-length", b"1_0")],
    [(b"content-length", b"1"), (b"content-length", b"2")], [(b"content-length", b"9" * 19)]])
def test_headers_that_frame_nothing(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(FramingError):
        Body(headers, 200, "GET")


@pytest.mark.parametrize("data", [b"1" * 20000, b"0\r\nx: " + b"y" * 20000])
def test_lines_without_an_end(data: bytes) -> None:
    with pytest.raises(FramingError, match="too long"):
        Body(CHUNKED, 200, "GET").feed(data)
