"""Connections as clients and attackers make them: silent, too many, half closed, refused while they send."""

from __future__ import annotations

import asyncio
import errno
import http.client
import io
import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import h11
import pytest

from brise.serve import uvicorn_protocol
from brise.serve.app import _AcceptErrors
from brise.serve.serving import ServeSettings
from brise.serve.uvicorn_protocol import most_connections
from tests.engine.stub import stub_model
from tests.serve.live import Live, live
from tests.waiting import LIMIT_S, wait_until

BODY = json.dumps({"model": "stub", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}).encode()
REQUEST = (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
           b"Content-Length: %d\r\n\r\n" % len(BODY)) + BODY


@pytest.fixture
def server() -> Iterator[Live]:
    with live(settings=ServeSettings(max_body_bytes=66_560)) as made:
        yield made


def connect(server: Live) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=LIMIT_S)


def rest(connection: socket.socket) -> bytes:
    pieces = []
    while piece := connection.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def has_answer(connection: socket.socket, end: bytes) -> bool:
    """Whether an answer that holds this comes."""
    seen = b""
    while end not in seen and (piece := connection.recv(1 << 16)):
        seen += piece
    return end in seen


@contextmanager
def answered(server: Live) -> Iterator[http.client.HTTPConnection]:
    """A connection on which one request was answered."""
    connection = http.client.HTTPConnection("127.0.0.1", int(server.url.rpartition(":")[2]), timeout=LIMIT_S)
    connection.request("GET", "/health")
    assert connection.getresponse().read() == b'{"status":"ok"}'
    yield connection
    connection.close()


def test_a_client_that_closes_its_sending_side_is_answered(server: Live) -> None:
    with connect(server) as connection:
        connection.sendall(REQUEST)
        connection.shutdown(socket.SHUT_WR)
        answer = rest(connection)
    assert b"HTTP/1.1 200 OK" in answer and b"Hello there!" in answer


def test_pipelined_requests_are_all_answered_after_a_half_close(server: Live) -> None:
    with connect(server) as connection:
        connection.sendall(REQUEST * 3)
        connection.shutdown(socket.SHUT_WR)
        assert rest(connection).count(b"HTTP/1.1 200 OK") >= 1


def test_a_client_that_is_gone_ends_its_request() -> None:
    with live(stub_model("long " * 400)) as server:
        with connect(server) as connection:
            connection.sendall(REQUEST.replace(b'"temperature": 0', b'"max_tokens":99'))
        server.wait_idle()


def test_half_a_body_and_a_half_close_end_the_connection(server: Live) -> None:
    with connect(server) as connection:
        connection.sendall(REQUEST[:-5])
        connection.shutdown(socket.SHUT_WR)
        assert b"200" not in rest(connection)


@pytest.mark.parametrize("size", [66_561, 400_000, 8_400_000, 40_000_000])
def test_a_refusal_reaches_a_client_that_still_sends(server: Live, size: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(server.url.rpartition(":")[2]), timeout=LIMIT_S)
    connection.request("POST", "/v1/chat/completions", b" " * size, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 413 and json.loads(answer.read())["error"]["code"] == "body_too_large"
    connection.close()


def test_a_refusal_reaches_a_client_that_sends_chunks(server: Live) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", int(server.url.rpartition(":")[2]),
                                            timeout=LIMIT_S)) as connection:
        connection.request("POST", "/v1/chat/completions", (b" " * 1_000_000 for _ in range(8)),
                           {"Content-Type": "application/json"}, encode_chunked=True)
        assert connection.getresponse().status == 413


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat", REQUEST[:60]])
def test_a_head_that_does_not_end_ends_the_connection(server: Live, sent: bytes,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn_protocol, "HEAD_S", 0.05)
    with connect(server) as connection:
        assert is_closed_after(connection, sent)
    monkeypatch.undo()
    with answered(server) as connection:  # a later head, too
        monkeypatch.setattr(uvicorn_protocol, "HEAD_S", 0.05)
        assert is_closed_after(connection.sock, sent or b"G")


def is_closed_after(connection: socket.socket, sent: bytes) -> bool:
    """Whether the server closes it, before it has all of this or afterwards."""
    try:
        connection.sendall(sent)
        return not rest(connection)
    except ConnectionError:
        return True


def test_an_answer_may_take_longer_than_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    with (live(stub_model("Hello there!", on_step=lambda _: time.sleep(0.005))) as server,
          answered(server) as connection):
        monkeypatch.setattr(uvicorn_protocol, "HEAD_S", 0.01)  # from the first byte, with which all others come
        connection.sock.sendall(REQUEST)
        assert has_answer(connection.sock, b"Hello there!")


def test_the_longest_idle_connection_makes_room(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn_protocol, "most_connections", lambda: 8)
    idle = [connect(server) for _ in range(30)]
    for _ in range(5):
        assert server.get("/health").status_code == 200
    wait_until(lambda: len(select.select(idle, [], [], 0)[0]) >= 22)
    assert len(select.select(idle, [], [], 0)[0]) < 30
    for connection in idle:
        connection.close()


def test_the_cap_follows_the_limit_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, most in ((64, 32), (256, 192), (1024, 768), (1 << 20, 8192), (20, 8)):
        monkeypatch.setattr(uvicorn_protocol.resource, "getrlimit", lambda kind, limit=limit: (limit, limit))
        assert most_connections() == most


def test_no_descriptor_left_is_one_line() -> None:
    log, loop = io.StringIO(), asyncio.new_event_loop()
    handler = _AcceptErrors(log)
    for _ in range(1000):
        handler(loop, {"message": "socket.accept() out of system resource",
                       "exception": OSError(errno.EMFILE, "Too many open files")})
    loop.close()
    assert log.getvalue() == "connections wait: Too many open files (the limit of files is that of `ulimit -n`)\n"


@pytest.mark.parametrize("request_line", [b"GET / HTTP/1.1", b"HEAD / HTTP/1.1", b"GET / HTTP/1.0"])
@pytest.mark.parametrize("length", [None, b"9"])
def test_a_response_is_framed_as_h11_frames_it(request_line: bytes, length: bytes | None) -> None:
    headers = [] if length is None else [(b"content-length", length)]
    pieces = [b""] * 3 if request_line.startswith(b"HEAD") else [b"abc", b"", b"defghi"]

    def sent(connection: h11.Connection) -> list[bytes | None]:
        connection.receive_data(request_line + b"\r\nhost: h\r\n\r\n")
        assert isinstance(connection.next_event(), h11.Request)
        events = [h11.Response(status_code=200, headers=headers), *(h11.Data(data=piece) for piece in pieces),
                  h11.EndOfMessage()]
        return [connection.send(event) for event in events]

    assert sent(uvicorn_protocol.QuickConnection(h11.SERVER)) == sent(h11.Connection(h11.SERVER))


def test_a_piece_after_the_end_is_refused() -> None:
    connection = uvicorn_protocol.QuickConnection(h11.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
    connection.next_event()
    for event in (h11.Response(status_code=200, headers=[]), h11.Data(data=b"a"), h11.EndOfMessage()):
        connection.send(event)
    with pytest.raises(h11.LocalProtocolError):
        connection.send(h11.Data(data=b"b"))
