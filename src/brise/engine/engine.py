"""The engine runs many requests on one model: `submit` queues one, and each `step` advances all of them."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from brise.checkpoint.pooling import Pooling
from brise.engine import batching, embedding, validate
from brise.engine.answer import EngineAnswer, token_logprob
from brise.engine.drafts import DraftSources, DraftTables, OpenTable
from brise.engine.features import Features
from brise.engine.lookup import Prediction
from brise.engine.model import LoadedModel
from brise.engine.pages import Pages, cache_pages
from brise.engine.request import Delta, FinishReason, Request
from brise.engine.scheduler import Chunk, Scheduler
from brise.engine.sequence import Sequence
from brise.engine.speculation import Speculation
from brise.engine.stats import EngineStats
from brise.engine.step_cost import StepCost, load_of, pair_tokens_of
from brise.engine.submission import Submission, Submissions
from brise.errors import ContextLengthError, DeviceLostError, PreemptedError, QueueFullError, UnsupportedError
from brise.models.batch import PAGE_SIZE
from brise.models.ops import CacheFormat, StepCancelledError
from brise.models.weights import Array

if TYPE_CHECKING:  # see _adapters
    from brise.engine.adapters import Adapters

# Of a step of background requests: a request that arrives meanwhile waits until the step is done.
BACKGROUND_STEP_TOKENS, BACKGROUND_STEP_S = 32, 0.02
# After an urgent request, steps of others are as short for a while: a control loop asks again within that time.
URGENT_STEP_S, URGENT_MEMORY_S = 0.02, 2.0


@dataclass(frozen=True)
class EngineSettings:
    """Sizes of an engine. The cache has `num_pages`, or as many as fit `cache_bytes`, or a share of the memory."""

    max_context: int | None = None
    num_pages: int | None = None
    cache_bytes: int | None = None
    page_size: int = PAGE_SIZE
    cache_format: CacheFormat = "f16"
    max_step_tokens: int = 512
    max_sequences: int = 64
    max_waiting: int = 256
    prefix_cache: bool = True
    feature_bytes: int = 128 << 20  # encoded images and audio that are kept: about four images of the largest
    max_adapters: int = 0  # in memory at one time
    max_rank: int = 64  # of an adapter
    adapter_bytes: int | None = None  # memory for adapters, loading included; None: not bounded
    max_draft: int = 0  # tokens that a step may compute beyond an answer's next one (engine/speculation.py); 0: off
    open_sealed: OpenTable | None = None  # opens sealed tables of drafts; None: they are left out


class Engine:
    """Not safe to use from several threads, except `prepare`, `drop` and `stats`; engine_thread.EngineThread is."""

    def __init__(self, model: LoadedModel, settings: EngineSettings | None = None,
                 clock: Callable[[], float] = perf_counter) -> None:
        self.model, self.settings = model, settings or EngineSettings()
        self._clock = clock  # of the times of steps
        self._vocab_size = min(model.config.vocab_size, model.tokenizer.vocab_size)
        num_pages = _num_pages(model, self.settings)
        self.max_context = min(_max_context(model, self.settings), num_pages * self.settings.page_size)
        self.drafts = DraftSources()  # besides those that every answer has
        self._cache = model.backend.new_cache(model.config, num_pages, self.settings.page_size,
                                              self.settings.cache_format)
        self._draft_tables = DraftTables(self.drafts, model.tokenizer, self.settings.open_sealed) if (
            self.settings.max_draft) else None
        self.adapters = _adapters(model, self.settings, self._draft_tables)
        tables = () if self.adapters is None else (self.adapters.table,)
        self._runner = model.backend.runner(model.config, model.weights, self.settings.max_step_tokens, *tables)
        self._pages = Pages(num_pages, self.settings.page_size, prefix_cache=self.settings.prefix_cache)
        longest_span = 0 if model.vision is None else model.vision.longest_span
        if longest_span >= self.settings.max_step_tokens:
            raise UnsupportedError(f"steps of {self.settings.max_step_tokens} tokens were requested; an image of "
                                   f"{model.name} has {longest_span}, which go into one step")
        self.cost = StepCost(pair_tokens_of(model.config))
        self._background_cost = StepCost(pair_tokens_of(model.config))  # of what others leave of the cores
        self.speculation = Speculation(self.settings.max_draft, self._vocab_size, self.cost)
        self._scheduler = Scheduler(self._pages, self.cost, max_step_tokens=self.settings.max_step_tokens,
                                    max_sequences=self.settings.max_sequences, longest_span=longest_span)
        self._features = None
        if model.vision is not None or model.audio is not None:
            self._features = Features(model.vision, model.audio, self.settings.feature_bytes, clock)
        self._break_row = None if model.vision is None else model.vision.break_row
        self._incoming = Submissions(model, self._vocab_size, self.max_context, self.adapters,
                                     self.drafts if self.settings.max_draft else None, clock)
        self._submissions: dict[int, Submission] = {}  # by arrival
        self._arrival_of: dict[str, int] = {}
        self.background: set[str] = set()  # ids of background requests; they never run beside others
        self._timed: dict[str, float] = {}  # when requests with a deadline are due, by id
        self._urgent_until_s = -inf  # more urgent requests are expected until then
        self._pending: list[Delta] = []  # of answers that ended between steps
        self._num_steps = self._num_failures = self._prompt_tokens = self._cached_tokens = self._completion_tokens = 0

    def draft_from(self, path: Path) -> str:
        """Drafts answers without an adapter from the table of n-grams in a file; what came of it (DraftTables.put)."""
        return "" if self._draft_tables is None else self._draft_tables.put(None, path)

    def submit(self, request: Request) -> str:
        """Queues a request and returns its id; RequestError if it cannot be answered."""
        return self.accept(self.prepare(request))

    def prepare(self, request: Request) -> Submission:
        """Does everything for a request that the engine's thread need not do; safe to call from any thread.

        It may read the request's adapter from disk. Call `accept` or `drop` with the result.
        """
        return self._incoming.prepare(request)

    def warm(self) -> None:
        """Prepares what a first request with a grammar would wait for; safe to call from any thread."""
        if self.model.pooling is None:
            self._incoming.warm()

    def accept(self, submission: Submission) -> str:
        """Queues a prepared request; QueueFullError if the queue is full.

        A background request is refused while there are others, and ended when one arrives.
        """
        if submission.request.background and len(self.background) < len(self._submissions):
            self.drop(submission)
            raise PreemptedError
        if not submission.request.background:
            for request_id in tuple(self.background):
                self._pending.extend(self._end(self._submissions[self._arrival_of[request_id]], "preempted"))
        waiting = self._scheduler.num_unstarted
        if waiting >= self.settings.max_waiting:
            self.drop(submission)
            raise QueueFullError(waiting, self.settings.max_waiting)
        first = submission.answers[0].sequence
        self._submissions[first.order[0]] = submission
        self._arrival_of[submission.request_id] = first.order[0]
        if submission.request.background:
            self.background.add(submission.request_id)
        if submission.due_s is not None:
            self._timed[submission.request_id] = submission.due_s
        self._prompt_tokens += first.num_prompt
        self._scheduler.add(first)
        return submission.request_id

    def drop(self, submission: Submission) -> None:
        """Releases what a prepared request holds if it will not be accepted; safe to call from any thread."""
        self._incoming.drop(submission)

    def cancel(self, request_id: str) -> None:
        """Ends a request's answers; does nothing if it has ended already."""
        if (arrival := self._arrival_of.get(request_id)) is not None:
            self._pending.extend(self._end(self._submissions[arrival], "cancelled"))

    def interrupt(self) -> None:
        """Ends the step that runs by a StepCancelledError, where its device can; safe to call from any thread."""
        self._runner.cancel()

    def abort(self, error: str) -> None:
        """Ends all requests with an error."""
        for submission in list(self._submissions.values()):
            self._num_failures += 1
            self._pending.extend(self._end(submission, "error", error))

    @property
    def has_work(self) -> bool:
        """Whether a `step` has anything to do."""
        return bool(self._submissions or self._pending or (self.adapters is not None and self.adapters.has_changes))

    def step(self) -> list[Delta]:
        """Runs the model once for everything that can advance, and returns what is new.

        An error ends only the requests that it concerns.
        """
        if self.adapters is not None:
            self.adapters.apply_changes()
        encoded = self._encode_features()  # a lost device leaves what is pending
        deltas, self._pending = [*self._pending, *encoded], []
        start_s = self._clock()
        deltas += self._end_late(start_s)
        cost = self._background_cost if self.background else self.cost
        chunks = self._scheduler.schedule(*self._limits(start_s), cost)
        if not chunks:
            return deltas
        chunks.sort(key=lambda chunk: chunk.sequence.adapter)  # so that an adapter is read once a step
        self._num_steps += 1
        try:
            if self.settings.max_draft:
                most = BACKGROUND_STEP_TOKENS if self.background else self.settings.max_step_tokens
                chunks = self.speculation.add(chunks, self._scheduler, most, self._answer_of)
            batch = replace(batching.pack(chunks, self._pages.page_size, self._break_row),
                            background=bool(self.background))
            logits_RV = self._runner.logits(batch, self._cache)
        except (DeviceLostError, StepCancelledError):  # the thread ends all requests
            self._pending = deltas
            raise
        except Exception as error:  # of any kind: it must not reach the requests outside this step
            for arrival in {chunk.sequence.order[0] for chunk in chunks}:
                deltas += self._fail(self._submissions[arrival], error)
            return deltas
        self._scheduler.complete(chunks)
        first = 0
        for chunk in chunks:
            last = first + chunk.end - chunk.first_row
            submission = self._submissions.get(chunk.sequence.order[0])  # None: another of its answers has just failed
            if last > first and submission is not None:
                try:
                    deltas += self._read_rows(submission, chunk, logits_RV[first:last, :self._vocab_size])
                except Exception as error:
                    deltas += self._fail(submission, error)
            first = last
        cost.record(load_of((chunk.start, chunk.end) for chunk in chunks), self._clock() - start_s)
        return deltas

    def embed(self, texts: Seq[Seq[int]]) -> list[Array]:
        """A vector of length 1 for each text; UnsupportedError if the model makes no embeddings."""
        pooling = self._pooling()
        vectors: list[Array] = []
        for group in self.embedding_groups(texts):
            self._scheduler.make_room(embedding.group_pages(group, self._pages.page_size))
            vectors += embedding.embed(group, pooling, self._runner, self._cache, self._pages,
                                       self.settings.max_step_tokens)
        return vectors

    def embedding_groups(self, texts: Seq[Seq[int]]) -> list[Seq[Seq[int]]]:
        """Splits texts into groups of about one step; an error if one of them cannot be embedded."""
        self._pooling()
        for text in texts:
            validate.check_tokens(text, self._vocab_size)
            if len(text) > self.max_context:
                raise ContextLengthError(len(text), 0, self.max_context)
        step_pages = self.settings.max_step_tokens // self._pages.page_size
        return embedding.split_groups(texts, min(step_pages, self._pages.num_pages), self._pages.page_size)

    def _pooling(self) -> Pooling:
        if self.model.pooling is None:
            raise UnsupportedError(f"{self.model.name} makes no embeddings: its file names no pooling",
                                   hint="use an embedding model")
        return self.model.pooling

    def stats(self) -> EngineStats:
        """Numbers for metrics; read from another thread, they may be a step apart from each other."""
        running, waiting = len(self._scheduler.running), len(self._scheduler.waiting)
        return EngineStats(
            running=running, waiting=waiting, background=running + waiting if self.background else 0,
            pages=self._pages.num_pages, pages_free=self._pages.num_available,
            pages_cached=self._pages.num_idle, cache_bytes=self._cache.nbytes, steps=self._num_steps,
            prompt_tokens=self._prompt_tokens, cached_tokens=self._cached_tokens,
            completion_tokens=self._completion_tokens, preemptions=self._scheduler.num_preemptions,
            failures=self._num_failures, images=0 if self._features is None else self._features.num_images,
            audio_chunks=0 if self._features is None else self._features.num_audio_chunks,
            adapters=0 if self.adapters is None else self.adapters.num_resident,
            adapter_bytes=0 if self.adapters is None else self.adapters.nbytes,
            drafts={name: replace(counts) for name, counts in tuple(self.speculation.counts.items())})

    def check(self) -> None:
        """Asserts that pages and sequences agree; for tests, after each step."""
        sequences = [*self._scheduler.running, *self._scheduler.waiting]
        self._pages.check(sequence.table[:sequence.num_pages].tolist() for sequence in sequences)
        assert {sequence.order[0] for sequence in sequences} == set(self._submissions), "a request is lost"
        if self.adapters is not None:
            self.adapters.check()

    def _limits(self, now_s: float) -> tuple[int | None, float | None]:
        """The tokens and seconds that the prompts of the next step may take; None: as the scheduler sees fit."""
        if self.background:
            return BACKGROUND_STEP_TOKENS, BACKGROUND_STEP_S
        if self._scheduler.has_urgent:
            self._urgent_until_s = now_s + URGENT_MEMORY_S
            return None, None
        return None, URGENT_STEP_S if now_s < self._urgent_until_s else None

    def _end_late(self, now_s: float) -> list[Delta]:
        """Ends the requests whose deadline has passed."""
        late = [request_id for request_id, due_s in self._timed.items() if due_s <= now_s]
        return [delta for request_id in late
                for delta in self._end(self._submissions[self._arrival_of[request_id]], "late")]

    def _answer_of(self, sequence: Sequence) -> EngineAnswer:
        return self._submissions[sequence.order[0]].answers[sequence.order[1]]

    def _encode_features(self) -> list[Delta]:
        """Works on the image or chunk that a sequence waits for, one piece; a failure ends the requests with it."""
        running = self._scheduler.active
        failure = None if self._features is None else self._features.advance(running)
        if failure is None:
            return []
        arrivals = {sequence.order[0] for sequence in failure.sequences}
        return [delta for arrival in sorted(arrivals)
                for delta in self._fail(self._submissions[arrival], failure.error)]

    def _read_rows(self, submission: Submission, chunk: Chunk, logits_RV: Array) -> list[Delta]:
        """Reads the rows of logits of one chunk: log-probabilities of the prompt, the next token, or both."""
        sequence = chunk.sequence
        if sequence.wants_scores:
            self._score_prompt(submission, chunk, logits_RV)
        if chunk.known_end < sequence.num_tokens:
            return []
        if submission.held_back and sequence.order[1] == 0:
            self._start_others(submission)
        answer = submission.answers[sequence.order[1]]
        if chunk.known_end == sequence.num_prompt:
            self._begin_answer(submission, answer)
        deltas = self._take_tokens(answer, chunk, logits_RV[-1 - chunk.num_drafted:])
        tokens = [token for delta in deltas for token in delta.tokens]
        self._completion_tokens += len(tokens)
        self.speculation.record(answer, tokens)
        if deltas[-1].finish is not None:
            if submission.request.prediction:
                deltas[-1] = replace(deltas[-1], prediction=self.speculation.counted(answer, Prediction.name))
            self._close_answer(submission, answer)
        elif chunk.num_drafted:
            self._scheduler.take_back(sequence)
        return deltas

    def _take_tokens(self, answer: EngineAnswer, chunk: Chunk, logits_RV: Array) -> list[Delta]:
        """Samples the next token, and after it as many as agree with the chunk's drafted ones."""
        drafted = chunk.sequence.tokens[chunk.known_end:chunk.end].tolist()
        deltas: list[Delta] = []
        for index, logits_V in enumerate(logits_RV):
            if index:
                self._scheduler.mark_computed(chunk.sequence, chunk.known_end + index)
            deltas.append(answer.take(logits_V))
            if deltas[-1].finish is not None or deltas[-1].tokens != tuple(drafted[index:index + 1]):
                break
        return deltas

    def _score_prompt(self, submission: Submission, chunk: Chunk, logits_RV: Array) -> None:
        """Scores prompt tokens: the row of a position holds the log-probability of the token after it."""
        sequence = chunk.sequence
        for position in range(chunk.first_row, min(chunk.end, sequence.num_prompt - 1)):
            submission.prompt_logprobs.append(token_logprob(
                self.model.tokenizer, logits_RV[position - chunk.first_row],
                int(sequence.tokens[position + 1]), submission.request.prompt_logprobs or 0))
        sequence.num_scored = chunk.end

    def _start_others(self, submission: Submission) -> None:
        """Starts the other answers: the first one has computed the prompt, which they find in the prefix cache."""
        for answer in submission.held_back:
            self._scheduler.add(answer.sequence)
        submission.held_back = []

    def _begin_answer(self, submission: Submission, answer: EngineAnswer) -> None:
        """Gives an answer what it reports of the prompt: how much was cached and, once, its log-probabilities."""
        first = submission.answers[0].sequence
        if answer.index == 0:
            self._cached_tokens += first.num_cached
        answer.num_cached = first.num_cached
        if submission.request.prompt_logprobs is not None:
            answer.prompt_logprobs = tuple(submission.prompt_logprobs)

    def _fail(self, submission: Submission, error: Exception) -> list[Delta]:
        self._num_failures += 1
        return self._end(submission, "error", f"{type(error).__name__}: {error}")

    def _end(self, submission: Submission, finish: FinishReason, error: str | None = None) -> list[Delta]:
        """Ends the open answers of a request."""
        deltas = []
        for index in sorted(submission.open):
            deltas.append(submission.answers[index].end(finish, error))
            self._close_answer(submission, submission.answers[index])
        return deltas

    def _close_answer(self, submission: Submission, answer: EngineAnswer) -> None:
        self._scheduler.remove(answer.sequence)
        submission.open.discard(answer.index)
        if not submission.open:
            del self._submissions[self._arrival_of.pop(submission.request_id)]
            self.background.discard(submission.request_id)
            self._timed.pop(submission.request_id, None)
            self.drop(submission)


def _adapters(model: LoadedModel, settings: EngineSettings, draft_tables: DraftTables | None) -> Adapters | None:
    if not settings.max_adapters:
        return None
    from brise.engine.adapters import Adapters  # noqa: PLC0415 - an engine without adapters starts sooner

    return Adapters(model, settings.max_adapters, settings.max_rank, settings.adapter_bytes, draft_tables)


def _num_pages(model: LoadedModel, settings: EngineSettings) -> int:
    if settings.num_pages is not None:
        return settings.num_pages
    page = model.backend.cache_bytes(model.config, 1, settings.page_size, settings.cache_format)
    return cache_pages(page.device or page.host, settings.cache_bytes, _max_context(model, settings),
                       settings.page_size, model.backend.available().device if page.device else 0)


def _max_context(model: LoadedModel, settings: EngineSettings) -> int:
    context = settings.max_context
    if context is not None and not 1 <= context <= model.config.max_context:
        raise UnsupportedError(f"a context of {context} tokens was requested; {model.name} allows 1 to "
                               f"{model.config.max_context}")
    return context or model.config.max_context
