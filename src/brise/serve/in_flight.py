"""What runs through the server at this moment: requests in flight, and whether new ones are still let in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from brise.engine.request import Delta


@dataclass
class Ticket:
    """One request's numbers, filled in while it runs, for the access log and the metrics."""

    started_s: float = field(default_factory=time.monotonic)
    model: str | None = None
    mode: str | None = None  # who answered, where a gateway decides that
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float | None = None

    def count(self, delta: Delta) -> None:
        """Called for every piece of an answer, so it does next to nothing."""
        self.completion_tokens += len(delta.tokens)
        if self.first_token_s is None and delta.tokens:
            self.first_token_s = time.monotonic() - self.started_s


class InFlight:
    """Counts the requests that run. Used from the event loop's thread only, except for `close`."""

    def __init__(self) -> None:
        self._num_running = 0
        self._closed = False

    @property
    def num_running(self) -> int:
        return self._num_running

    @property
    def closed(self) -> bool:
        """No new requests are let in."""
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
        """Lets nothing new in and waits for what runs; False if the time was not enough."""
        self.close()
        try:
            async with asyncio.timeout(timeout_s):
                while self._num_running:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            return False
        return True
