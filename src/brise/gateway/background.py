"""Work that nobody waits for: a short queue in memory. What finds no room in it is shed, and counted."""

from __future__ import annotations

import asyncio
from collections import Counter, deque

from brise.gateway.asked import Asked

MAX_WAITING, MAX_WAITING_BYTES = 256, 64 << 20


class Waiting:
    """Requests in the order in which they came. Of the event loop's thread."""

    def __init__(self, counts: Counter[str], max_items: int = MAX_WAITING, max_bytes: int = MAX_WAITING_BYTES) -> None:
        self._counts, self._max_items, self._max_bytes = counts, max_items, max_bytes
        self._items: deque[Asked] = deque()
        self._bytes = 0
        self._news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, asked: Asked) -> None:
        """Takes it in, or counts it as shed."""
        if len(self._items) >= self._max_items or self._bytes + len(asked.body) > self._max_bytes:
            self._counts["shed"] += 1
            return
        self._items.append(asked)
        self._bytes += len(asked.body)
        self._news.set()

    async def take(self) -> Asked:
        """The oldest, when there is one."""
        while not self._items:
            self._news.clear()
            await self._news.wait()
        asked = self._items.popleft()
        self._bytes -= len(asked.body)
        return asked
