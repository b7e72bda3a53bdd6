"""How tests wait for what another thread or process does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

# After this long it will never happen. A test that passes waits for milliseconds; machines stand still for seconds.
LIMIT_S = 60.0
POLL_S = 0.005


def wait_until(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Returns as soon as the condition, which another thread or process fulfils, holds."""
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "the condition was not met in time"
        time.sleep(POLL_S)


async def until(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """The same inside an event loop, which runs meanwhile."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(POLL_S)
