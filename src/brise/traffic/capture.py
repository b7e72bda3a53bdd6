"""The capture takes what the gateway saw to the store: a bounded queue, and one thread that writes.

`record` only puts into the queue. It never waits and never raises: a request is answered whether or not its traffic
can be kept. What could not be kept is counted by reason (`stats`):

    full         the queue was full, because the disk, or whoever locks the database, was slower than the traffic
    unwritable   the store refused this row itself, and would again
    orphan       it belongs to an exchange that was dropped, or is no longer there
    closed       it came after `drain`, or `drain` ran out of time

Several rows go into one transaction. If that fails for a reason that may pass (a lock, a full disk, a database that
restarts), it is tried again, at longer and longer intervals, while the queue takes new rows.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from brise.errors import StoreError
from brise.files.digests import hash_draw
from brise.traffic.records import ConversationEnd, Exchange, Label, Pending, RecordedAnswer
from brise.traffic.schema import brief
from brise.traffic.store import TrafficStore, UnknownExchangeError

Reason = Literal["full", "unwritable", "orphan", "closed"]
RETRY_S, LONGEST_RETRY_S = 0.1, 5.0
EXPIRE_EVERY_S = 600.0
# From the first row that waits until they are written: at 100 requests/s five go into one transaction, which costs a
# fifth of the time, and of the interpreter's lock, that five would.
GATHER_S = 0.05
MOST_LEFT_OUT = 20_000  # ids of exchanges that were not sampled, for what comes to them later


@dataclass(frozen=True)
class CaptureOptions:
    """`share` of conversations is kept, each whole or not at all; `content`: bodies too.

    What waits for an answer or was drawn for an audit is always kept: leaving it out by chance would bias
    estimates from it. `ttl_s`: exchanges older than this are deleted while the gateway runs. `max_rows` and `max_bytes`
    bound the queue; `batch_rows` go into one transaction at most.
    """

    share: float = 1.0
    content: bool = True
    ttl_s: float | None = None
    max_rows: int = 20_000
    max_bytes: int = 256_000_000
    batch_rows: int = 256


@dataclass(frozen=True)
class CaptureStats:
    """Rows so far. `written` ones are durable; `skipped` counts requests that were not to be kept."""

    written: int
    waiting: int
    waiting_bytes: int
    retries: int
    dropped: Mapping[str, int]
    skipped: Mapping[str, int]
    expired: int
    last_error: str | None


@dataclass(frozen=True)
class _Batch:
    """What belongs together and is written together."""

    exchanges: tuple[Exchange, ...] = ()
    answers: tuple[RecordedAnswer, ...] = ()
    labels: tuple[Label, ...] = ()
    pending: tuple[Pending, ...] = ()
    threads: tuple[ConversationEnd, ...] = ()
    skipped: tuple[tuple[float, str], ...] = ()
    waiting_rows: int = 0  # as it was recorded; fewer are written where only a share of conversations is kept
    waiting_bytes: int = 0
    is_prepared: bool = False

    @property
    def rows(self) -> int:
        return len(self.exchanges) + len(self.answers) + len(self.labels) + len(self.pending)


@dataclass
class _Counts:
    written: int = 0
    retries: int = 0
    expired: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    last_error: str | None = None


class Threader(Protocol):
    """Finds the conversation of an exchange (conversations.py)."""

    def place(self, exchange: Exchange) -> tuple[Exchange, tuple[ConversationEnd, ...]]: ...


class Capture:
    """Takes records from any thread and writes them on its own. End it with `drain`."""

    def __init__(self, store: TrafficStore, options: CaptureOptions = CaptureOptions(), threads: Threader | None = None,
                 clock: Callable[[], float] = time.time, leads: Callable[[], bool] = lambda: True) -> None:
        self._store, self._options, self._threads, self._clock = store, options, threads, clock
        self._leads = leads
        self._left_out: OrderedDict[str, None] = OrderedDict()  # ids of exchanges that were not sampled
        self._queue: deque[_Batch] = deque()
        self._waiting_rows = self._waiting_bytes = 0
        self._num_put = self._num_settled = 0  # batches; they are settled in the order in which they were put
        self._counts = _Counts()
        self._changed = threading.Condition()
        self._is_closed = False
        self._deadline: float | None = None  # of `drain`, by time.monotonic
        self._thread = threading.Thread(target=self._run, name="brise-capture", daemon=True)
        self._thread.start()

    def record(self, exchange: Exchange | None = None, answers: Iterable[RecordedAnswer] = (),
               pending: Iterable[Pending] = (), labels: Iterable[Label] = ()) -> None:
        """An exchange, or what came later to one. If its conversation has no name (""), the writer finds it."""
        batch = _Batch(() if exchange is None else (exchange,), tuple(answers), tuple(labels), tuple(pending))
        self._put(replace(batch, waiting_rows=batch.rows, waiting_bytes=_size(batch)))

    def skip(self, reason: str) -> None:
        """Counts a request of which nothing else is written, because the client said so or it was not sampled."""
        self._put(_Batch(skipped=((self._clock(), reason),), waiting_bytes=64))

    def stats(self) -> CaptureStats:
        """The counters at this moment."""
        with self._changed:
            counts = self._counts
            return CaptureStats(counts.written, self._waiting_rows, self._waiting_bytes, counts.retries,
                                dict(counts.dropped), dict(counts.skipped), counts.expired, counts.last_error)

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Waits until all that was recorded so far is written or dropped; False if that took longer. It does not wait
        for what is recorded meanwhile: under steady load the queue is never empty."""
        with self._changed:
            last = self._num_put
            return self._changed.wait_for(lambda: self._num_settled >= last, timeout_s)

    def drain(self, timeout_s: float = 10.0) -> CaptureStats:
        """Takes nothing more, writes what waits for at most `timeout_s`, and ends the thread."""
        with self._changed:
            self._is_closed = True
            self._deadline = time.monotonic() + timeout_s
            self._changed.notify_all()
        self._thread.join(timeout_s + 10.0)  # a transaction that has begun may wait for a lock beyond the deadline
        return self.stats()

    def _put(self, batch: _Batch) -> None:
        with self._changed:
            if self._is_closed:
                self._counts.dropped["closed"] += batch.rows
            elif (self._waiting_rows + batch.waiting_rows > self._options.max_rows
                  or self._waiting_bytes + batch.waiting_bytes > self._options.max_bytes):
                self._counts.dropped["full"] += batch.rows
            else:
                self._queue.append(batch)
                self._num_put += 1
                self._waiting_rows += batch.waiting_rows
                self._waiting_bytes += batch.waiting_bytes
                self._changed.notify_all()

    # The rest runs on the writer's thread.

    def _run(self) -> None:
        next_expiry = time.monotonic()
        while True:
            wait_s = None if self._options.ttl_s is None else max(next_expiry - time.monotonic(), 0.0)
            with self._changed:
                if self._changed.wait_for(lambda: self._queue or self._is_closed, wait_s):
                    self._changed.wait_for(lambda: self._waiting_rows >= self._options.batch_rows or self._is_closed,
                                        GATHER_S)
                batches = self._take()
                if not batches and self._is_closed:
                    return
            if batches:
                self._write(batches)
            if self._options.ttl_s is not None and time.monotonic() >= next_expiry:
                self._expire(self._options.ttl_s)
                next_expiry = time.monotonic() + EXPIRE_EVERY_S

    def _take(self) -> list[_Batch]:
        taken, rows = list[_Batch](), 0
        while self._queue and (not taken or rows + self._queue[0].rows <= self._options.batch_rows):
            taken.append(self._queue.popleft())
            rows += taken[-1].rows
        return taken

    def _write(self, batches: list[_Batch]) -> None:
        """Writes them together. If one of them cannot be written at all, each goes alone, so that only that one is
        lost. `batches` become prepared ones on the way."""
        try:
            is_written = self._insist(batches)
        except Exception as error:  # any error: a gateway answers requests even if its traffic cannot be kept
            if len(batches) > 1:
                for batch in batches:
                    self._write([batch])
            else:
                self._settle(batches, "orphan" if isinstance(error, UnknownExchangeError) else "unwritable", error)
        else:
            self._settle(batches, None if is_written else "closed")

    def _insist(self, batches: list[_Batch]) -> bool:
        """Tries until the batches are written, or fails for good. False: the time of `drain` is over."""
        wait_s = RETRY_S
        while self._deadline is None or time.monotonic() < self._deadline:
            try:
                for place, batch in enumerate(batches):
                    batches[place] = batch if batch.is_prepared else self._prepared(batch)
                self._add(batches)
            except UnknownExchangeError:
                raise
            except StoreError as error:
                self._pause(wait_s, error)
                wait_s = min(2 * wait_s, LONGEST_RETRY_S)
            else:
                return True
        return False

    def _prepared(self, batch: _Batch) -> _Batch:
        """The batch as it is written: with its conversations, without those that are not sampled, and without content
        if none is kept."""
        content, exchanges, threads = self._options.content, list[Exchange](), list[ConversationEnd]()
        for exchange in batch.exchanges:
            placed, ends = self._place(exchange)
            is_needed = bool(batch.pending) or exchange.audit_probability is not None
            if is_needed or self._is_sampled(placed.conversation):
                exchanges.append(placed if content else replace(
                    placed, request=None, response=None, error=brief(placed.error, placed.status)))
                threads += ends
            else:
                self._leave_out(exchange.id)
        kept = replace(
            batch, exchanges=tuple(exchanges), threads=tuple(threads),
            answers=tuple(answer if content else replace(
                answer, response=None, error=brief(answer.error, answer.status)) for answer in batch.answers
                          if answer.exchange not in self._left_out),
            labels=tuple(label for label in batch.labels if label.exchange not in self._left_out))
        missing = len(batch.exchanges) - len(exchanges)
        return replace(kept, skipped=(*batch.skipped, *[(self._clock(), "sampled")] * missing), is_prepared=True)

    def _place(self, exchange: Exchange) -> tuple[Exchange, tuple[ConversationEnd, ...]]:
        if self._threads is None:
            return (exchange if exchange.conversation else replace(exchange, conversation=exchange.id)), ()
        return self._threads.place(exchange)

    def _is_sampled(self, conversation: str) -> bool:
        """Whether a conversation is kept. It depends on its name only, so every gateway decides alike."""
        if self._options.share >= 1.0:
            return True
        return hash_draw(conversation) < self._options.share

    def _leave_out(self, exchange: str) -> None:
        """What comes later to this exchange, such as the shadow's answer, is left out too."""
        self._left_out[exchange] = None
        if len(self._left_out) > MOST_LEFT_OUT:
            self._left_out.popitem(last=False)

    def _add(self, batches: list[_Batch]) -> None:
        if any(batch.rows for batch in batches):
            self._store.add(
                [item for batch in batches for item in batch.exchanges],
                [item for batch in batches for item in batch.answers],
                [item for batch in batches for item in batch.labels],
                [item for batch in batches for item in batch.pending],
                [item for batch in batches for item in batch.threads])
        counted = Counter((at_s // 3600 * 3600, reason) for batch in batches for at_s, reason in batch.skipped)
        if counted:
            self._store.skip([(at_s, reason, number) for (at_s, reason), number in counted.items()])

    def _pause(self, wait_s: float, error: StoreError) -> None:
        """Waits before the next try; `drain` may come meanwhile and shorten it."""
        with self._changed:
            self._counts.retries += 1
            self._counts.last_error = str(error)
            self._changed.wait_for(lambda: self._deadline is not None, wait_s)
            if self._deadline is not None:
                self._changed.wait_for(lambda: False, max(0.0, min(wait_s, self._deadline - time.monotonic())))

    def _settle(self, batches: Sequence[_Batch], dropped: Reason | None, error: Exception | None = None) -> None:
        """They no longer wait: written, or dropped for a reason."""
        with self._changed:
            self._num_settled += len(batches)
            for batch in batches:
                self._waiting_rows -= batch.waiting_rows
                self._waiting_bytes -= batch.waiting_bytes
                if dropped is None:
                    self._counts.written += batch.rows
                    self._counts.skipped.update(reason for _, reason in batch.skipped)
                else:
                    self._counts.dropped[dropped] += batch.rows
            if error is not None:
                self._counts.last_error = str(error)
            self._changed.notify_all()

    def _expire(self, ttl_s: float) -> None:
        """Deletes what is too old, if this server is the one that does so."""
        if not self._leads():
            return
        try:
            expired = self._store.expire(self._clock() - ttl_s)
        except Exception as error:  # as in `_write`: the thread goes on; the next time is in ten minutes
            with self._changed:
                self._counts.last_error = str(error)
        else:
            with self._changed:
                self._counts.expired += expired


def _size(batch: _Batch) -> int:
    """About how much memory the bodies take: the lengths of their strings, and something for each value."""
    size, pending = 256 * batch.rows, list[object]()
    for exchange in batch.exchanges:
        pending += (exchange.request, exchange.response)
    pending += (answer.response for answer in batch.answers)
    while pending:
        value = pending.pop()
        match value:
            case str():
                size += 50 + len(value)
            case dict() | Mapping():  # the usual type comes first: checking against an ABC takes longer
                size += 100 * len(value)
                pending += value.values()
            case list() | tuple():
                size += 56
                pending += value
            case _:
                size += 16
    return size
