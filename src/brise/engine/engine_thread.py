"""Runs an engine in its own thread, for requests from any thread or event loop.

All of the engine's state belongs to its thread. Other threads post calls to it, and receive deltas through an inbox. An
idle engine waits for the next call and uses no processor time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING

from brise.engine.engine import Engine
from brise.engine.inbox import DeltaOrError, DeltaStream, Inbox, LoopInbox, deliver, put_all
from brise.engine.model import LoadedModel
from brise.engine.request import Delta, Request
from brise.engine.stats import EngineStats
from brise.engine.submission import Submission
from brise.errors import BriseError, DeviceLostError, RequestError
from brise.models.ops import CacheFormat, StepCancelledError
from brise.models.weights import Array
from brise.text.action_space import Actions
from brise.text.chat import ChatTemplate

if TYPE_CHECKING:  # importing it takes 40 ms, and `brise chat` has no event loop
    import asyncio
    from pathlib import Path

    from brise.engine.adapters import AdapterInfo

# A step of background requests waits so long for a moment in which the program has nothing else to do: the gateway's
# own part of a request takes a millisecond or two. Then it runs all the same, or a shadow would stand still while
# hosted models take seconds. How often it looks.
HOLD_S, LOOK_S = 0.005, 0.001


class EngineStoppedError(RequestError):
    """The engine has been shut down, or is shutting down, or `fault` ended it."""

    status = 503

    def __init__(self, fault: str | None = None) -> None:
        super().__init__(fault or "the engine is shutting down and takes no more requests",
                         code="shutting_down" if fault is None else "engine_lost")


class AdaptersOffError(RequestError):
    """The engine has no room for adapters."""

    def __init__(self) -> None:
        super().__init__("this model was loaded without room for adapters", code="adapters_off",
                         hint="start with --max-adapters above 0 and, under --memory, with --adapter-memory")


class EngineThread:
    """Safe to use from several threads. Call `start` before or after the first request, and `shutdown` at the end."""

    def __init__(self, engine: Engine, reopen: Callable[[], Engine] | None = None) -> None:
        """`reopen` makes the engine that takes over if the device of this one is lost; None: the thread ends then."""
        self._engine, self._reopen = engine, reopen
        self._fault: str | None = None  # what ended the thread
        self._calls: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._embeddings: deque[Callable[[], object]] = deque()  # one runs between two steps
        self._inboxes: dict[str, tuple[Submission, Inbox]] = {}  # by request id
        self._thread: Thread | None = None
        self._is_closed = self._is_stopping = False
        self._is_busy: Callable[[], bool] = lambda: False
        self._lock = Lock()  # no call is posted after the one that stops the thread

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
        """The number of answers that are generated at one time."""
        return self._engine.settings.max_sequences

    @property
    def max_draft(self) -> int:
        """The number of tokens that may be drafted for an answer in a step."""
        return self._engine.settings.max_draft

    @property
    def is_open(self) -> bool:
        """Whether requests are accepted: not after a shutdown, nor after a fault that ended the thread."""
        return not self._is_closed

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def start(self) -> None:
        assert self._thread is None, "started twice"
        self._thread = Thread(target=self._run, name="brise-engine", daemon=True)
        self._thread.start()
        if self.model.keeper is not None:
            self.model.keeper.start()

    def warm(self) -> None:
        """Prepares, in the caller's thread, what first requests would wait for."""
        if isinstance(self.model.chat, ChatTemplate):
            self.model.chat.warm()
        self._engine.warm()

    def hold_background(self, is_busy: Callable[[], bool]) -> None:
        """Holds steps of background requests, for HOLD_S at most, while `is_busy` says that clients wait for this
        program."""
        self._is_busy = is_busy

    def shutdown(self, drain: bool = True) -> None:
        """Accepts no more requests, finishes those that run (without `drain`: cancels them), and ends the thread.

        It may be called again, for instance without `drain` while another thread waits for a drain.
        """
        with self._lock:
            self._is_closed = True
            self._calls.put(partial(self._stop, drain))
        if not drain:
            self._engine.interrupt()  # a step on a slow device may take longer than anybody waits for a stop
        if self._thread is None:
            self._run()
        else:
            self._thread.join()
        if self.model.keeper is not None:
            self.model.keeper.stop()

    def generate(self, request: Request) -> DeltaStream:
        """The deltas of all of the request's answers; raises if the request is refused. Close it to cancel."""
        submission = self._engine.prepare(request)
        inbox: SimpleQueue[DeltaOrError] = SimpleQueue()
        refusal: SimpleQueue[Exception | None] = SimpleQueue()
        self._submit(submission, inbox, refusal.put)
        error = refusal.get()
        if error is not None:
            raise error
        return DeltaStream(inbox, len(submission.answers), partial(self._cancel, submission))

    def submit(self, request: Request, inbox: Inbox) -> str:
        """Sends the request's deltas to an inbox that requests may share; returns the request's id.

        It does not wait for the engine: a full queue is reported by a delta that ends with an error.
        """
        submission = self._engine.prepare(request)

        def report(error: Exception | None) -> None:
            if error is not None:
                deliver(inbox, Delta(submission.request_id, 0, finish="error", error=str(error)))

        self._submit(submission, inbox, report)
        return submission.request_id

    def cancel(self, request_id: str) -> None:
        """Ends a request's answers; does nothing if it has ended already."""
        self._calls.put(partial(self._engine.cancel, request_id))

    async def agenerate(self, request: Request) -> AsyncGenerator[Delta, None]:
        """`generate` for an event loop; the first step raises a refusal. Closing it (aclose) cancels."""
        import asyncio  # noqa: PLC0415 - the caller has imported it

        # Compiling a grammar or reading an adapter may take a second; everything else is quick.
        submission = (self._engine.prepare(request) if request.grammar is None and request.adapter is None
                      else await self._prepare_in_thread(request))
        inbox = LoopInbox(asyncio.get_running_loop(), asyncio.Queue())
        self._submit(submission, inbox, inbox.refuse)
        num_open = len(submission.answers)
        try:
            while num_open:
                delta = await inbox.queue.get()
                if isinstance(delta, Exception):
                    num_open = 0
                    raise delta
                num_open -= delta.finish is not None
                yield delta
        finally:
            if num_open:
                self._cancel(submission)

    async def _prepare_in_thread(self, request: Request) -> Submission:
        """Prepares a request in another thread; releases what it holds if the consumer goes away meanwhile."""
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

    def _submit(self, submission: Submission, inbox: Inbox, reply: Callable[[Exception | None], None]) -> None:
        try:
            self._post(partial(self._accept, submission, inbox, reply))
        except EngineStoppedError:
            self._engine.drop(submission)
            raise

    @property
    def adapters(self) -> tuple[AdapterInfo, ...]:
        """The adapters that requests can name."""
        return () if self._engine.adapters is None else self._engine.adapters.list()

    def has_adapter(self, name: str) -> bool:
        """Whether requests can name this adapter."""
        return self._engine.adapters is not None and name in self._engine.adapters

    def actions(self, name: str) -> Actions | None:
        """What the answers of an adapter mean, if it was trained to move a robot."""
        return next((adapter.actions for adapter in self.adapters if adapter.name == name), None)

    def add_adapter(self, name: str, path: Path, *, any_base: bool = False) -> AdapterInfo:
        """Reads an adapter in the caller's thread; requests can name it from now on."""
        if self._engine.adapters is None:
            raise AdaptersOffError
        info = self._engine.adapters.add(name, path, any_base=any_base)
        self._post(_wake)
        return info

    def remove_adapter(self, name: str) -> AdapterInfo:
        """Removes an adapter; requests that already use it finish."""
        if self._engine.adapters is None:
            raise AdaptersOffError
        info = self._engine.adapters.remove(name)
        self._post(_wake)
        return info

    def embed(self, texts: Sequence[Sequence[int]]) -> list[Array]:
        """Vectors of the texts, computed between the steps of running requests."""
        return [vector for group in self._engine.embedding_groups(texts) for vector in self._embed(group)]

    async def aembed(self, texts: Sequence[Sequence[int]]) -> list[Array]:
        """`embed` for an event loop; the rest is not computed if the consumer goes away."""
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
                raise EngineStoppedError(self._fault)
            self._calls.put(call)

    def _cancel(self, submission: Submission) -> None:
        self.cancel(submission.request_id)

    # All methods below run in the engine's thread.

    def _run(self) -> None:
        try:
            while not (self._is_stopping and self._is_idle):
                if self._is_idle:
                    self._calls.get()()
                while not self._calls.empty():
                    self._calls.get()()
                if self._embeddings:
                    self._embeddings.popleft()()
                if self._engine.has_work and not (self._engine.background and self._has_held()):
                    self._deliver(self._step())
        finally:
            with self._lock:
                self._is_closed = True
            self._refuse_rest()

    def _has_held(self) -> bool:
        """Waits for a calm moment; True if a call came first, which may change what there is to do."""
        end_s = monotonic() + HOLD_S
        while self._is_busy() and (left_s := end_s - monotonic()) > 0:
            with suppress(Empty):
                self._calls.get(timeout=min(LOOK_S, left_s))()
                return True
        return False

    def _refuse_rest(self) -> None:
        """Refuses every posted call, so that no caller waits for ever even if `_run` has a bug."""
        while not self._calls.empty():
            with suppress(Exception):
                self._calls.get()()
        for embed in self._embeddings:
            with suppress(Exception):
                embed()
        for _, inbox in self._inboxes.values():
            deliver(inbox, EngineStoppedError(self._fault))

    @property
    def _is_idle(self) -> bool:
        return not (self._engine.has_work or self._embeddings or not self._calls.empty())

    def _stop(self, drain: bool) -> None:
        self._is_stopping = True
        if not drain:
            for submission, _ in self._inboxes.values():
                self._engine.cancel(submission.request_id)

    def _accept(self, submission: Submission, inbox: Inbox, reply: Callable[[Exception | None], None]) -> None:
        try:
            if submission.model is not self._engine.model:
                raise EngineStoppedError("the GPU was lost while the request was prepared; send it again")
            self._engine.accept(submission)
        except Exception as error:  # the caller gets it
            reply(error)
            return
        self._inboxes[submission.request_id] = submission, inbox
        reply(None)

    def _embed_here(self, texts: Sequence[Sequence[int]],
                    reply: Callable[[list[Array] | Exception], None]) -> None:
        try:
            reply(self._engine.embed(texts))
        except Exception as error:  # the caller gets it
            reply(EngineStoppedError() if isinstance(error, StepCancelledError) else error)
            if isinstance(error, DeviceLostError):
                self._engine.abort(str(error))
                self._deliver(self._engine.step())
                self._replace(error)

    def _step(self) -> list[Delta]:
        try:
            return self._engine.step()
        except StepCancelledError:  # by `shutdown`, whose call waits to cancel all requests
            return []
        except DeviceLostError as error:
            self._engine.abort(str(error))
            deltas = self._engine.step()
            self._replace(error)
            return deltas
        except Exception as error:  # a bug of ours: running requests end, later ones start afresh
            self._engine.abort(f"{type(error).__name__}: {error}")
            return self._engine.step()

    def _replace(self, error: DeviceLostError) -> None:
        """Goes on with another engine in place of one whose device is lost, or ends the thread."""
        reopen, self._reopen = self._reopen, None
        try:
            if reopen is None:
                raise error
            engine, lost = reopen(), self._engine
            if engine.adapters is not None and lost.adapters is not None:
                for info in lost.adapters.list():  # all were taken for this model already
                    if info.name not in engine.adapters:
                        engine.adapters.add(info.name, info.path, any_base=True)
            self._engine = engine
        except BriseError as fault:
            with self._lock:
                self._fault = str(error) if fault is error else f"{error}; {fault}"
                self._is_closed = self._is_stopping = True

    def _deliver(self, deltas: list[Delta]) -> None:
        """Passes each delta to its consumer; wakes an event loop once for all of its consumers."""
        for_loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Queue[DeltaOrError], Delta]]] = {}
        for delta in deltas:
            _, inbox = self._inboxes[delta.request_id]
            if isinstance(inbox, LoopInbox):
                for_loops.setdefault(inbox.loop, []).append((inbox.queue, delta))
            else:
                inbox.put(delta)
        for loop, batch in for_loops.items():
            try:
                loop.call_soon_threadsafe(put_all, batch)
            except RuntimeError:  # the loop is closed, so its consumers are gone
                for _, delta in batch:
                    self._engine.cancel(delta.request_id)
        for request_id in {delta.request_id for delta in deltas if delta.finish is not None}:
            if not self._inboxes[request_id][0].open:
                del self._inboxes[request_id]


def _wake() -> None:
    """Does nothing; but an idle engine that gets a call also checks for other work."""
