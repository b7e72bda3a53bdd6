"""Which failed requests are sent again, and after how long."""

from __future__ import annotations

from dataclasses import replace
from email.utils import formatdate

import pytest

from brise.gateway import request
from brise.gateway.failure import UpstreamFailure
from brise.gateway.retry import BUDGET, Retries, RetrySettings, retry_after_s

CHAT = request.read("POST", "/v1/chat/completions", b"/v1/chat/completions", [], b'{"model": "big"}')
UPLOAD = request.read("POST", "/v1/files", b"/v1/files", [], b"...")
LIST = request.read("GET", "/v1/files", b"/v1/files", [], b"")
CUT, REFUSED, BUSY = UpstreamFailure("cut", "x"), UpstreamFailure("refused", "x"), UpstreamFailure("status", "x", 429)
NOW_S = 1_767_225_600.0


def retries(chance: float = 1.0) -> Retries:
    return Retries(RetrySettings(retries=2, first_wait_s=0.25, longest_wait_s=5), lambda: chance)


def test_waits_double_and_end_after_two() -> None:
    ours = retries()
    assert [ours.wait_s(CHAT, CUT, number) for number in (1, 2, 3)] == [0.25, 0.5, None]
    assert retries(chance=0.0).wait_s(CHAT, CUT, 1) == 0.125


def test_the_server_says_how_long() -> None:
    assert retries().wait_s(CHAT, replace(BUSY, retry_after_s=3.0), 1) == 3.0
    assert retries().wait_s(CHAT, replace(BUSY, retry_after_s=5.5), 1) is None


@pytest.mark.parametrize(("wanted", "failure", "is_repeated"), [
    (CHAT, BUSY, True), (CHAT, replace(BUSY, may_repeat=False), False), (CHAT, UpstreamFailure("malformed", "x"),
                                                                         False),
    (CHAT, UpstreamFailure("first_byte_timeout", "x"), False), (CHAT, UpstreamFailure("open", "x"), False),
    (UPLOAD, CUT, False), (UPLOAD, BUSY, False), (UPLOAD, REFUSED, True), (LIST, CUT, True)])
def test_only_what_does_no_harm_is_repeated(wanted: request.ClientRequest, failure: UpstreamFailure,
                                            is_repeated: bool) -> None:
    assert (retries().wait_s(wanted, failure, 1) is not None) == is_repeated


def test_an_outage_makes_no_storm() -> None:
    ours = retries()
    assert sum(ours.wait_s(CHAT, CUT, 1) is not None for _ in range(50)) == BUDGET
    for _ in range(5):
        ours.saw_request()
    assert [ours.wait_s(CHAT, CUT, 1) is not None for _ in range(2)] == [True, False]


def test_a_stale_connection_is_nothing_to_wait_for_and_costs_nothing() -> None:
    ours = retries()
    assert {ours.wait_s(CHAT, replace(CUT, is_stale=True), 1) for _ in range(50)} == {0.0}
    assert ours.wait_s(UPLOAD, replace(CUT, is_stale=True), 1) is None


@pytest.mark.parametrize(("name", "value", "seconds"), [
    ("retry-after", "7", 7.0), ("Retry-After", "0.5", 0.5), ("retry-after-ms", "250", 0.25),
    ("retry-after", formatdate(NOW_S + 9, usegmt=True), 9.0), ("retry-after", formatdate(NOW_S - 9, usegmt=True), 0.0),
    ("retry-after", "soon", None), ("retry-after", "nan", None), ("retry-after", "-3", 0.0), ("other", "7", None)])
def test_retry_after_is_seconds_milliseconds_or_a_date(name: str, value: str, seconds: float | None) -> None:
    assert retry_after_s([(name.encode(), value.encode())], lambda: NOW_S) == seconds


def test_a_server_that_says_never_says_nothing() -> None:
    assert retry_after_s([(b"retry-after", b"inf")]) is None and retry_after_s([(b"retry-after", b"nan")]) is None
