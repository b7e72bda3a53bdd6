"""InFlight counts the requests that run and stops admitting new ones; RequestStats describes one of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from brise.engine.request import Delta


@dataclass
class RequestStats:
    """The record of one request for the access log and the metrics, filled in while it runs."""

    started_s: float = field(default_factory=time.monotonic)
    model: str | None = None
    mode: str | None = None  # which model answered, if a gateway decided that
    upstream: str = ""  # the name of the one that it was for
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float | None = None
    accepted_prediction_tokens: int | None = None  # None: no request had a prediction
    rejected_prediction_tokens: int = 0

    def count(self, delta: Delta) -> None:
        """Counts a delta. It runs for every piece of an answer, so it must be cheap."""
        self.completion_tokens += len(delta.tokens)
        if delta.prediction is not None:
            self.accepted_prediction_tokens = (self.accepted_prediction_tokens or 0) + delta.prediction.accepted
            self.rejected_prediction_tokens += delta.prediction.drafted - delta.prediction.accepted
        if self.first_token_s is None and delta.tokens:
            self.first_token_s = time.monotonic() - self.started_s


class InFlight:
    """The number of running requests. Only `close` may be called from another thread than the event loop's."""

    def __init__(self) -> None:
        self._num_running = 0
        self._closed = False

    @property
    def num_running(self) -> int:
        return self._num_running

    @property
    def closed(self) -> bool:
        """Whether new requests are refused."""
        return self._closed

    def close(self) -> None:
        self._closed = True

    @contextmanager
    def running(self) -> Iterator[None]:
        self._num_running += 1
        try:
            yield
        finally:
            self._num_running -= 1

    async def drain(self, timeout_s: float) -> bool:
        """Refuses new requests and waits for the running ones; False if the timeout came first."""
        self.close()
        try:
            async with asyncio.timeout(timeout_s):
                while self._num_running:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            return False
        return True
