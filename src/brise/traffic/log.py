"""What `brise log` does with captured traffic beside looking: labels answers and takes in files of other systems.

Which exchanges are meant is a Query (store.py); to forget a subject and to expire what is old are methods of the store.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from brise.data.left_out import LeftOut
from brise.errors import EvidenceError, StoreError
from brise.traffic.conversations import Conversations
from brise.traffic.imports.read import BadFileError, Format, read
from brise.traffic.records import ConversationEnd, Exchange, Label, new_id
from brise.traffic.sql_store import SqlStore
from brise.traffic.stores import open_threads

NO_REQUEST = "it is no request to a model"  # a span of a database, a whole trace


@dataclass(frozen=True)
class LabelEntry:
    """What a person or an outcome says of the exchange's own answer (`score`) or of another `answer` to it: 0 wrong, 1
    right.
    """

    exchange: str
    score: float | None = None
    answer: str | None = None
    answer_score: float | None = None
    source: Literal["outcome", "human"] = "human"
    who: str = "me"
    note: str = ""


@dataclass(frozen=True)
class ImportOptions:
    """Files that belong together. `task` is the task of all rows, `subject` that of rows that name none.

    One bad row refuses all of them, unless `skip_bad`.
    """

    files: tuple[Path, ...]
    format: Format = "auto"
    task: str | None = None
    subject: str | None = None
    skip_bad: bool = False


@dataclass(frozen=True)
class ImportOutcome:
    """Exchanges that were `added` and that were `known`; bad rows with their reasons; rows of other kinds."""

    added: int
    known: int
    bad: tuple[tuple[str, str], ...]
    passed_over: int

    @property
    def left_out(self) -> LeftOut:
        """All rows that are no exchanges, by reason."""
        counts = LeftOut(reason for _, reason in self.bad)
        if self.passed_over:
            counts[NO_REQUEST] += self.passed_over
        return counts

    def to_json(self) -> dict[str, object]:
        """For machines."""
        return {"added": self.added, "known": self.known, "left_out": self.left_out.to_json(),
                "bad": [{"place": place, "reason": reason} for place, reason in self.bad]}


def find(store: SqlStore, id: str) -> Exchange:
    """The exchange, or an error that names it."""
    exchange = store.exchange(id)
    if exchange is None:
        raise StoreError(f"there is no exchange {id!r} in {store.place}", hint="brise log list shows what there is")
    return exchange


def label(store: SqlStore, entry: LabelEntry) -> Exchange:
    """Writes the label down; the exchange that it is of."""
    exchange = find(store, entry.exchange)
    if entry.score is None and entry.answer_score is None:
        raise StoreError("there is nothing to write down", hint="--score 0..1, or --answer ID --answer-score 0..1")
    if (entry.answer is None) != (entry.answer_score is None):
        raise StoreError("--answer and --answer-score belong together")
    known = [answer.id for answer in store.answers([exchange.id])]
    if entry.answer is not None and entry.answer not in known:
        raise StoreError(f"exchange {exchange.id} has no answer {entry.answer!r}; it has: {', '.join(known) or 'none'}")
    now = time.time()
    store.add(labels=[Label(new_id(now), exchange.id, now, entry.source, entry.who, entry.score, entry.answer,
                            entry.answer_score, entry.note)])
    return exchange


def import_files(store: SqlStore, options: ImportOptions, home: Path) -> ImportOutcome:
    """In one transaction: after a crash all rows are there, or none."""
    found = read(options.files, options.format)
    if found.bad and not options.skip_bad:
        raise BadFileError(found)
    if not found.exchanges:
        raise EvidenceError(f"there is no request to a model in {', '.join(map(str, options.files))}",
                            hint=None if not found.passed_over else f"{found.passed_over} rows are of other kinds")
    exchanges, threads = _placed([replace(exchange, task=options.task or exchange.task,
                                          subject=exchange.subject or options.subject)
                                  for exchange in found.exchanges], open_threads(store, home))
    ids = {exchange.id for exchange in exchanges}
    num_known = len(store.known(ids))
    store.add(exchanges, threads=threads)
    return ImportOutcome(len(ids) - num_known, len(exchanges) - len(ids) + num_known, tuple(found.bad),
                         found.passed_over)


def _placed(exchanges: Sequence[Exchange], threads: Conversations) -> tuple[list[Exchange], list[ConversationEnd]]:
    """In their conversations."""
    placed, ends = list[Exchange](), list[ConversationEnd]()
    for exchange in exchanges:
        found, left = threads.place(exchange)
        placed.append(found)
        ends += left
    return placed, ends
