"""DeltaStream that are read while they grow, by a thread or by an event loop."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

from brise.api.answers import Answer, Growing, Piece
from brise.engine.inbox import DeltaStream
from brise.engine.request import Delta
from brise.errors import AnswerError

T_co = TypeVar("T_co", covariant=True)


class Stream(Iterator[Piece], Generic[T_co]):
    """The pieces of one answer. Leaving it early, by `close` or by the end of a `with` block, stops the model."""

    def __init__(self, deltas: DeltaStream, growing: Growing[T_co]) -> None:
        self._deltas, self._growing = deltas, growing
        self._pieces = deque[Piece]()

    def __next__(self) -> Piece:
        while not self._pieces:
            self._pieces.extend(self._growing.push(next(self._deltas)))
        return self._pieces.popleft()

    @property
    def answer(self) -> Answer[T_co]:
        """The whole answer, when the stream has been read to its end; AnswerError before."""
        return self._growing.answer()

    def read(self) -> Answer[T_co]:
        """Reads what is left, and returns the whole answer."""
        for _ in self:
            pass
        return self.answer

    def close(self) -> None:
        """Stops the model if it still writes."""
        self._deltas.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


class AsyncStream(AsyncIterator[Piece], Generic[T_co]):
    """The same for an event loop; the request is read and sent when the first piece is awaited."""

    def __init__(self, deltas: AsyncGenerator[tuple[Growing[T_co], Delta], None]) -> None:
        self._deltas = deltas
        self._pieces = deque[Piece]()
        self._growing: Growing[T_co] | None = None

    async def __anext__(self) -> Piece:
        while not self._pieces:
            growing, delta = await anext(self._deltas)
            self._growing = growing
            self._pieces.extend(growing.push(delta))
        return self._pieces.popleft()

    @property
    def answer(self) -> Answer[T_co]:
        """The whole answer, when the stream has been read to its end; AnswerError before."""
        if self._growing is None:
            raise AnswerError("the answer is not complete: the stream has not been read")
        return self._growing.answer()

    async def read(self) -> Answer[T_co]:
        """Reads what is left, and returns the whole answer."""
        async for _ in self:
            pass
        return self.answer

    async def aclose(self) -> None:
        """Stops the model if it still writes."""
        await self._deltas.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self.aclose()
