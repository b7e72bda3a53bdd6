"""Capture never makes a request wait or fail, and counts what it could not keep."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brise.errors import StoreError
from brise.traffic.capture import Capture, CaptureOptions
from brise.traffic.records import ConversationEnd, Exchange, Label, Pending, RecordedAnswer
from brise.traffic.sql_store import SqlStore
from brise.traffic.store import UnknownExchangeError
from brise.traffic.stores import open_store
from tests.traffic.records import answer, exchange
from tests.waiting import LIMIT_S


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    opened = open_store(tmp_path / "traffic.sqlite", tmp_path)
    yield opened
    opened.close()


class Moody:
    """A store that fails as long as `error` is set, and can be held up."""

    def __init__(self, store: SqlStore) -> None:
        self._store, self.error = store, None  # type: SqlStore, Exception | None
        self.go, self.tries = threading.Event(), 0
        self.go.set()

    def add(self, exchanges: Iterable[Exchange] = (), answers: Iterable[RecordedAnswer] = (),
            labels: Iterable[Label] = (),
            pending: Iterable[Pending] = (), threads: Iterable[ConversationEnd] = ()) -> None:
        self.tries += 1
        assert self.go.wait(LIMIT_S)
        if self.error is not None:
            raise self.error
        self._store.add(exchanges, answers, labels, pending, threads)

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


def make(store: object, **options: object) -> Capture:
    return Capture(store, CaptureOptions(**options))  # type: ignore[arg-type]


def test_what_is_drained_is_in_the_store(store: SqlStore) -> None:
    capture = make(store)
    for number in range(300):
        capture.record(exchange(f"{number:04d}"), [answer(f"s{number}", f"{number:04d}")])
    stats = capture.drain()
    assert stats.written == 600 and stats.waiting == stats.waiting_bytes == 0 and not stats.dropped
    assert store.count() == 300 and len(list(store.answers([f"{number:04d}" for number in range(300)]))) == 300


def test_a_full_queue_drops_and_counts_and_never_waits(store: SqlStore) -> None:
    moody = Moody(store)
    moody.go.clear()
    capture = make(moody, max_rows=10)
    for number in range(25):
        capture.record(exchange(str(number)))
    assert capture.stats().dropped == {"full": 15}
    moody.go.set()
    assert capture.drain().written == 10 and store.count() == 10


def test_bodies_are_bounded_by_their_size_too(store: SqlStore) -> None:
    moody = Moody(store)
    moody.go.clear()
    capture = make(moody, max_bytes=100_000)
    for number in range(5):
        capture.record(exchange(str(number), request={"messages": [{"content": "x" * 40_000}]}))
    assert capture.stats().dropped == {"full": 3}
    moody.go.set()
    capture.drain()


def test_a_lock_that_passes_costs_nothing(store: SqlStore) -> None:
    moody = Moody(store)
    moody.error = StoreError("database is locked")
    capture = make(moody)
    capture.record(exchange("a"))
    while capture.stats().retries == 0:
        assert not capture.flush(0.01)
    assert capture.stats().last_error == "database is locked" and capture.stats().waiting == 1
    moody.error = None
    assert capture.flush(10) and capture.stats().written == 1 and store.exchange("a") is not None
    capture.drain()


def test_flush_waits_for_what_was_there_and_not_for_what_came_later(store: SqlStore) -> None:
    moody = Moody(store)
    capture = make(moody, batch_rows=1)
    after_first = threading.Event()

    def add(exchanges: Sequence[Exchange], *others: object) -> None:
        if exchanges[0].id == "a":
            capture.record(exchange("b"))  # there is always one more
        else:
            assert after_first.wait(LIMIT_S)
        store.add(exchanges)

    moody.add = add  # type: ignore[method-assign, assignment]
    capture.record(exchange("a"))
    assert capture.flush(10) and store.exchange("a") is not None and capture.stats().waiting == 1
    after_first.set()
    assert capture.flush(10) and store.exchange("b") is not None
    capture.drain()


def test_a_store_that_never_comes_back_ends_with_the_time_of_draining(store: SqlStore) -> None:
    moody = Moody(store)
    moody.error = StoreError("disk full")
    capture = make(moody)
    capture.record(exchange("a"))
    stats = capture.drain(0.2)
    assert stats.dropped == {"closed": 1} and stats.written == 0 and stats.last_error == "disk full"
    capture.record(exchange("b"))
    assert capture.stats().dropped == {"closed": 2}


def test_one_bad_row_takes_no_other_with_it(store: SqlStore) -> None:
    moody = Moody(store)
    moody.go.clear()
    capture = make(moody)
    capture.record(exchange("first"))
    capture.record(exchange("bad", request={"messages": {1, 2}}))
    capture.record(answers=[answer("lost", "nowhere")])
    capture.record(exchange("last"))
    moody.go.set()
    stats = capture.drain()
    assert stats.dropped == {"unwritable": 1, "orphan": 1} and stats.written == 2
    assert [found.id for found in store.exchanges()] == ["first", "last"]


class Weather:
    """A store that fails as a list says, one word a try, and keeps the ids of what it took."""

    def __init__(self, faults: Sequence[str]) -> None:
        self._faults, self.kept = list(faults), Counter[str]()

    def add(self, exchanges: Sequence[Exchange], answers: Sequence[RecordedAnswer], *_: object) -> None:
        match self._faults.pop(0) if self._faults else "":
            case "locked":
                raise StoreError("database is locked")
            case "broken":
                raise RuntimeError("a defect")
        if any(each.id.startswith("bad") for each in exchanges):
            raise ValueError("cannot be written")
        missing = [each for each in answers if each.exchange not in {*self.kept, *(one.id for one in exchanges)}]
        if missing:
            raise UnknownExchangeError(f"there is no exchange {missing[0].exchange!r}")
        self.kept.update(each.id for each in (*exchanges, *answers))


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["good", "bad", "orphan"]), max_size=30),
       st.lists(st.sampled_from(["", "locked", "broken"]), max_size=4))
def test_every_row_is_written_once_or_counted_as_dropped(rows: list[str], faults: list[str]) -> None:
    weather = Weather(faults)
    capture = make(weather)
    for number, kind in enumerate(rows):
        if kind == "orphan":
            capture.record(answers=[answer(f"a{number}", "nowhere")])
        else:
            capture.record(exchange(f"{kind}{number}"), [answer(f"a{number}", f"{kind}{number}")])
    stats = capture.drain(30)
    recorded = sum(1 if kind == "orphan" else 2 for kind in rows)
    assert stats.written + sum(stats.dropped.values()) == recorded and stats.waiting == stats.waiting_bytes == 0
    assert stats.written == sum(weather.kept.values()) and set(weather.kept.values()) <= {1}
    assert "broken" in faults or stats.written == 2 * rows.count("good")


def test_without_content_only_what_surrounds_it_is_written(store: SqlStore) -> None:
    capture = make(store, content=False)
    capture.record(exchange("a"), [answer("s", "a")])
    capture.record(exchange("b", status=400, error="'messages[0]' says Rumpelstilzchen"))
    capture.drain()
    found, wrong = store.exchange("a"), store.exchange("b")
    assert wrong is not None and wrong.error == "status 400"
    assert found is not None and found.request is None and found.response is None and found.task == "t"
    assert [each.response for each in store.answers(["a"])] == [None]


def test_a_share_keeps_whole_conversations_and_counts_the_others(store: SqlStore) -> None:
    capture = make(store, share=0.3)
    for number in range(1000):
        capture.record(exchange(str(number), conversation=str(number // 2)))
    stats = capture.drain()
    kept = [found.conversation for found in store.exchanges()]
    assert 240 < len(kept) < 360 and all(kept.count(name) == 2 for name in kept)
    assert stats.skipped == store.skipped() == {"sampled": 1000 - len(kept)}


def test_what_is_drawn_for_an_audit_or_waits_is_always_kept(store: SqlStore) -> None:
    capture = make(store, share=0.0)
    capture.record(exchange("a", audit_probability=0.1))
    capture.record(exchange("b"), pending=[Pending("b", 1.0)])
    capture.record(exchange("c"))
    capture.drain()
    assert [found.id for found in store.exchanges()] == ["a", "b"]


def test_a_request_that_is_not_to_be_kept_leaves_its_count(store: SqlStore) -> None:
    capture = make(store)
    capture.skip("off")
    capture.drain()
    assert store.count() == 0 and store.skipped() == {"off": 1}


def test_old_exchanges_go_while_the_gateway_runs(store: SqlStore) -> None:
    store.add([exchange("old", at_s=100.0), exchange("new", at_s=900.0)])
    capture = Capture(store, CaptureOptions(ttl_s=500.0), clock=lambda: 1000.0)
    capture.record(exchange("now", at_s=1000.0))
    capture.drain()
    assert [found.id for found in store.exchanges()] == ["new", "now"] and capture.stats().expired == 1
