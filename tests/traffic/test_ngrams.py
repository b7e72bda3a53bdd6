"""Tables of n-grams of captured answers: sealed, counted from whom they may be, and forgotten with their subjects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from brise.data.count_ngrams import NgramOptions
from brise.data.ngrams import FILE, NgramTable, read_table, tokenizer_digest
from brise.errors import BriseError, EvidenceError, StoreError, UnsupportedError
from brise.traffic import ngrams
from brise.traffic.ngrams import CHECKED_S, TableOpener, TableOptions, opened_table, write_ngrams
from brise.traffic.records import Exchange
from brise.traffic.seal import SealError
from brise.traffic.sql_store import SqlStore
from brise.traffic.store import Query
from tests.data.rows import tokens
from tests.store_fixtures import Opener
from tests.traffic.records import exchange

TOKENS = tokens()


def said(number: int, text: str, subject: str | None, at_s: float = 1.0, **changes: object) -> Exchange:
    return exchange(f"{number:04}", at_s, subject=subject, response={"choices": [{"finish_reason": "stop", "message": {
        "role": "assistant", "content": text}}]}, **changes)


def options(folder: Path, **changes: object) -> TableOptions:
    return TableOptions(folder / FILE, **changes)  # type: ignore[arg-type]


def opened(store: SqlStore, path: Path) -> NgramTable:
    return read_table(path, tokenizer_digest(TOKENS.tokenizer), partial(opened_table, store))


def continued(table: NgramTable, text: str, most: int = 40) -> str:
    """What the table drafts after the beginning of an answer."""
    drafts = table.start(TOKENS.tokenizer.encode(text, before="text"))
    return text + TOKENS.tokenizer.decode(drafts.propose(most)[0])


def shared(texts: Sequence[str], subjects: Sequence[str | None]) -> list[Exchange]:
    return [said(number, text, subject, float(number)) for number, (text, subject) in enumerate(
        (text, subject) for subject in subjects for text in texts)]


def test_what_several_subjects_were_told_is_drafted(store: SqlStore, tmp_path: Path) -> None:
    store.add([*shared(["the ticket is closed"], ["anna", "ben"]), said(90, "anna owes 12345 euros", "anna")])
    report = write_ngrams(store, TOKENS, options(tmp_path))
    table = opened(store, tmp_path / FILE)
    assert continued(table, "the ti") == "the ticket is closed"
    assert continued(table, "anna owes 12", 3) == "anna owes 12"
    assert (report.subjects, report.facts.answers, report.facts.source) == (2, 3, "traffic")
    assert report.entries == len(table)


def test_a_table_is_sealed(store: SqlStore, tmp_path: Path) -> None:
    store.add(shared(["the ticket is closed"], ["anna", "ben"]))
    write_ngrams(store, TOKENS, options(tmp_path))
    data = (tmp_path / FILE).read_bytes()
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    assert b"tokenizer" not in data
    with pytest.raises(UnsupportedError, match="sealed"):
        read_table(tmp_path / FILE)
    (tmp_path / FILE).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(SealError):
        opened(store, tmp_path / FILE)


@pytest.mark.parametrize("everywhere", [False, True])
def test_forgetting_one_subject_ends_the_table_and_its_copies(store: SqlStore, tmp_path: Path,
                                                              everywhere: bool) -> None:
    store.add(shared(["the ticket is closed"], ["anna", "ben", "carl"]))
    write_ngrams(store, TOKENS, options(tmp_path))
    copy = tmp_path / "copy.bin"
    copy.write_bytes((tmp_path / FILE).read_bytes())
    assert ngrams.forget(store, "nobody") == (0, []) and opened(store, copy)
    assert ngrams.forget(store, "anna", everywhere=everywhere) == (1, [tmp_path / FILE])
    assert not (tmp_path / FILE).exists()
    with pytest.raises(SealError, match="forgotten"):
        opened(store, copy)
    assert write_ngrams(store, TOKENS, options(tmp_path)).subjects == 2, "of those that are left"
    assert continued(opened(store, tmp_path / FILE), "the ti") == "the ticket is closed"


def test_a_store_alone_forgets_the_table_too(store: SqlStore, tmp_path: Path) -> None:
    store.add(shared(["the ticket is closed"], ["anna", "ben"]))
    write_ngrams(store, TOKENS, options(tmp_path))
    store.forget("ben")
    with pytest.raises(SealError, match="forgotten"):
        opened(store, tmp_path / FILE)


def test_a_table_goes_with_its_oldest_answer(store: SqlStore, tmp_path: Path) -> None:
    store.add([said(number, "the ticket is closed", f"s{number}", float(number)) for number in range(10)])
    write_ngrams(store, TOKENS, options(tmp_path, query=Query(since_s=5.0)))
    store.expire(5.0)
    assert opened(store, tmp_path / FILE).facts.answers == 5
    store.expire(5.5)
    with pytest.raises(SealError, match="expired"):
        opened(store, tmp_path / FILE)


def test_a_new_table_replaces_the_old_one_and_its_key(store: SqlStore, tmp_path: Path) -> None:
    store.add(shared(["the ticket is closed"], ["anna", "ben"]))
    write_ngrams(store, TOKENS, options(tmp_path))
    old = (tmp_path / FILE).read_bytes()
    write_ngrams(store, TOKENS, options(tmp_path))
    assert opened(store, tmp_path / FILE).facts.answers == 2
    with pytest.raises(SealError):
        opened_table(store, old)


def test_a_subject_that_is_forgotten_meanwhile_is_in_no_table(store: SqlStore, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(shared(["the ticket is closed"], ["anna", "ben"]))
    make = store.keys.of_derived

    def forget_first(*given: object) -> object:
        store.forget("anna")
        return make(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(store.keys, "of_derived", forget_first)
    with pytest.raises(StoreError, match="forgotten while"):
        write_ngrams(store, TOKENS, options(tmp_path))
    assert not (tmp_path / FILE).exists()


def test_open_tests_and_other_tasks_stay_out(store: SqlStore, tmp_path: Path) -> None:
    store.add([*(said(number, "the ticket is closed", f"s{number}", task="a") for number in range(2)),
               *(said(number, "an answer of the test", f"s{number}", task="a", conversation=f"held{number}")
                 for number in range(10, 12)),
               *(said(number, "of another task", f"s{number}", task="b") for number in range(20, 22))])
    report = write_ngrams(store, TOKENS, options(tmp_path, query=Query(task="a"), held={"held10": "a", "held11": "a"}))
    table = opened(store, tmp_path / FILE)
    assert report.facts.answers == 2 and sum(report.left_out.values()) == 2
    assert continued(table, "an answer of") == "an answer of"
    assert continued(table, "of another") == "of another"


def test_answers_without_a_subject_count_by_conversation(store: SqlStore, tmp_path: Path) -> None:
    store.add([said(number, "the ticket is closed", None, conversation="one") for number in range(3)])
    assert write_ngrams(store, TOKENS, options(tmp_path)).entries == 0
    store.add([said(9, "the ticket is closed", None, conversation="two")])
    assert write_ngrams(store, TOKENS, options(tmp_path)).entries > 0
    assert write_ngrams(store, TOKENS, options(tmp_path, ngrams=NgramOptions(nbytes=2048))).nbytes <= 2048 + 60


def test_no_answer_makes_no_table(store: SqlStore, tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="no answer to count"):
        write_ngrams(store, TOKENS, options(tmp_path))
    assert not (tmp_path / FILE).exists()


def test_another_store_cannot_open_it(opener: Opener, store: SqlStore, tmp_path: Path) -> None:
    store.add(shared(["the ticket is closed"], ["anna", "ben"]))
    write_ngrams(store, TOKENS, options(tmp_path))
    again = opener()
    assert opened(again, tmp_path / FILE).facts.answers == 2
    data = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(data[:16] + b"0" * 16 + data[32:])
    with pytest.raises(SealError, match="another store"):
        opened(again, tmp_path / FILE)
    (tmp_path / FILE).write_bytes(data[:16] + b"x" * 16 + data[32:])
    with pytest.raises(BriseError, match="id of the key"):
        opened(again, tmp_path / FILE)


@dataclass
class Clock:
    """The time as a test has it."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_server_stops_drafting_from_a_forgotten_table(store: SqlStore, place: str, tmp_path: Path) -> None:
    store.add(shared(["the ticket is closed"], ["anna", "ben", "carl"]))
    write_ngrams(store, TOKENS, options(tmp_path))
    clock, prompt = Clock(), TOKENS.tokenizer.encode("the ti", before="text")
    table = TableOpener(place, tmp_path, clock)(tmp_path / FILE, tokenizer_digest(TOKENS.tokenizer))
    drafted = len(table.start(prompt).propose(40)[0])
    assert table.name == NgramTable.name and drafted > 5
    clock.now = CHECKED_S + 1
    assert len(table.start(prompt).propose(40)[0]) == drafted, "nothing was forgotten"
    store.forget("anna")
    clock.now = 2 * CHECKED_S + 2
    state = table.start(prompt)
    state.extend(prompt)
    assert state.propose(40) == ((), ())
    write_ngrams(store, TOKENS, options(tmp_path))
    clock.now = 3 * CHECKED_S + 3
    assert len(table.start(prompt).propose(40)[0]) == drafted, "of the new table in its place"
    with pytest.raises(StoreError, match="no store"):
        TableOpener(tmp_path / "other.sqlite", tmp_path)(tmp_path / FILE, "0" * 64)
