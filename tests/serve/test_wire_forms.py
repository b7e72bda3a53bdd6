"""Requests in the forms that HTTP and JSON allow: compressed, with a byte order mark, with an absolute target."""

from __future__ import annotations

import gzip
import json
import socket
import zlib
from collections.abc import Iterator

import httpx
import pytest

from brise.serve.serving import ServeSettings
from tests.serve.live import Live, live
from tests.waiting import LIMIT_S

CHAT = json.dumps({"model": "stub", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}).encode()
BOM = b"\xef\xbb\xbf"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(settings=ServeSettings(max_body_bytes=65536)) as running:
        yield running


@pytest.mark.parametrize(("coding", "body"), [
    ("gzip", gzip.compress(CHAT)), ("X-GZIP", gzip.compress(CHAT)), ("deflate", zlib.compress(CHAT)),
    ("identity", CHAT), ("gzip", gzip.compress(BOM + CHAT)), ("", BOM + CHAT)])
def test_a_body_is_decoded(server: Live, coding: str, body: bytes) -> None:
    headers = {**JSON, **({"content-encoding": coding} if coding else {})}
    answer = server.post("/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 200, answer.text


def test_a_coding_that_is_not_read_is_refused_with_those_that_are(server: Live) -> None:
    answer = server.post("/v1/chat/completions", content=CHAT, headers={**JSON, "content-encoding": "br"})
    assert answer.status_code == 415 and "gzip" in answer.headers["accept-encoding"]


def test_a_small_body_that_expands_without_end_is_too_large(server: Live) -> None:
    bomb = gzip.compress(b"[" * (1 << 24))
    assert len(bomb) < 65536
    answer = server.post("/v1/chat/completions", content=bomb, headers={**JSON, "content-encoding": "gzip"})
    assert answer.status_code == 413


def status(server: Live, target: str) -> int:
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=LIMIT_S) as opened:
        opened.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return int(opened.makefile("rb").readline().split()[1])


@pytest.mark.parametrize(("target", "expected"), [
    ("http://localhost/v1/models", 200), ("HTTP://127.0.0.1:80/v1/models/stub", 200), ("http://localhost/nowhere", 404),
    ("http://me@localhost/v1/models", 400), ("http://localhost/v1/../models", 400)])
def test_of_an_absolute_target_the_path_counts(server: Live, target: str, expected: int) -> None:
    assert status(server, target) == expected


def test_models_with_a_slash_is_the_list(server: Live) -> None:
    assert server.get("/v1/models/").json() == server.get("/v1/models").json()


def test_web_pages_of_named_origins_may_use_the_server() -> None:
    asked = {"origin": "http://app.example.com", "access-control-request-method": "POST",
             "access-control-request-headers": "content-type,authorization"}
    with live(settings=ServeSettings(cors_origins=("http://app.example.com",))) as server:
        answer = httpx.options(f"{server.url}/v1/chat/completions", headers=asked, trust_env=False)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "http://app.example.com"
        read = server.post("/v1/chat/completions", content=CHAT, headers={**JSON, "origin": "http://app.example.com"})
        assert read.headers["access-control-allow-origin"] == "http://app.example.com"
        asked["origin"] = "http://b.example"
        other = httpx.options(f"{server.url}/v1/models", headers=asked, trust_env=False)
        assert other.status_code == 400


def test_without_the_option_they_may_not(server: Live) -> None:
    answer = server.get("/v1/models", headers={"origin": "http://app.example.com"})
    assert "access-control-allow-origin" not in answer.headers
