"""The rate limit of an upstream's own account, kept by all gateways that share a store.

Each takes some requests ahead from a bucket in the store. While the store is away, each keeps its part of the limit by
itself: the limit divided by the number of servers that were there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from brise.errors import StoreError
from brise.gateway.failure import UpstreamError, UpstreamFailure
from brise.traffic.rate_buckets import Taken, capacity, drawn

AHEAD_S = 0.25  # so much of its rate a gateway takes at once
PATIENCE_S = 5.0  # how long a request waits for its turn; then it fails, or the small model answers
STORE_S = 1.0  # until a store that does not answer counts as away
AWAY_S = 5.0  # until it is asked again


class Buckets(Protocol):
    """The buckets in the store (traffic/rate_buckets.py)."""

    def take(self, name: str, per_minute: float, most: int) -> Taken:
        """Takes up to `most`. StoreError if the store is away."""
    def close(self) -> None: ...


class UpstreamRate:
    """Lets so many requests a minute begin. It belongs to the event loop."""

    def __init__(self, name: str, per_minute: int, buckets: Buckets, num_servers: Callable[[], int] = lambda: 1,
                 now: Callable[[], float] = time.monotonic) -> None:
        self._name, self.per_minute, self._buckets, self._num_servers = name, per_minute, buckets, num_servers
        self._now, self._thread = now, ThreadPoolExecutor(1, "brise-rate")
        self._left, self._asking = 0, asyncio.Lock()
        self._away_until_s = 0.0
        self._own = (0.0, 0.0)  # the level of the bucket for when the store is away, and when it was so full
        self.num_limited = 0

    async def admit(self) -> None:
        """Waits for the request's turn. UpstreamError if that takes too long."""
        end_s = self._now() + PATIENCE_S
        while True:
            if self._left > 0:
                self._left -= 1
                return
            async with self._asking:
                wait_s = 0.0 if self._left > 0 else await self._take()
            if wait_s and self._now() + wait_s > end_s:
                self.num_limited += 1
                raise UpstreamError(UpstreamFailure(
                    "limited", f"the {self.per_minute} requests a minute that all gateways share are used up",
                    retry_after_s=wait_s))
            await asyncio.sleep(wait_s)

    def close(self) -> None:
        """Ends the connection to the store, once it answers no more."""
        self._thread.submit(self._buckets.close)
        self._thread.shutdown(wait=False)

    async def _take(self) -> float:
        """Takes some requests ahead; how long to wait if there is none."""
        most = max(int(self.per_minute / 60 * AHEAD_S), 1)
        if self._now() >= self._away_until_s:
            try:
                async with asyncio.timeout(STORE_S):
                    taken = await asyncio.get_running_loop().run_in_executor(
                        self._thread, self._buckets.take, self._name, float(self.per_minute), most)
            except (StoreError, TimeoutError):
                self._away_until_s = self._now() + AWAY_S
            else:
                self._left += taken.granted
                return 0.0 if taken.granted else taken.wait_s
        rate = self.per_minute / max(self._num_servers(), 1)
        level, at_s = self._own
        level, granted, wait_s = drawn(min(level, capacity(rate)), self._now() - at_s, rate, 1)
        self._own = level, self._now()
        self._left += granted
        return 0.0 if granted else wait_s
