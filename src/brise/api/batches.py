"""Many prompts through one engine: it is kept full, results keep the order of the prompts, errors are per prompt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, Self, TypeVar

from brise.api.answers import BatchResult, Growing
from brise.api.options import Messages
from brise.engine.engine_thread import EngineStoppedError, EngineThread
from brise.engine.inbox import DeltaOrError, Inbox, LoopInbox
from brise.engine.request import Request
from brise.errors import BriseError, ClosedError, RequestError

T_co = TypeVar("T_co", covariant=True)
Begin = Callable[[Messages], tuple[Request, Growing[T_co]]]
# Prompts that wait in the engine behind those that it answers, so that none of its places is empty for a step.
WAITING_SHARE = 1.0
# Results that may wait for an earlier one, per prompt in the engine: a long answer holds back so many short ones.
AHEAD = 16


class _Window(Generic[T_co]):
    """The part of a batch in progress: requests in the engine, and results that wait for their turn."""

    def __init__(self, worker: EngineThread, begin: Begin[T_co]) -> None:
        self._worker, self._begin = worker, begin
        self._size = worker.max_sequences + max(int(WAITING_SHARE * worker.max_sequences), 1)
        self._ahead = AHEAD * self._size
        self._open: dict[str, tuple[int, Growing[T_co]]] = {}
        self._results: dict[int, BatchResult[T_co]] = {}
        self._num_begun = self._num_out = 0
        self._is_closed = False

    @property
    def wants_more(self) -> bool:
        """Whether the engine has room for another prompt."""
        return len(self._open) < self._size and self._num_begun - self._num_out < self._ahead

    @property
    def has_open(self) -> bool:
        return bool(self._open)

    def begin(self, prompt: Messages, inbox: Inbox) -> None:
        """Puts one more prompt in; one that is refused is a result already."""
        index, self._num_begun = self._num_begun, self._num_begun + 1
        try:
            request, growing = self._begin(prompt)
            request_id = self._worker.submit(request, inbox)
            self._open[request_id] = index, growing
            if self._is_closed:  # by the event loop, while this ran beside it
                self._worker.cancel(request_id)
        except EngineStoppedError:
            raise ClosedError(f"the model {self._worker.model.name!r}") from None
        except RequestError as error:
            self._results[index] = BatchResult(index, error)

    def push(self, delta: DeltaOrError) -> None:
        """Takes the engine's next message about one of them."""
        if isinstance(delta, Exception):
            raise ClosedError(f"the model {self._worker.model.name!r}") from None
        index, growing = self._open[delta.request_id]
        try:
            growing.push(delta)
        except ClosedError:
            raise
        except BriseError as error:
            self._results[index] = BatchResult(index, error)
        else:
            if not growing.is_done:
                return
            self._results[index] = BatchResult(index, given=growing.answer())
        del self._open[delta.request_id]

    def pop(self) -> BatchResult[T_co] | None:
        """The next result in order, if it is there."""
        result = self._results.pop(self._num_out, None)
        self._num_out += result is not None
        return result

    def cancel(self) -> None:
        """Ends what is in the engine."""
        self._is_closed = True
        for request_id in tuple(self._open):
            self._worker.cancel(request_id)
        self._open.clear()


class PromptBatch(Iterator[BatchResult[T_co]]):
    """Results in the order of the prompts, which are read as the engine gets room for them."""

    def __init__(self, worker: EngineThread, prompts: Iterable[Messages], begin: Begin[T_co]) -> None:
        self._window = _Window(worker, begin)
        self._prompts: Iterator[Messages] | None = iter(prompts)
        self._inbox: SimpleQueue[DeltaOrError] = SimpleQueue()

    def __next__(self) -> BatchResult[T_co]:
        while True:
            self._fill()
            while not self._inbox.empty():
                self._window.push(self._inbox.get())
            result = self._window.pop()
            if result is not None:
                return result
            if self._window.has_open:
                self._window.push(self._inbox.get())
            elif self._prompts is None:
                raise StopIteration

    def _fill(self) -> None:
        while self._prompts is not None and self._window.wants_more:
            try:
                prompt = next(self._prompts)
            except StopIteration:
                self._prompts = None
                return
            self._window.begin(prompt, self._inbox)

    def close(self) -> None:
        """Ends what runs; the prompts that are left are not asked."""
        self._prompts = None
        self._window.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class AsyncPromptBatch(AsyncIterator[BatchResult[T_co]]):
    """The same for an event loop; prompts may come from an asynchronous iterator."""

    def __init__(self, worker: EngineThread, prompts: Iterable[Messages] | AsyncIterable[Messages],
                 begin: Begin[T_co]) -> None:
        self._window = _Window(worker, begin)
        self._prompts: AsyncIterator[Messages] | None = (
            aiter(prompts) if isinstance(prompts, AsyncIterable) else _each(prompts))
        self._inbox: LoopInbox | None = None

    async def __anext__(self) -> BatchResult[T_co]:
        if self._inbox is None:
            self._inbox = LoopInbox(asyncio.get_running_loop(), asyncio.Queue())
        while True:
            await self._fill(self._inbox)
            while not self._inbox.queue.empty():
                self._window.push(self._inbox.queue.get_nowait())
            result = self._window.pop()
            if result is not None:
                return result
            if self._window.has_open:
                self._window.push(await self._inbox.queue.get())
            elif self._prompts is None:
                raise StopAsyncIteration

    async def _fill(self, inbox: LoopInbox) -> None:
        while self._prompts is not None and self._window.wants_more:
            try:
                prompt = await anext(self._prompts)
            except StopAsyncIteration:
                self._prompts = None
                return
            await asyncio.to_thread(self._window.begin, prompt, inbox)

    async def aclose(self) -> None:
        """Ends what runs; the prompts that are left are not asked."""
        self._prompts = None
        self._window.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._window.cancel()


async def _each(prompts: Iterable[Messages]) -> AsyncIterator[Messages]:
    for prompt in prompts:
        yield prompt
