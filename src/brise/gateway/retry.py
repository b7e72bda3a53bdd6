"""Retries: whether a failed request is sent again, and after how long."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

from brise.gateway import headers
from brise.gateway.failure import UpstreamFailure
from brise.gateway.request import ClientRequest, Headers

BUSY = frozenset({408, 429, 500, 502, 503, 504, 529})  # "not now"; 529 is Anthropic's
NOTHING_SENT = frozenset({"refused", "connect_timeout"})
BUDGET_SHARE, BUDGET = 0.2, 10.0  # each request adds a fifth of a retry, so an outage causes no storm


@dataclass(frozen=True)
class RetrySettings:
    """How many attempts, and how long a client waits between two of them at most."""

    retries: int = 2
    first_wait_s: float = 0.25  # doubles, if the server does not say how long
    longest_wait_s: float = 5.0


class Retries:
    """Decides for all requests together, because they share one budget."""

    def __init__(self, settings: RetrySettings, chance: Callable[[], float] = random.random) -> None:
        self._settings, self._chance = settings, chance
        self._budget = BUDGET
        self.num_retries = 0

    def saw_request(self) -> None:
        """Called once for every request."""
        self._budget = min(self._budget + BUDGET_SHARE, BUDGET)

    def wait_s(self, request: ClientRequest, failure: UpstreamFailure, number: int) -> float | None:
        """How long to wait before attempt `number` (1 is the first repetition); None: it must not be repeated."""
        if not _is_repeatable(request, failure):
            return None
        if failure.is_stale:
            return 0.0
        wait_s = failure.retry_after_s
        if wait_s is None:  # half of it random, so that clients which failed together do not come back together
            wait_s = self._settings.first_wait_s * 2.0 ** (number - 1) * (0.5 + self._chance() / 2)
        if number > self._settings.retries or wait_s > self._settings.longest_wait_s or self._budget < 1:
            return None
        self._budget -= 1
        self.num_retries += 1
        return wait_s


def retry_after_s(sent: Headers, now_s: Callable[[], float] = time.time) -> float | None:
    """How long an answer's headers ask to wait: in OpenAI's milliseconds, in seconds, or until a date."""
    text = headers.find(sent, b"retry-after-ms").decode("latin-1")
    scale = 0.001
    if not text:
        text, scale = headers.find(sent, b"retry-after").decode("latin-1").strip(), 1.0
    try:
        seconds = float(text) * scale
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now_s()
    return max(seconds, 0.0) if math.isfinite(seconds) else None  # NaN and infinity are floats too


def is_safe(request: ClientRequest) -> bool:
    """Whether a request may be sent twice without harm."""
    return request.dialect.is_read or request.method in ("GET", "HEAD", "OPTIONS")


def _is_repeatable(request: ClientRequest, failure: UpstreamFailure) -> bool:
    if failure.kind in NOTHING_SENT:
        return True
    if failure.kind == "status":
        return is_safe(request) and failure.may_repeat is not False
    return failure.kind == "cut" and is_safe(request)
