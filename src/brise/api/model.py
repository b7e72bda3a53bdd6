"""A model in this program: questions in, typed answers out, from any thread or event loop."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, Unpack, overload

from brise.api import calls
from brise.api import options as reading
from brise.api.answers import Answer, Growing, Score
from brise.api.batches import AsyncPromptBatch, PromptBatch
from brise.api.options import ChatOptions, Messages, SamplingOptions
from brise.api.schemas import M
from brise.api.streams import AsyncStream, Stream
from brise.engine.adapters import AdapterInfo
from brise.engine.engine_thread import EngineStoppedError, EngineThread
from brise.engine.request import Delta
from brise.engine.stats import EngineStats
from brise.errors import ClosedError
from brise.robots.action_chunk import ActionChunk, ActionOptions
from brise.robots.command_queue import Scripted
from brise.text.json_text import Json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")
JsonSchema = Mapping[str, object]


class Model:
    """A loaded model; `brise.load` makes it. Safe to use from several threads and event loops at one time.

    Calls that run at the same time are answered together, each as if it were alone: other calls change no token.
    Closing the model (`close`, or the end of a `with` block) ends what runs with ClosedError and frees the memory.

    Methods whose names begin with `a` are the same for an event loop. All of them raise `brise.RequestError` for an
    argument that is wrong, `brise.ContextLengthError` where prompt and answer do not fit, `brise.AnswerError` for an
    answer that broke off, and `brise.ClosedError` after `close`.
    """

    def __init__(self, worker: EngineThread, reference: str, *, is_limited: bool = False) -> None:
        self.reference = reference  # what it was loaded by: a name in the store or a path
        self.is_limited = is_limited  # loaded under a memory limit
        self.name, self.path, self.max_context = worker.model.name, worker.model.path, worker.max_context
        self._worker: EngineThread | None = worker
        self._lock = Lock()
        self._names: dict[Path, str] = {}  # of adapters that a call gave by their folder
        # At the end of the program, or when nobody has the model any more.
        self._shutdown = weakref.finalize(self, worker.shutdown, drain=False)

    @overload
    def chat(self, messages: Messages, *, schema: type[M], **options: Unpack[ChatOptions]) -> Answer[M]: ...
    @overload
    def chat(self, messages: Messages, *, schema: JsonSchema | None = None, **options: Unpack[ChatOptions],
             ) -> Answer[Json]: ...
    def chat(self, messages: Messages, *, schema: object = None, **options: Unpack[ChatOptions]) -> Answer[object]:
        """Answers a conversation: a question, or messages as OpenAI's clients write them.

        With `schema`, a JSON schema or a pydantic model class, the answer follows it, and `answer.value` is what it
        describes: JSON values, or an instance of the class.
        """
        reading.check(options, ChatOptions)
        with self._open() as worker:
            request, growing = self._call(worker, options, schema, messages)
            with Stream(worker.generate(request), growing) as stream:
                return stream.read()

    @overload
    def stream(self, messages: Messages, *, schema: type[M], **options: Unpack[ChatOptions]) -> Stream[M]: ...
    @overload
    def stream(self, messages: Messages, *, schema: JsonSchema | None = None, **options: Unpack[ChatOptions],
               ) -> Stream[Json]: ...
    def stream(self, messages: Messages, *, schema: object = None, **options: Unpack[ChatOptions]) -> Stream[object]:
        """The same piece by piece, as the model writes; `stream.answer` is the whole when the pieces have been read."""
        reading.check(options, ChatOptions)
        with self._open() as worker:
            request, growing = self._call(worker, options, schema, messages)
            return Stream(worker.generate(request), growing)

    @overload
    def batch(self, prompts: Iterable[Messages], *, schema: type[M], **options: Unpack[ChatOptions],
              ) -> PromptBatch[M]: ...
    @overload
    def batch(self, prompts: Iterable[Messages], *, schema: JsonSchema | None = None, **options: Unpack[ChatOptions],
              ) -> PromptBatch[Json]: ...
    def batch(self, prompts: Iterable[Messages], *, schema: object = None, **options: Unpack[ChatOptions],
              ) -> PromptBatch[object]:
        """Answers many conversations and keeps the engine full: one result for each, in the order of the prompts.

        Prompts are read as they are needed, so a generator of millions takes no more memory than a list of a hundred.
        A prompt that cannot be answered has its error in its result and stops no other.
        """
        with self._open() as worker:
            reading.check_many(prompts, options, schema)
            return PromptBatch(worker, prompts, partial(self._call, worker, options, schema))

    def complete(self, prompt: str | Sequence[int], *, suffix: str | None = None,
                 **options: Unpack[SamplingOptions]) -> Answer[None]:
        """Goes on with a text, or with tokens, without any chat format. A text gets the model's first token (bos).

        With `suffix` the answer is what stands between the two texts. RequestError if the model was not trained for it.
        """
        reading.check(options, SamplingOptions)
        with self._open() as worker:
            name = self._adapter(worker, options.get("adapter"))
            request, growing = calls.completion(worker, prompt, suffix, options, name)
            with Stream(worker.generate(request), growing) as stream:
                return stream.read()

    def act(self, messages: Messages, *, adapter: str | Path, deadline_ms: float | None = None,
            last: Sequence[float] | None = None, fallback: str = "hold", is_urgent: bool = True,
            scripts: Mapping[str, Scripted] | None = None) -> ActionChunk:
        """What a robot does next: a chunk of commands of the action space that the adapter was trained on.

        Commands are within the limits of the space, and its rates from `last` on, the command that was sent last. After
        `deadline_ms` the chunk is late: `fallback` gives the steps that the model has not decided: "hold" (the command
        before again), "brake", or "scripted:NAME" of `scripts`, functions that make the next command of the one before,
        both float64 (values,). An urgent call goes before all calls that are not.
        """
        with self._open() as worker:
            name = self._adapter(worker, adapter)
            options = ActionOptions(None if deadline_ms is None else deadline_ms / 1e3, is_urgent, fallback,
                                    None if last is None else tuple(last), dict(scripts or {}))
            return calls.act(worker, messages, name, options)

    def embed(self, texts: str | Sequence[str], *, dimensions: int | None = None) -> NDArray[np.float32]:
        """Vectors of length 1: float32 (texts, width), or (width,) for one text. Their products are cosines.

        With `dimensions` their first numbers only, if the model was trained for that. UnsupportedError if the model was
        not made for vectors.
        """
        with self._open() as worker:
            size = calls.vector_size(worker.model, dimensions)
            return calls.stacked(worker.embed(calls.texts_to_embed(worker.model, texts)), texts, size)

    def score(self, text: str, *, given: str = "", top: int = 0, adapter: str | Path | None = None) -> Score:
        """How likely the model finds a text, behind the text `given`; with the `top` likeliest tokens at each place."""
        with self._open() as worker:
            request, start = calls.score(worker, text, given, top, self._adapter(worker, adapter))
            with worker.generate(request) as deltas:
                return calls.read_score(self.name, deltas, start)

    @overload
    async def achat(self, messages: Messages, *, schema: type[M], **options: Unpack[ChatOptions]) -> Answer[M]: ...
    @overload
    async def achat(self, messages: Messages, *, schema: JsonSchema | None = None, **options: Unpack[ChatOptions],
                    ) -> Answer[Json]: ...
    async def achat(self, messages: Messages, *, schema: object = None, **options: Unpack[ChatOptions],
                    ) -> Answer[object]:
        """See `chat`. Cancelling the task stops the model."""
        reading.check(options, ChatOptions)
        call = partial(self._call, options=options, schema=schema, messages=messages)
        async with AsyncStream(self._deltas(call)) as stream:
            return await stream.read()

    @overload
    def astream(self, messages: Messages, *, schema: type[M], **options: Unpack[ChatOptions]) -> AsyncStream[M]: ...
    @overload
    def astream(self, messages: Messages, *, schema: JsonSchema | None = None, **options: Unpack[ChatOptions],
                ) -> AsyncStream[Json]: ...
    def astream(self, messages: Messages, *, schema: object = None, **options: Unpack[ChatOptions],
                ) -> AsyncStream[object]:
        """See `stream`; an argument that is wrong is an error of the first piece."""
        reading.check(options, ChatOptions)
        return AsyncStream(self._deltas(partial(self._call, options=options, schema=schema, messages=messages)))

    @overload
    def abatch(self, prompts: Iterable[Messages] | AsyncIterable[Messages], *, schema: type[M],
               **options: Unpack[ChatOptions]) -> AsyncPromptBatch[M]: ...
    @overload
    def abatch(self, prompts: Iterable[Messages] | AsyncIterable[Messages], *, schema: JsonSchema | None = None,
               **options: Unpack[ChatOptions]) -> AsyncPromptBatch[Json]: ...
    def abatch(self, prompts: Iterable[Messages] | AsyncIterable[Messages], *, schema: object = None,
               **options: Unpack[ChatOptions]) -> AsyncPromptBatch[object]:
        """See `batch`."""
        with self._open() as worker:
            reading.check_many(prompts, options, schema)
            return AsyncPromptBatch(worker, prompts, partial(self._call, worker, options, schema))

    async def acomplete(self, prompt: str | Sequence[int], *, suffix: str | None = None,
                        **options: Unpack[SamplingOptions]) -> Answer[None]:
        """See `complete`."""
        reading.check(options, SamplingOptions)

        def call(worker: EngineThread) -> calls.Call[None]:
            return calls.completion(worker, prompt, suffix, options, self._adapter(worker, options.get("adapter")))

        async with AsyncStream(self._deltas(call)) as stream:
            return await stream.read()

    async def aembed(self, texts: str | Sequence[str], *, dimensions: int | None = None) -> NDArray[np.float32]:
        """See `embed`."""
        with self._open() as worker:
            tokens = await asyncio.to_thread(calls.texts_to_embed, worker.model, texts)
            size = calls.vector_size(worker.model, dimensions)
            return calls.stacked(await worker.aembed(tokens), texts, size)

    async def ascore(self, text: str, *, given: str = "", top: int = 0, adapter: str | Path | None = None) -> Score:
        """See `score`."""
        with self._open() as worker:
            name = await asyncio.to_thread(self._adapter, worker, adapter)
            request, start = await asyncio.to_thread(calls.score, worker, text, given, top, name)
            async with aclosing(worker.agenerate(request)) as deltas:
                return calls.read_score(self.name, [delta async for delta in deltas], start)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without the one that begins a prompt."""
        with self._open() as worker:
            return worker.model.tokenizer.encode(text)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; special tokens have none, and bytes that are not UTF-8 become U+FFFD."""
        with self._open() as worker:
            return worker.model.tokenizer.decode(tokens)

    @property
    def device(self) -> str:
        """What runs it: "the CPU", or a GPU by its name and number."""
        with self._open() as worker:
            return worker.model.device

    @property
    def adapters(self) -> tuple[AdapterInfo, ...]:
        """The adapters that calls may name."""
        with self._open() as worker:
            return worker.adapters

    def add_adapter(self, name: str, path: str | Path, *, any_base: bool = False) -> AdapterInfo:
        """Reads an adapter, as `brise.tune` and PEFT write them; calls may name it from now on.

        `any_base` takes it although its lineage names another model.
        """
        with self._open() as worker:
            return worker.add_adapter(name, Path(path).expanduser(), any_base=any_base)

    def remove_adapter(self, name: str) -> None:
        """No new call may name it; those that run are finished."""
        with self._open() as worker:
            worker.remove_adapter(name)

    def stats(self) -> EngineStats:
        """Answers that run and wait, tokens so far, bytes of the cache."""
        with self._open() as worker:
            return worker.stats()

    @property
    def worker(self) -> EngineThread:
        """The engine's thread, for a server; ClosedError after `close`."""
        if self._worker is None:
            raise ClosedError(f"the model {self.name!r}")
        return self._worker

    def close(self) -> None:
        """Ends what runs, and frees the memory. A second call does nothing."""
        self._worker = None
        self._shutdown()

    async def aclose(self) -> None:
        """See `close`."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<brise.Model {self.name!r}{' (closed)' if self._worker is None else ''}>"

    @contextmanager
    def _open(self) -> Iterator[EngineThread]:
        """The engine; it may be closed by another thread while it is used."""
        try:
            yield self.worker
        except EngineStoppedError:
            raise ClosedError(f"the model {self.name!r}") from None

    def _call(self, worker: EngineThread, options: ChatOptions, schema: object,
              messages: Messages) -> calls.Call[object]:
        return calls.chat(worker, messages, options, schema, self._adapter(worker, options.get("adapter")))

    async def _deltas(self, make: Callable[[EngineThread], calls.Call[T]],
                      ) -> AsyncGenerator[tuple[Growing[T], Delta], None]:
        """One answer's deltas, each with what puts them together."""
        with self._open() as worker:
            request, growing = await asyncio.to_thread(make, worker)
            async with aclosing(worker.agenerate(request)) as deltas:
                async for delta in deltas:
                    yield growing, delta

    def _adapter(self, worker: EngineThread, adapter: str | Path | None) -> str | None:
        """The name of an adapter; a folder is read when a call gives it for the first time."""
        if not isinstance(adapter, Path):
            return adapter
        folder = adapter.expanduser().resolve()
        with self._lock:
            name = self._names.get(folder)
            if name is None or not worker.has_adapter(name):
                name = f"{folder.name}-{len(self._names)}"
                worker.add_adapter(name, folder)
                self._names[folder] = name
            return name
