"""The store of captured traffic: what every store can do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from brise.dialects.bodies import Body
from brise.errors import StoreError
from brise.traffic.records import ConversationEnd, Exchange, Label, LedgerEntry, Mode, Pending, RecordedAnswer, Role


class UnknownExchangeError(StoreError):
    """An answer, a label or a waiting request belongs to an exchange that the store does not have."""


@dataclass(frozen=True)
class Query:
    """Which exchanges to read. None means any; times are seconds since the epoch, `until_s` is not included.

    `after` is the time and id of an exchange: those that follow it, in the order that is asked for. `statuses` are
    those of HTTP from the first to the second, which is not included. `name` is a part of a name, in any case: of the
    model that was asked for or that answered, of the subject, the conversation or the exchange.
    Without `content` they come without their bodies, and many times faster: nothing is opened.
    """

    task: str | None = None
    model: str | None = None
    modes: Sequence[Mode] | None = None
    conversation: str | None = None
    subject: str | None = None
    label: tuple[str, str] | None = None  # a header x-brise-label-NAME and its value
    since_s: float | None = None
    until_s: float | None = None
    after: tuple[float, str] | None = None
    statuses: tuple[int, int] | None = None
    name: str | None = None
    text: str | None = None  # anywhere in the bodies, in any case
    has_answer: Role | None = None
    newest_first: bool = False
    limit: int | None = None
    content: bool = True


EVERYTHING = Query()


@dataclass(frozen=True)
class Company:
    """The roles of the other answers to an exchange, in order, and how many labels there are."""

    roles: tuple[Role, ...] = ()
    labels: int = 0


class TrafficStore(Protocol):
    """All methods may be called from any thread; those that write are durable when they return."""

    def add(self, exchanges: Iterable[Exchange] = (), answers: Iterable[RecordedAnswer] = (),
            labels: Iterable[Label] = (),
            pending: Iterable[Pending] = (), threads: Iterable[ConversationEnd] = ()) -> None:
        """Writes all of it in one transaction. An id that is there already is left as it is, but
        for an exchange that failed: a request that was sent again may have been answered.

        UnknownExchangeError, and nothing is written, if something belongs to an exchange that is not there.
        """
    def exchanges(self, query: Query = EVERYTHING) -> Iterator[Exchange]:
        """In the order of time. One whose subject was forgotten comes without its bodies."""
    def exchange(self, id: str, *, content: bool = True) -> Exchange | None: ...
    def answers(self, exchanges: Sequence[str], role: Role | None = None, *,
                content: bool = True) -> Iterator[RecordedAnswer]: ...
    def labels(self, exchanges: Sequence[str], *, content: bool = True) -> Iterator[Label]: ...
    def company(self, exchanges: Sequence[str]) -> Mapping[str, Company]:
        """What there is beside each of these exchanges; nothing is opened for it."""
    def count(self, query: Query = EVERYTHING) -> int: ...
    def pending(self, limit: int = 100) -> list[Pending]:
        """The oldest requests that wait for the large model's answer."""
    def settle(self, exchange: str) -> None:
        """Removes a request from those that wait."""
    def postpone(self, exchange: str) -> None:
        """Counts one more attempt that did not answer it."""
    def threads(self, digests: Sequence[str]) -> Sequence[ConversationEnd]:
        """What is known by these digests, newest first."""
    def skip(self, counts: Iterable[tuple[float, str, int]]) -> None:
        """Counts requests of which nothing else is written: when (by the hour), why, how many."""
    def skipped(self) -> Mapping[str, int]:
        """Their numbers by reason."""
    def append(self, kind: str, body: Body) -> LedgerEntry:
        """Adds a line to the ledger, after the newest one, whoever wrote that."""
    def ledger(self, after: int = 0) -> Iterator[LedgerEntry]:
        """Lines with a number over `after`, in order."""
    def forget(self, subject: str, *, everywhere: bool = False) -> int:
        """Destroys this store's key of a subject: nobody can read its bodies any more, here or in a copy.

        Its name, its labels and the names of its conversations go too. With `everywhere` the keys of other stores that
        are kept in the same place are destroyed, too. Returns the number of exchanges concerned.
        """
    def expire(self, before_s: float) -> int:
        """Deletes exchanges before this time, with their answers and labels. The ledger is never deleted."""
    def close(self) -> None: ...
