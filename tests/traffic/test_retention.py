"""Old traffic goes, newer stays, and what belongs together goes together, in whatever order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brise.traffic.records import ConversationEnd, Pending
from brise.traffic.sql_store import EXPIRED_AT_ONCE, SqlStore
from brise.traffic.stores import open_store
from tests.traffic.records import answer, exchange, label


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqlStore]:
    folder: Path = tmp_path_factory.mktemp("store")
    opened = open_store(folder / "t.sqlite", folder)
    yield opened
    opened.close()


STEPS = st.lists(st.tuples(st.sampled_from(["write", "expire", "forget"]), st.integers(0, 20)), max_size=12)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_a_store_does_what_a_plain_model_of_it_does(store: SqlStore, steps: list[tuple[str, int]]) -> None:
    store.expire(1e12)
    model: dict[str, tuple[float, str | None]] = {}
    for number, (act, value) in enumerate(steps):
        match act:
            case "write":
                id, subject = f"{number}", f"s{value % 3}"
                store.add([exchange(id, float(value), subject=subject)], [answer(f"a{id}", id)], [label(f"l{id}", id)],
                          [Pending(id, float(value))], [ConversationEnd(f"d{value}", id, id, float(value))])
                model[id] = (float(value), subject)
            case "expire":
                gone = [id for id, (at_s, _) in model.items() if at_s < value]
                assert store.expire(float(value)) == len(gone)
                model = {id: kept for id, kept in model.items() if id not in gone}
            case _:
                concerned = [id for id, (_, subject) in model.items() if subject == f"s{value % 3}"]
                assert store.forget(f"s{value % 3}") == len(concerned)
                model |= {id: (model[id][0], None) for id in concerned}
    found = {each.id: each for each in store.exchanges()}
    assert {id: (each.at_s, each.subject) for id, each in found.items()} == model
    assert all((each.request is None) == (each.subject is None) for each in found.values())
    ids = [f"{number}" for number in range(len(steps))]
    readable = {id for id, (_, subject) in model.items() if subject is not None}
    assert {each.exchange for each in store.answers(ids)} == {each.exchange for each in store.labels(ids)} == set(model)
    assert {each.exchange for each in store.answers(ids) if each.response is not None} == readable
    assert {each.exchange for each in store.pending(1000)} == readable
    assert {each.exchange for each in store.threads([f"d{value}" for value in range(21)])} == readable


def test_many_go_in_several_transactions(store: SqlStore) -> None:
    store.expire(1e12)
    number = 2 * EXPIRED_AT_ONCE + 3
    store.add([exchange(f"m{at}", float(at), request=None, response=None) for at in range(number)])
    assert store.expire(float(number - 1)) == number - 1 and store.count() == 1
