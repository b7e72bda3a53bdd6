"""Where the deltas of a request go: the inbox of its consumer, which is a thread or an event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

from brise.engine.request import Delta

if TYPE_CHECKING:  # importing it takes 40 ms, and `brise chat` has no event loop
    import asyncio

DeltaOrError = Delta | Exception


@dataclass(frozen=True)
class LoopInbox:
    """The inbox of a consumer in an event loop; the loop itself puts deltas into the queue."""

    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[DeltaOrError]

    def refuse(self, error: Exception | None) -> None:
        """Passes on the error that ends the request, if there is one."""
        if error is not None:
            deliver(self, error)


Inbox: TypeAlias = "SimpleQueue[DeltaOrError] | LoopInbox"


class DeltaStream(Iterator[Delta]):
    """The iterator that `generate` returns. It ends with the last answer; closing it earlier cancels the request."""

    def __init__(self, inbox: SimpleQueue[DeltaOrError], num_open: int, cancel: Callable[[], None]) -> None:
        self._inbox, self._num_open, self._cancel = inbox, num_open, cancel

    def __next__(self) -> Delta:
        if self._num_open == 0:
            raise StopIteration
        delta = self._inbox.get()
        if isinstance(delta, Exception):
            self._num_open = 0
            raise delta
        self._num_open -= delta.finish is not None
        return delta

    def close(self) -> None:
        if self._num_open:
            self._num_open = 0
            self._cancel()

    def __enter__(self) -> DeltaStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def deliver(inbox: Inbox, item: DeltaOrError) -> None:
    """Puts a delta or an error into an inbox; safe to call from any thread."""
    if isinstance(inbox, LoopInbox):
        with suppress(RuntimeError):  # the loop is closed, and the consumer gone
            inbox.loop.call_soon_threadsafe(inbox.queue.put_nowait, item)
    else:
        inbox.put(item)


def put_all(batch: list[tuple[asyncio.Queue[DeltaOrError], Delta]]) -> None:
    """Puts deltas into their queues; called by the event loop that these belong to."""
    for queue, delta in batch:
        queue.put_nowait(delta)
