"""Tables of n-grams of captured answers: made of a store, sealed, and forgotten with any subject that is in them.

A table of traffic is a table of drafts (data/ngrams.py) sealed under a key of its own in the store's key ring:

    "brise-sealed\\0\\0\\0\\1"     16 bytes
    id of the key              16 hexadecimal digits
    nonce | ciphertext | tag   the table, bound to "ngrams:" and the id

The ring knows whose data went into each table. To forget one of them, or when the oldest of them expire, destroys the
table's key; the table is made again from what is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock

from brise.data.count_ngrams import CountedRow, NgramOptions, count_ngrams
from brise.data.left_out import LeftOut
from brise.data.ngrams import SEALED, SEALED_ID_BYTES, NgramFacts, NgramTable, read_table, sealed_id, table_in
from brise.data.parse_row import RowRules, parse_row
from brise.data.render import rows_of
from brise.engine.drafts import DraftSource, DraftState
from brise.errors import BriseError, EvidenceError, RequestError, StoreError
from brise.files.atomic import staged_file
from brise.text.load import Tokens
from brise.traffic.export import ExportReport, TrafficExportOptions, Whose, rows
from brise.traffic.scrub import Scrubber
from brise.traffic.seal import SealError, seal, unseal
from brise.traffic.sql_store import SqlStore
from brise.traffic.store import EVERYTHING, Query
from brise.traffic.stores import open_store

CHECKED_S = 60.0  # between two looks whether a sealed table's key is still there


@dataclass(frozen=True)
class TableOptions:
    """Which answers make a table in the file `out`, which is replaced.

    `held` are conversations of open tests, as in TrafficExportOptions: they are left out.
    """

    out: Path
    query: Query = EVERYTHING
    whose: Whose = "served"
    ngrams: NgramOptions = NgramOptions()
    held: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TableReport:
    """What a table was made of."""

    facts: NgramFacts
    entries: int
    nbytes: int
    subjects: int
    left_out: LeftOut


def write_ngrams(store: SqlStore, tokens: Tokens, options: TableOptions) -> TableReport:
    """Counts the answers, the newest first, and writes the sealed table. Secrets and personal data that have a form of
    their own are placeholders in it.

    EvidenceError if there is no answer; StoreError if somebody was forgotten meanwhile.
    """
    query = replace(options.query, newest_first=True)
    known = {exchange.id: (exchange.subject, exchange.conversation or exchange.id, exchange.at_s)
             for exchange in store.exchanges(replace(query, content=False))}
    before = store.keys.ids_of({subject for subject, _, _ in known.values()})
    used, report = set[str](), ExportReport()
    exported = rows(store, query, TrafficExportOptions(options.whose, held=options.held), Scrubber(), report)
    counted = (row for row in exported if row["id"] in known)
    table = count_ngrams(_counted(counted, known, tokens, used, report), tokens.tokenizer, "traffic", options.ngrams)
    if not used:
        raise EvidenceError("\n".join(["there is no answer to count", *report.left_out.lines()]))
    subjects = {known[id][0] for id in used}
    key = store.keys.of_derived(str(options.out.absolute()), subjects, min(known[id][2] for id in used))
    after = store.keys.ids_of(subjects)
    if any(before.get(subject) != after.get(subject) for subject in subjects):
        store.keys.destroy_derived(id=key.id)
        raise StoreError("a subject of these answers was forgotten while they were counted", hint="run it again")
    sealed = SEALED + key.id.encode() + seal(key.secret, f"ngrams:{key.id}", table)
    old = _id_in(options.out)
    with staged_file(options.out, len(sealed), mode=0o600, replaces=True) as file:
        file.write(sealed)
    if old is not None:
        store.keys.destroy_derived(id=old)
    opened = table_in(memoryview(table))
    return TableReport(opened.facts, len(opened), len(sealed), len(subjects), report.left_out)


def opened_table(store: SqlStore, sealed: bytes) -> bytes:
    """The table in a sealed file's bytes; SealError if its key is destroyed, or is another store's."""
    id = sealed_id(sealed)
    key = store.keys.by_id([id]).get(id)
    if key is None:
        raise SealError(f"{store.place} has no key for it: a subject of its answers was forgotten, they expired, or it "
                        "is of another store")
    return unseal(key.secret, f"ngrams:{id}", sealed[len(SEALED) + SEALED_ID_BYTES:])


@dataclass(frozen=True)
class TableOpener:
    """Opens sealed tables of drafts for an engine, with the keys of the store at `place`."""

    place: str | Path | None
    home: Path
    clock: Callable[[], float] = time.monotonic

    def __call__(self, path: Path, tokenizer: str) -> DraftSource:
        return SealedTable(self, path, tokenizer)

    def read_sealed(self, path: Path, tokenizer: str) -> NgramTable:
        """The table in a sealed file; a BriseError says why it cannot be opened."""
        with closing(open_store(self.place, self.home, must_exist=True)) as store:
            return read_table(path, tokenizer, partial(opened_table, store))

    def is_kept(self, id: str) -> bool:
        """Whether the store still has this key; also if it cannot be asked."""
        try:
            with closing(open_store(self.place, self.home, must_exist=True)) as store:
                return bool(store.keys.by_id([id]))
        except StoreError:
            return True


class SealedTable:
    """A sealed table while it is in use. Once its key is destroyed, within CHECKED_S, it drafts nothing any more, or
    what a new table in its place has. Safe to use from several threads.
    """

    name = NgramTable.name

    def __init__(self, opener: TableOpener, path: Path, tokenizer: str) -> None:
        self._opener, self._path, self._tokenizer, self._lock = opener, path, tokenizer, Lock()
        self._id, self._checked_s = _id_in(path), opener.clock()
        self._table: NgramTable | None = opener.read_sealed(path, tokenizer)

    def start(self, prompt: Sequence[int]) -> DraftState:
        """The drafts of an answer to this prompt."""
        with self._lock:
            now = self._opener.clock()
            if now - self._checked_s >= CHECKED_S:
                self._checked_s = now
                self._check()
            table = self._table
        return _Nothing() if table is None else table.start(prompt)

    def _check(self) -> None:
        id = _id_in(self._path)
        if id == self._id and (self._table is None or id is None or self._opener.is_kept(id)):
            return
        self._id, self._table = id, None
        if id is not None:
            try:
                self._table = self._opener.read_sealed(self._path, self._tokenizer)
            except BriseError:
                return


class _Nothing:
    """Drafts nothing."""

    def extend(self, tokens: Sequence[int]) -> None:
        pass

    def propose(self, most: int) -> tuple[Sequence[int], Sequence[float]]:
        return (), ()


def forget(store: SqlStore, subject: str, *, everywhere: bool = False) -> tuple[int, list[Path]]:
    """Forgets a subject with the tables that hold something of it: how many exchanges, and which files are removed.

    A file that is not there any more, or was moved, cannot be opened either: its key is destroyed.
    """
    paths = [Path(path) for path in store.keys.derived_paths(subject, everywhere=everywhere)]
    ids = {path: _id_in(path) for path in paths}
    concerned = store.forget(subject, everywhere=everywhere)
    removed = []
    for path, id in ids.items():
        if id is not None and not store.keys.by_id([id]):
            path.unlink(missing_ok=True)
            removed.append(path)
    return concerned, removed


def _counted(exported: Iterator[Mapping[str, object]], known: Mapping[str, tuple[str | None, str, float]],
             tokens: Tokens, used: set[str], report: ExportReport) -> Iterator[CountedRow]:
    """The rows in tokens; `used` gets the exchanges that they are of. Those without a subject count by conversation."""
    for row in exported:
        id = str(row["id"])
        subject, conversation, _ = known[id]
        try:
            example = parse_row(dict(row), id, Path("."), RowRules())  # type: ignore[arg-type]
            encoded = rows_of(example, tokens)
        except RequestError as error:
            report.left_out[str(error).partition("\n")[0]] += 1
            continue
        used.add(id)
        owner = f"conversation {conversation}" if subject is None else f"subject {subject}"
        yield from (CountedRow(each, owner) for each in encoded)


def _id_in(path: Path) -> str | None:
    """The id of the key of a sealed table; None if there is none."""
    try:
        with path.open("rb") as file:
            head = file.read(len(SEALED) + SEALED_ID_BYTES)
    except OSError:
        return None
    return sealed_id(head) if head.startswith(SEALED) and len(head) == len(SEALED) + SEALED_ID_BYTES else None
