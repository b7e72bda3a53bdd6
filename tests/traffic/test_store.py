"""What a store gives back, whichever database is under it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from brise.traffic import ledger
from brise.traffic.records import ConversationEnd, Exchange, Mode, Pending
from brise.traffic.sql_store import PAGE, SqlStore
from brise.traffic.sqlite_store import SqliteDatabase
from brise.traffic.store import Company, Query, UnknownExchangeError
from tests.store_fixtures import Opener
from tests.traffic.records import FULL, PLAIN, answer, exchange, label


def ids(store: SqlStore, **query: object) -> list[str]:
    return [found.id for found in store.exchanges(Query(**query))]  # type: ignore[arg-type]


@pytest.mark.parametrize("record", [FULL, PLAIN], ids=["every field", "the least"])
def test_an_exchange_comes_back_as_it_was(store: SqlStore, record: Exchange) -> None:
    store.add([record])
    assert store.exchange(record.id) == record and list(store.exchanges()) == [record]


def test_answers_and_labels_come_back_as_they_were(store: SqlStore) -> None:
    shadow = answer("a", "full", signals={"p": 0.5}, probability=0.25, usage=FULL.usage, cost_usd=0.0)
    audit, said = answer("b", "full", role="audit", response=None, error="cut"), label("l", "full", answer="a")
    store.add([FULL], [shadow, audit], [said])
    assert list(store.answers(["full"])) == [shadow, audit]
    assert list(store.answers(["full"], "audit")) == [audit]
    assert list(store.labels(["full", "other"])) == [said]


def test_the_text_of_an_error_is_sealed_as_bodies_are(store: SqlStore) -> None:
    quoting = exchange("a", status=400, error="'x' is no city", request=None, response=None, subject="anna")
    cut = answer("s", "a", error="cut after 'Bas'", response=None)
    store.add([quoting], [cut])
    assert store.exchange("a") == quoting and list(store.answers(["a"])) == [cut]
    assert next(store.exchanges(Query(content=False))).error == "status 400"
    store.forget("anna")
    assert [each.error for each in (*store.exchanges(), *store.answers(["a"]))] == ["status 400", "incomplete"]


def test_an_id_that_is_there_is_left_as_it_is(store: SqlStore) -> None:
    store.add([exchange("a", task="first")])
    store.add([exchange("a", task="second"), exchange("b")])
    assert [found.task for found in store.exchanges()] == ["first", "t"]


def test_what_belongs_to_no_exchange_is_refused_whole(store: SqlStore) -> None:
    with pytest.raises(UnknownExchangeError, match="no exchange 'nowhere'"):
        store.add([exchange("a")], [answer("x", "nowhere")])
    assert store.count() == 0


def test_exchanges_come_in_the_order_of_time_over_many_pages(store: SqlStore) -> None:
    made = [exchange(f"{number:04d}", at_s=float(number // 3)) for number in range(2 * PAGE + 5)]
    store.add(reversed(made))
    expected = [each.id for each in made]
    assert ids(store) == expected and ids(store, newest_first=True) == expected[::-1]
    assert ids(store, limit=PAGE + 1) == expected[:PAGE + 1] and store.count() == len(made)


def test_without_content_it_is_the_same_without_bodies(store: SqlStore) -> None:
    store.add([FULL, exchange("b", at_s=2000.0)])
    bare = replace(FULL, request=None, response=None)
    assert next(store.exchanges(Query(content=False))) == bare
    assert list(store.exchanges(Query(content=False, text="grüner"))) == []
    assert list(store.exchanges(Query(content=False, text="GRÜSSE"))) == [bare]


@pytest.mark.parametrize(("query", "expected"), [
    ({"task": "u"}, ["b"]), ({"model": "n"}, ["c"]), ({"modes": ["small", "failed"]}, ["b", "c"]), ({"modes": []}, []),
    ({"conversation": "a"}, ["a"]), ({"subject": "eva"}, ["c"]), ({"since_s": 2.0}, ["b", "c"]),
    ({"until_s": 2.0}, ["a"]), ({"label": ("x", "1")}, ["b"]), ({"label": ("x", "11")}, ["a"]),
    ({"label": ("y", "1")}, []), ({"has_answer": "shadow"}, ["a"]), ({"has_answer": "audit"}, []),
    ({"text": "QUESTION B"}, ["b"]), ({"text": "answer", "limit": 2}, ["a", "b"]), ({"text": "nobody said"}, [])])
def test_queries(store: SqlStore, query: dict[str, object], expected: list[str]) -> None:
    small: Mode = "small"
    store.add([exchange("a", 1.0, labels={"x": "11"}), exchange("b", 2.0, task="u", mode=small,
                                                                labels={"x": "1", "z": "y"}),
               exchange("c", 3.0, model="n", mode="failed", subject="eva", labels={"z": '","y":"1'})],
              [answer("s", "a")])
    assert ids(store, **query) == expected
    assert store.count(Query(**query)) == len(expected)  # type: ignore[arg-type]


def test_waiting_requests_oldest_first(store: SqlStore) -> None:
    store.add([exchange("a"), exchange("b")], pending=[Pending("a", 5.0), Pending("b", 4.0)])
    store.postpone("a")
    assert store.pending() == [Pending("b", 4.0), Pending("a", 5.0, 1)] and store.pending(1) == [Pending("b", 4.0)]
    store.settle("b")
    assert store.pending() == [Pending("a", 5.0, 1)]


def test_threads_and_what_was_skipped(store: SqlStore) -> None:
    first, second = ConversationEnd("d1", "a", "a", 1.0), ConversationEnd("d1", "b", "a", 2.0)
    store.add([exchange("a"), exchange("b")], threads=[first, second])
    assert list(store.threads(["d1", "d2"])) == [second, first]
    store.skip([(10.0, "off", 2), (20.0, "off", 1), (9000.0, "sampled", 4)])
    assert store.skipped() == {"off": 3, "sampled": 4}


def test_the_ledger_is_a_chain(store: SqlStore) -> None:
    made = [store.append("switch", {"task": "triage", "share": 0.01, "at": (1, 2.0)}), store.append("alarm", {})]
    assert list(store.ledger()) == made and list(store.ledger(after=1)) == made[1:]
    assert [entry.number for entry in made] == [1, 2] and made[0].previous == ledger.GENESIS
    assert made[1].previous == made[0].digest and ledger.check_chain(store.ledger()) is None


def test_a_forgotten_subject_leaves_no_content_and_no_name(store: SqlStore) -> None:
    store.add([FULL, exchange("b", subject="eva")], [answer("x", "full")], [label("l", "full")],
              [Pending("full", 1.0)], [ConversationEnd("d", "full", "talk", 1.0)])
    assert store.forget("anna") == 1 and store.forget("anna") == 0
    found = store.exchange("full")
    assert found is not None and found.conversation != "talk"
    assert found == replace(FULL, subject=None, request=None, response=None, labels={}, conversation=found.conversation)
    assert [each.response for each in store.answers(["full"])] == [None]
    assert [each.note for each in store.labels(["full"])] == [""]
    assert store.pending() == [] and not store.threads(["d"]) and ids(store, text="question") == ["b"]


def test_conversations_of_a_forgotten_subject_stay_apart_without_their_names(store: SqlStore) -> None:
    own = "0" * 32
    store.add([exchange("a", subject="ann", conversation="ann 1"), exchange("b", subject="ann", conversation="ann 1"),
               exchange("c", subject="ann", conversation="ann 2"), exchange("d", subject="ann", conversation=own),
               exchange("e", subject="eva", conversation="ann 1")])
    assert store.forget("ann") == 4
    names = [found.conversation for found in store.exchanges()]
    assert names[0] == names[1] != names[2] and names[3:] == [own, "ann 1"]
    assert not any("ann" in name for name in names[:3])


def test_what_comes_late_for_a_forgotten_subject_has_no_content(store: SqlStore) -> None:
    store.add([FULL])
    store.forget("anna")
    store.add(answers=[answer("late", "full")])
    assert [each.response for each in store.answers(["full"])] == [None]
    store.add([replace(FULL, id="new")])
    assert store.exchange("new") == replace(FULL, id="new")  # new data of a subject that was forgotten once


@pytest.mark.parametrize("subject", ["an\0na", "an\ud800na"])
def test_a_subject_that_no_database_takes_is_forgotten_by_either_name(store: SqlStore, subject: str) -> None:
    for id, name in (("by its name", subject), ("as it is shown", "an\ufffdna")):
        store.add([exchange(id, subject=subject)])
        assert ids(store, subject=subject) == [id]
        assert store.forget(name) == 1
        store.add(answers=[answer(f"late {id}", id)])  # would be sealed, if the key were still there
        assert [each.response for each in store.answers([id])] == [None]


@pytest.mark.parametrize("name", ["half \ud83d", "nul \0", "x\udfff\0"])
def test_texts_that_no_database_takes_cost_nothing(store: SqlStore, name: str) -> None:
    made = exchange("a", conversation=name, task=name, model=name, parent=name, labels={"x": name}, upstream=name)
    store.add([made], [answer("s", "a", served_by=name, error=name)], [label("l", "a", who=name, note=name)],
              threads=[ConversationEnd("d", "a", name, 1.0)])
    assert ids(store, conversation=name) == ids(store, task=name) == ids(store, model=name) == ["a"]
    assert store.exchange(name) is None and not list(store.labels([name])) and not store.threads([name])
    store.append("line", {"of": name})
    assert ledger.check_chain(store.ledger()) is None


def test_old_exchanges_go_with_all_that_belongs_to_them(store: SqlStore) -> None:
    store.add([exchange("a", 1.0), exchange("b", 2.0)], [answer("x", "a"), answer("y", "b")], [label("l", "a")],
              [Pending("a", 1.0)], [ConversationEnd("d", "a", "a", 1.0)])
    entry = store.append("switch", {})
    assert store.expire(2.0) == 1 and store.expire(2.0) == 0
    assert ids(store) == ["b"] and [each.id for each in store.answers(["a", "b"])] == ["y"]
    assert not list(store.labels(["a"])) and not store.pending() and not store.threads(["d"])
    assert list(store.ledger()) == [entry]


@pytest.mark.parametrize("text", ["a\0b", "half \ud83d pair", "\U0001f600"])
def test_text_that_a_database_would_refuse(store: SqlStore, text: str) -> None:
    store.add([exchange("a", model=text, error=text, request={"prompt": text})])
    found = store.exchange("a")
    assert found is not None and found.request == {"prompt": text} and "\0" not in found.model


def test_a_store_of_the_layout_before_is_brought_to_ours(opener: Opener) -> None:
    store = opener()
    store.add([FULL], [answer("a", "full")])
    with store._database.transaction() as transaction:
        transaction.run("ALTER TABLE answers DROP COLUMN fingerprint")
        transaction.run("ALTER TABLE exchanges DROP COLUMN upstream")
        transaction.run("PRAGMA user_version = 1" if isinstance(store._database, SqliteDatabase)
                        else "UPDATE meta SET value = '1' WHERE name = 'version'")
    store.close()
    store = opener()
    assert list(store.answers(["full"])) == [answer("a", "full")]
    store.add(answers=[answer("b", "full", fingerprint="f1")])
    assert [found.fingerprint for found in opener().answers(["full"])] == [None, "f1"]


def test_a_request_that_was_sent_again_is_one_exchange_and_its_answer_counts(store: SqlStore) -> None:
    failed = exchange("a", status=502, error="the upstream failed", response=None)
    store.add([failed], [answer("late", "a")])
    store.add([exchange("a", at_s=2.0)])
    store.add([exchange("a", at_s=3.0, response={"choices": []}), failed])
    (kept,) = store.exchanges()
    assert (kept.status, kept.error, kept.at_s, kept.response) == (200, None, 2.0, exchange("a").response)
    assert [each.id for each in store.answers(["a"])] == ["late"]


def test_rows_continue_where_a_page_ended_in_either_order(store: SqlStore) -> None:
    store.add([exchange(f"{number:02d}", at_s=float(number // 3)) for number in range(10)])
    assert ids(store, after=(1.0, "04"), limit=3) == ["05", "06", "07"]
    assert ids(store, after=(1.0, "04"), newest_first=True) == ["03", "02", "01", "00"]
    assert ids(store, after=(3.0, "09")) == []


def test_rows_are_found_by_status_and_by_a_part_of_a_name(store: SqlStore) -> None:
    store.add([exchange("a", served_by="Mini-3B", model="fast"), exchange("b", status=502, subject="50%_of"),
               exchange("c", status=429, conversation="Talk\\7")])
    assert ids(store, statuses=(400, 500)) == ["c"] and ids(store, statuses=(502, 503)) == ["b"]
    assert [ids(store, name=name) for name in ("mini", "FAS", "%_", "k\\", "a_")] == [["a"], ["a"], ["b"], ["c"], []]
    assert store.count(Query(name="i")) == 1


def test_what_is_beside_an_exchange_is_known_without_opening_it(store: SqlStore) -> None:
    store.add([FULL, exchange("b")], [answer("x", "full"), answer("y", "full", role="audit")],
              [label("l", "full", answer="x"), label("m", "b")])
    assert store.company(["full", "b", "none"]) == {"full": Company(("shadow", "audit"), 1), "b": Company((), 1)}
    assert store.exchange("full", content=False) == replace(FULL, request=None, response=None)
    assert [each.response for each in store.answers(["full"], content=False)] == [None, None]
