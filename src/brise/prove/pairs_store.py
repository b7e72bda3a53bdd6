"""Pairs from captured traffic: the large model's answers, and the small model's in the shadow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from brise.dialects import answers as bodies
from brise.dialects import table
from brise.dialects.bodies import Body
from brise.errors import EvidenceError
from brise.evals.example import EvalAnswer
from brise.prove.calibration_rows import NEWEST, OTHER_VERSION, newest_version
from brise.prove.pairs import NO_CONTEXT, Judgement, MissingPair, ModelAnswer, Pair
from brise.stats.labels import JudgementSource
from brise.text.protocols import Message
from brise.traffic import records
from brise.traffic.records import Exchange, Label, no_answer
from brise.traffic.store import Query, TrafficStore

BATCH = 500  # exchanges whose answers and labels are read at one time
NOT_THERE = "their content is not there: it was not kept, or its subject was forgotten"
SECOND_LOOK = "second look"  # the note of a label that only measures how consistent its giver is


@dataclass(frozen=True)
class Captured:
    """The pairs in the order of time, and what could not be compared, with the reason."""

    pairs: tuple[Pair, ...]
    left_out: tuple[tuple[int, str], ...]
    missing: tuple[MissingPair, ...] = ()


def read(store: TrafficStore, task: str, since_s: float | None = None, until_s: float | None = None, *,
         small_model: str | None = None, fingerprint: str | None = NEWEST, cluster: str | None = None) -> Captured:
    """All requests of the task that the large model answered for its user, and a small model in the shadow.

    Only answers of one version of the small model count: that of `fingerprint`, or the one that answered last.
    EvidenceError if several small models answered and `small_model` names none of them.
    """
    found, without, missing = list[Pair](), Counter[str](), list[tuple[str | None, MissingPair]]()
    query = Query(task=task, modes=("hosted",), since_s=since_s, until_s=until_s, has_answer="shadow")
    exchanges = store.exchanges(query)
    while batch := list(islice(exchanges, BATCH)):
        for exchange, others, labels in _with_company(store, batch):
            # One that answered twice, as after a crash, counts with its first answer.
            shadows = {(answer.served_by, answer.fingerprint): answer
                       for answer in reversed(others.get("shadow", []))}
            for answer in shadows.values():
                if small_model is not None and answer.served_by != small_model:
                    continue
                reason = _unfit(exchange, answer, cluster)
                if reason is None:
                    found.append(_pair(exchange, answer, next(iter(others.get("reask", ())), None), labels, cluster))
                else:
                    without[reason] += 1
                if reason == NOT_THERE and (cluster is None or cluster in exchange.labels):
                    missing.append((answer.fingerprint, MissingPair(_cluster(exchange, cluster), exchange.at_s)))
    students = sorted({pair.small.model or "unnamed" for pair in found})
    if len(students) > 1:
        raise EvidenceError(f"{len(students)} candidates answered {task!r} in this time: {', '.join(students)}",
                            hint="--small-model NAME says which one is meant")
    if not found:
        raise EvidenceError(f"no request of the task {task!r} was answered by both models in this time",
                            hint="brise serve --upstream URL --shadow SHARE: the candidate answers in the background")
    if fingerprint == NEWEST:
        fingerprint = newest_version([(pair.at_s or 0.0, pair.small.fingerprint) for pair in found])
    kept = tuple(pair for pair in found if pair.small.fingerprint == fingerprint)
    without[OTHER_VERSION] += len(found) - len(kept)
    return Captured(kept, tuple((number, reason) for reason, number in without.most_common() if number),
                    tuple(one for version, one in missing if version == fingerprint))


def one(store: TrafficStore, exchange: str, answer: str) -> Pair | None:
    """The pair of an exchange and this answer to it; None if there is none, or its content is gone."""
    found = store.exchange(exchange)
    given = next((each for each in store.answers([exchange], "shadow") if each.id == answer), None)
    if found is None or given is None or _unfit(found, given, None) is not None:
        return None
    return _pair(found, given, None, list(store.labels([exchange])), None)


def _with_company(store: TrafficStore, batch: Sequence[Exchange]) -> Iterator[
        tuple[Exchange, dict[str, list[records.RecordedAnswer]], list[Label]]]:
    ids = [exchange.id for exchange in batch]
    others: dict[str, dict[str, list[records.RecordedAnswer]]] = {id: {} for id in ids}
    labels: dict[str, list[Label]] = {id: [] for id in ids}
    for answer in store.answers(ids):
        others[answer.exchange].setdefault(answer.role, []).append(answer)
    for label in store.labels(ids):
        labels[label.exchange].append(label)
    for exchange in batch:
        yield exchange, others[exchange.id], labels[exchange.id]


def _unfit(exchange: Exchange, answer: records.RecordedAnswer, cluster: str | None) -> str | None:
    if not table.named(exchange.kind).is_switched:
        return f"of kind {exchange.kind}: only chat completions are compared"
    missing = no_answer(exchange)
    if missing is not None:
        return f"the large model gave no answer: {missing}"
    if exchange.response is None or exchange.request is None or (answer.response is None and answer.error is None):
        return NOT_THERE
    if cluster is not None and cluster not in exchange.labels:
        return f"they have no label {cluster!r}, which tells units apart"
    return None


def _pair(exchange: Exchange, answer: records.RecordedAnswer, again: records.RecordedAnswer | None,
          labels: Sequence[Label], cluster: str | None) -> Pair:
    request = exchange.request or {}
    tools = request.get("tools")
    if again is not None and (again.error is not None or table.named(exchange.kind).failure(again.response)):
        again = None  # an outage is no disagreement of the large model with itself
    return Pair(
        exchange.id, f"exchange {exchange.id}",
        _cluster(exchange, cluster),
        _side(answer), ModelAnswer(bodies.of(exchange.response), exchange.served_by, exchange.fingerprint,
                                   exchange.total_s),
        None if again is None else _side(again), exchange.at_s, _messages(request),
        tuple(tools) if isinstance(tools, list) else (), None, exchange.context_digest or NO_CONTEXT, exchange.labels,
        {}, _judgements(labels, answer.id), is_named=cluster is not None or exchange.conversation is not None)


def _cluster(exchange: Exchange, label: str | None) -> str:
    return exchange.labels[label] if label else exchange.conversation or exchange.id


def _side(answer: records.RecordedAnswer) -> ModelAnswer:
    failed = answer.error or (f"status {answer.status}" if answer.status >= 400 else None)
    said = EvalAnswer(finish="error", error=failed) if failed else bodies.of(answer.response)
    return ModelAnswer(said, answer.served_by, answer.fingerprint, answer.total_s, answer.id)


def _messages(request: Body) -> tuple[Message, ...]:
    """As text: what a person reads, and a classifier learns from."""
    messages = request.get("messages")
    return tuple({"role": str(message.get("role")), "content": bodies.text_of(message.get("content"))}
                 for message in messages if isinstance(message, dict)) if isinstance(messages, list) else ()


def _judgements(labels: Sequence[Label], answer: str) -> tuple[Judgement, ...]:
    """Of each label source the newest word on either answer, if there is one on both."""
    small, large, who = dict[JudgementSource, float](), dict[JudgementSource, float](), dict[JudgementSource, str]()
    for label in sorted(labels, key=lambda label: label.at_s):
        if label.rung == "fidelity" or label.note == SECOND_LOOK:
            continue
        if label.rung != "outcome" and label.answer not in (None, answer):
            continue  # who compared the large model's answer with another candidate's said nothing of this pair
        if label.score is not None:
            large[label.rung] = label.score
        if label.answer == answer and label.answer_score is not None:
            small[label.rung] = label.answer_score
        who[label.rung] = label.who
    return tuple(Judgement(source, small[source], large[source], who=who[source])
                 for source in small if source in large)
