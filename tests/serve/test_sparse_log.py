"""Whoever sends what is no HTTP does not choose the size of the log."""

from __future__ import annotations

import logging
import socket
from urllib.parse import urlsplit

import pytest

from brise.serve.sparse_log import LINE_S, LOGGER, SparseLog
from tests.serve.live import live
from tests.waiting import LIMIT_S


def test_requests_that_are_no_http_are_one_line_and_an_answer_each(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(LOGGER)
    for each in [each for each in logger.filters if isinstance(each, SparseLog)]:
        logger.removeFilter(each)  # of servers of other tests, whose minute has not passed
    with live() as server:
        at = urlsplit(server.url)
        for _ in range(50):
            with socket.create_connection((at.hostname, at.port), timeout=LIMIT_S) as client:
                client.sendall(b"what is this\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.1 400 ")
    assert len([record for record in caplog.records if record.name == LOGGER]) == 1


def test_the_next_line_says_how_many_were_held_back() -> None:
    now_s = [0.0]
    held = SparseLog(lambda: now_s[0])
    records = [logging.LogRecord("x", logging.WARNING, "", 1, "no HTTP", None, None) for _ in range(6)]
    passed = [held.filter(record) for record in records[:5]]
    now_s[0] = LINE_S + 1
    assert passed == [True, *[False] * 4] and held.filter(records[5])
    assert records[5].getMessage() == "no HTTP (4 more since the last such line)"
    assert all(held.filter(logging.LogRecord("x", logging.ERROR, "", 1, "broken", None, None)) for _ in range(3))
