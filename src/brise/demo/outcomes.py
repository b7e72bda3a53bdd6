"""Outcome labels for every answer in the store: what the generator meant, compared with what was answered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from brise.demo.drive import TASK, same
from brise.demo.stand_in import key_of
from brise.demo.workload import FunctionCall
from brise.dialects import answers
from brise.dialects.bodies import Body
from brise.traffic.records import Exchange, Label
from brise.traffic.store import Query, TrafficStore

WHO = "the demo's generator: the call that was meant"
_AT_ONCE = 200


def write(store: TrafficStore, truth: Mapping[str, FunctionCall], since_s: float) -> int:
    """Labels all answers of the demo's task from `since_s` on; those that have one are left as they are."""
    count, batch = 0, list[Exchange]()
    for exchange in store.exchanges(Query(task=TASK, since_s=since_s)):
        batch.append(exchange)
        if len(batch) == _AT_ONCE:
            count += _write(store, truth, batch)
            batch = []
    return count + _write(store, truth, batch)


def _write(store: TrafficStore, truth: Mapping[str, FunctionCall], batch: Iterable[Exchange]) -> int:
    by_id = {exchange.id: exchange for exchange in batch}
    meant = {id: call for id, exchange in by_id.items() if (call := _meant(exchange, truth)) is not None}
    labels = [*_own(by_id, meant), *_others(store, by_id, meant)]
    store.add(labels=labels)
    return len(labels)


def _own(by_id: Mapping[str, Exchange], meant: Mapping[str, FunctionCall]) -> Iterator[Label]:
    for id, call in meant.items():
        exchange = by_id[id]
        yield Label(f"outcome-{id}", id, exchange.at_s + exchange.total_s, "outcome", WHO,
                    score=_score(exchange.response, call))


def _others(store: TrafficStore, by_id: Mapping[str, Exchange], meant: Mapping[str, FunctionCall]) -> Iterator[Label]:
    for answer in store.answers(list(by_id)):
        if answer.exchange in meant:
            yield Label(f"outcome-{answer.id}", answer.exchange, answer.at_s + answer.total_s, "outcome", WHO,
                        answer=answer.id, answer_score=_score(answer.response, meant[answer.exchange]))


def _meant(exchange: Exchange, truth: Mapping[str, FunctionCall]) -> FunctionCall | None:
    messages = (exchange.request or {}).get("messages")
    if not isinstance(messages, list):
        return None
    return truth.get(key_of([str(message.get("content")) for message in messages
                             if isinstance(message, dict) and message.get("role") == "user"]))


def _score(body: Body | None, call: FunctionCall) -> float:
    return float(same(answers.of(body).text, call.text()))
