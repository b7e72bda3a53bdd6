"""What a store's traffic cost: of how much of it that is known, and that a sum of a part is a lower bound."""

from __future__ import annotations

import pytest

from brise.dialects.bodies import Usage
from brise.traffic.records import Exchange, KnownSum
from brise.traffic.sql_store import SqlStore
from brise.traffic.store import Query
from brise.traffic.summary import summarise
from tests.traffic.records import answer, exchange

ROWS = [
    exchange("a", cost_usd=0.5, usage=Usage(10, 2)), exchange("b", usage=Usage(10, None)), exchange("c"),
    exchange("small", mode="small"), exchange("gone", mode="hosted", status=499),
    exchange("error", status=400), exchange("down", mode="failed", status=502)]


def test_errors_cost_nothing_and_what_is_unknown_is_not_zero() -> None:
    task, = summarise(ROWS).tasks
    assert (task.answered, task.tokens_known, task.cost_known) == (5, 1, 2)
    assert task.cost == KnownSum(0.5, 2, 5) and task.cost.share == 0.4
    assert (task.prompt_tokens, task.completion_tokens) == (20, 2)


def test_nothing_known_is_no_sum() -> None:
    assert summarise([ROWS[2]]).tasks[0].cost == KnownSum(None, 0, 1)
    assert summarise([]).cost == KnownSum(None, 0, 0) and summarise([]).cost.share is None


def test_tasks_add_up() -> None:
    other: Exchange = exchange("z", task="other", cost_usd=0.25)
    assert summarise([*ROWS, other]).cost == KnownSum(0.75, 3, 6)


def test_what_was_asked_besides_has_its_own_sum(store: SqlStore) -> None:
    store.add([exchange("a"), exchange("b", task="other")], [
        answer("s", "a"), answer("x", "a", role="audit", cost_usd=0.5), answer("y", "a", role="audit", cost_usd=0.25),
        answer("z", "a", role="audit"), answer("r", "b", role="reask")])
    besides = store.answer_costs(Query())
    assert besides == {"t": {"audit": KnownSum(0.75, 2, 3), "shadow": KnownSum(0.0, 1, 1)},
                       "other": {"reask": KnownSum(None, 0, 1)}}
    assert store.answer_costs(Query(task="other")) == {"other": besides["other"]}
    task = next(each for each in summarise(store.exchanges(), besides).tasks if each.task == "t")
    assert task.other == besides["t"] and task.cost == KnownSum(None, 0, 1)


@pytest.mark.parametrize("usage", [
    Usage(14307, 550, 12304, 2000, 1500, 30, 5, 6), Usage(7, None), Usage(None, 3, None, None, None), Usage(7, 2),
    None])
def test_every_count_is_kept(store: SqlStore, usage: Usage | None) -> None:
    store.add([exchange("a", usage=usage)], [answer("x", "a", usage=usage)])
    found = store.exchange("a")
    assert found is not None and found.usage == usage and next(store.answers(["a"])).usage == usage
