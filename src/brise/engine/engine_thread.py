"""The engine in a thread of its own: requests from any thread or event loop go in, their deltas come back.

All of the engine's state belongs to its thread. Others post calls to it and get their deltas through an
inbox. An idle engine waits for the next call and burns nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, TypeAlias

from brise.engine.engine import Engine, EngineStats, Submission
from brise.engine.model import LoadedModel
from brise.engine.request import Delta, Request
from brise.errors import RequestError
from brise.models.ops import CacheFormat
from brise.models.weights import Array

if TYPE_CHECKING:  # `brise chat` has no event loop and does not wait for 40 ms of import
    import asyncio
    from pathlib import Path

    from brise.engine.adapters import AdapterInfo

News = Delta | Exception


class EngineStoppedError(RequestError):
    """The engine is shut down, or shutting down."""

    status = 503

    def __init__(self) -> None:
        super().__init__("the engine is shutting down and takes no more requests", code="shutting_down")


class AdaptersOffError(RequestError):
    """The engine was made without room for adapters."""

    def __init__(self) -> None:
        super().__init__("this model was loaded without room for adapters", code="adapters_off",
                         hint="start with --max-adapters above 0 and, under --memory, with --adapter-memory")


@dataclass(frozen=True)
class LoopInbox:
    """Where an event loop's consumer gets its news: put there by the loop itself."""

    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[News]

    def refuse(self, error: Exception | None) -> None:
        """Tells the consumer why it gets no deltas, if there is a reason."""
        if error is not None:
            deliver(self, error)


Inbox: TypeAlias = "SimpleQueue[News] | LoopInbox"


class EngineThread:
    """`start` before or after the first request, `shutdown` at the end; safe to use from several threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._calls: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._embeddings: deque[Callable[[], object]] = deque()  # one between two steps: answers flow on
        self._inboxes: dict[str, tuple[Submission, Inbox]] = {}  # by request id
        self._thread: Thread | None = None
        self._is_closed = self._is_stopping = False
        self._lock = Lock()  # no call is posted after the one that stops

    @property
    def model(self) -> LoadedModel:
        return self._engine.model

    @property
    def max_context(self) -> int:
        return self._engine.max_context

    @property
    def cache_format(self) -> CacheFormat:
        return self._engine.settings.cache_format

    @property
    def max_sequences(self) -> int:
        """Answers that it writes at one time."""
        return self._engine.settings.max_sequences

    @property
    def is_open(self) -> bool:
        """Whether it takes requests: not after a shutdown, nor after a fault that ended its thread."""
        return not self._is_closed

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def start(self) -> None:
        assert self._thread is None, "started twice"
        self._thread = Thread(target=self._run, name="brise-engine", daemon=True)
        self._thread.start()

    def shutdown(self, drain: bool = True) -> None:
        """Takes no more requests, finishes what runs (without `drain`: cancels it), and ends the thread.

        May be called again, for instance without `drain` while another thread waits for a drain.
        """
        with self._lock:
            self._is_closed = True
            self._calls.put(partial(self._stop, drain))
        if self._thread is None:
            self._run()
        else:
            self._thread.join()

    def generate(self, request: Request) -> Answers:
        """The deltas of all of the request's answers; raises at once if it is refused. Close it to cancel."""
        job = self._engine.prepare(request)
        inbox: SimpleQueue[News] = SimpleQueue()
        verdict: SimpleQueue[Exception | None] = SimpleQueue()
        self._hand_over(job, inbox, verdict.put)
        error = verdict.get()
        if error is not None:
            raise error
        return Answers(inbox, len(job.answers), partial(self._cancel, job))

    def submit(self, request: Request, inbox: Inbox) -> str:
        """The same into an inbox that several requests may share; returns the id that their deltas carry.

        It does not wait for the engine: a full queue is told as a delta that ends in an error. `cancel` ends it.
        """
        job = self._engine.prepare(request)

        def tell(error: Exception | None) -> None:
            if error is not None:
                deliver(inbox, Delta(job.request_id, 0, finish="error", error=str(error)))

        self._hand_over(job, inbox, tell)
        return job.request_id

    def cancel(self, request_id: str) -> None:
        """Ends a request's answers; nothing happens if it has ended already."""
        self._calls.put(partial(self._engine.cancel, request_id))

    async def agenerate(self, request: Request) -> AsyncGenerator[Delta, None]:
        """The same for an event loop; a refusal is raised by the first step. Leaving it (aclose) cancels."""
        import asyncio  # noqa: PLC0415 - whoever awaits this has imported it

        # A grammar may take a second to compile, and an adapter to be read; all else is quick.
        job = (self._engine.prepare(request) if request.grammar is None and request.adapter is None
               else await self._prepare_elsewhere(request))
        inbox = LoopInbox(asyncio.get_running_loop(), asyncio.Queue())
        self._hand_over(job, inbox, inbox.refuse)
        num_open = len(job.answers)
        try:
            while num_open:
                news = await inbox.queue.get()
                if isinstance(news, Exception):
                    num_open = 0
                    raise news
                num_open -= news.finish is not None
                yield news
        finally:
            if num_open:
                self._cancel(job)

    async def _prepare_elsewhere(self, request: Request) -> Submission:
        """In another thread; a consumer that goes away before it is done leaves nothing held."""
        import asyncio  # noqa: PLC0415 - see agenerate

        preparing = asyncio.get_running_loop().run_in_executor(None, self._engine.prepare, request)
        try:
            return await asyncio.shield(preparing)
        except asyncio.CancelledError:
            preparing.add_done_callback(self._drop_prepared)
            raise

    def _drop_prepared(self, preparing: asyncio.Future[Submission]) -> None:
        if not preparing.cancelled() and preparing.exception() is None:
            self._engine.drop(preparing.result())

    def _hand_over(self, job: Submission, inbox: Inbox, answer: Callable[[Exception | None], None]) -> None:
        try:
            self._post(partial(self._accept, job, inbox, answer))
        except EngineStoppedError:
            self._engine.drop(job)
            raise

    @property
    def adapters(self) -> tuple[AdapterInfo, ...]:
        """The adapters that requests may name."""
        return () if self._engine.adapters is None else self._engine.adapters.list()

    def has_adapter(self, name: str) -> bool:
        """Whether requests may name this adapter."""
        return self._engine.adapters is not None and name in self._engine.adapters

    def add_adapter(self, name: str, path: Path, *, any_base: bool = False) -> AdapterInfo:
        """Reads an adapter in the thread that asks; requests go through it from now on."""
        if self._engine.adapters is None:
            raise AdaptersOffError
        info = self._engine.adapters.add(name, path, any_base=any_base)
        self._post(_wake)
        return info

    def remove_adapter(self, name: str) -> AdapterInfo:
        """No new request may name it; what runs finishes."""
        if self._engine.adapters is None:
            raise AdaptersOffError
        info = self._engine.adapters.remove(name)
        self._post(_wake)
        return info

    def embed(self, texts: Sequence[Sequence[int]]) -> list[Array]:
        """Vectors of the texts, computed between the steps of what runs."""
        return [vector for group in self._engine.embedding_groups(texts) for vector in self._embed(group)]

    async def aembed(self, texts: Sequence[Sequence[int]]) -> list[Array]:
        """The same for an event loop; a consumer that goes away leaves the rest undone."""
        import asyncio  # noqa: PLC0415 - see agenerate

        vectors: list[Array] = []
        for group in self._engine.embedding_groups(texts):
            vectors += await asyncio.to_thread(self._embed, group)
        return vectors

    def _embed(self, group: Sequence[Sequence[int]]) -> list[Array]:
        result: SimpleQueue[list[Array] | Exception] = SimpleQueue()
        self._post(partial(self._embeddings.append, partial(self._embed_here, group, result.put)))
        vectors = result.get()
        if isinstance(vectors, Exception):
            raise vectors
        return vectors

    def _post(self, call: Callable[[], object]) -> None:
        with self._lock:
            if self._is_closed:
                raise EngineStoppedError
            self._calls.put(call)

    def _cancel(self, job: Submission) -> None:
        self.cancel(job.request_id)

    # From here on: in the engine's thread.

    def _run(self) -> None:
        try:
            while not (self._is_stopping and self._is_idle):
                if self._is_idle:
                    self._calls.get()()
                while not self._calls.empty():
                    self._calls.get()()
                if self._embeddings:
                    self._embeddings.popleft()()
                if self._engine.has_work:
                    self._deliver(self._step())
        finally:
            with self._lock:
                self._is_closed = True
            self._refuse_rest()

    def _refuse_rest(self) -> None:
        """Nobody waits for ever, even if `_run` has a bug: what was posted is taken in, and all of it refused."""
        while not self._calls.empty():
            with suppress(Exception):
                self._calls.get()()
        for embed in self._embeddings:
            with suppress(Exception):
                embed()
        for _, inbox in self._inboxes.values():
            deliver(inbox, EngineStoppedError())

    @property
    def _is_idle(self) -> bool:
        return not (self._engine.has_work or self._embeddings or not self._calls.empty())

    def _stop(self, drain: bool) -> None:
        self._is_stopping = True
        if not drain:
            for job, _ in self._inboxes.values():
                self._engine.cancel(job.request_id)

    def _accept(self, job: Submission, inbox: Inbox, answer: Callable[[Exception | None], None]) -> None:
        try:
            self._engine.accept(job)
        except Exception as error:  # handed to the one who asked
            answer(error)
            return
        self._inboxes[job.request_id] = job, inbox
        answer(None)

    def _embed_here(self, texts: Sequence[Sequence[int]],
                    answer: Callable[[list[Array] | Exception], None]) -> None:
        try:
            answer(self._engine.embed(texts))
        except Exception as error:  # handed to the one who asked
            answer(error)

    def _step(self) -> list[Delta]:
        try:
            return self._engine.step()
        except Exception as error:  # a bug of ours: it ends what runs, and what comes later has a fresh start
            self._engine.abort(f"{type(error).__name__}: {error}")
            return self._engine.step()

    def _deliver(self, deltas: list[Delta]) -> None:
        """Hands each delta to its consumer; an event loop is woken once for all of its consumers."""
        letters: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Queue[News], Delta]]] = {}
        for delta in deltas:
            _, inbox = self._inboxes[delta.request_id]
            if isinstance(inbox, LoopInbox):
                letters.setdefault(inbox.loop, []).append((inbox.queue, delta))
            else:
                inbox.put(delta)
        for loop, batch in letters.items():
            try:
                loop.call_soon_threadsafe(_hand_out, batch)
            except RuntimeError:  # the loop is closed, so its consumers have gone without a word
                for _, delta in batch:
                    self._engine.cancel(delta.request_id)
        for request_id in {delta.request_id for delta in deltas if delta.finish is not None}:
            if not self._inboxes[request_id][0].open:
                del self._inboxes[request_id]


class Answers(Iterator[Delta]):
    """What `generate` returns: ends when all answers have, and cancels them when it is closed before."""

    def __init__(self, inbox: SimpleQueue[News], num_open: int, cancel: Callable[[], None]) -> None:
        self._inbox, self._num_open, self._cancel = inbox, num_open, cancel

    def __next__(self) -> Delta:
        if self._num_open == 0:
            raise StopIteration
        news = self._inbox.get()
        if isinstance(news, Exception):
            self._num_open = 0
            raise news
        self._num_open -= news.finish is not None
        return news

    def close(self) -> None:
        if self._num_open:
            self._num_open = 0
            self._cancel()

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _wake() -> None:
    """An idle engine that gets a call looks whether there is anything else to do."""


def deliver(inbox: Inbox, news: News) -> None:
    """Puts one thing into an inbox, from any thread."""
    if isinstance(inbox, LoopInbox):
        with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            inbox.loop.call_soon_threadsafe(inbox.queue.put_nowait, news)
    else:
        inbox.put(news)


def _hand_out(batch: list[tuple[asyncio.Queue[News], Delta]]) -> None:
    for queue, delta in batch:
        queue.put_nowait(delta)
