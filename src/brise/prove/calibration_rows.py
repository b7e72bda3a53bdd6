"""The rows that a cascade is calibrated on: the small model's answers beside the large one's, signals, right or wrong.

Only shadow answers count, for they were drawn at random. Drafts that escalated were selected for being unsure, and
say nothing of the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from brise.dialects import answers, table
from brise.errors import EvidenceError
from brise.stats.labels import JUDGEMENT_SOURCES
from brise.switch import signals
from brise.switch.rule import VETO
from brise.traffic.records import Exchange, Label, RecordedAnswer, no_answer
from brise.traffic.store import Query, TrafficStore

WantedSource = Literal["auto", "outcome", "human", "judge", "fidelity"]
NEWEST = "newest"  # in place of a fingerprint
OTHER_VERSION = "answered by another version of the candidate, with other weights or another adapter"
BATCH = 500  # exchanges whose answers and labels are read at one time


@dataclass(frozen=True)
class CalibrationRow:
    """One answer of the small model. `differs`: it says something else than the large model; `wrong` by the labels."""

    exchange: str
    cluster: str
    at_s: float
    text: str
    signals: Mapping[str, float]
    differs: bool
    wrong: bool
    cost_usd: float | None = None


@dataclass(frozen=True)
class CalibrationRows:
    """In the order of time. `label_source` is where `wrong` is from; `left_out` is what could not be used, and why."""

    rows: tuple[CalibrationRow, ...]
    candidate: str
    label_source: str
    left_out: tuple[tuple[int, str], ...]
    fingerprint: str | None = None  # of the candidate
    unlabelled: int = 0  # that differ and have no label; they are in `rows`, as wrong ones


def read(store: TrafficStore, task: str, candidate: str | None, since_s: float | None = None,
         until_s: float | None = None, *,
         label_source: WantedSource = "auto", scorer: str = "auto") -> CalibrationRows:
    """Reads the rows; EvidenceError if there are none, several small models, or too few labels of the wanted source."""
    query = Query(task=task, modes=("hosted",), since_s=since_s, until_s=until_s, has_answer="shadow")
    found, without = list[tuple[Exchange, RecordedAnswer, Sequence[Label]]](), Counter[str]()
    exchanges = store.exchanges(query)
    while batch := list(islice(exchanges, BATCH)):
        for exchange, answer, labels in _pairs(store, batch, candidate):
            reason = _unfit(exchange, answer)
            if reason is None:
                found.append((exchange, answer, labels))
            else:
                without[reason] += 1
    names = sorted({answer.served_by or "unnamed" for _, answer, _ in found})
    if not found:
        raise EvidenceError(f"no request of the task {task!r} was answered by both models",
                            hint="brise serve MODEL --upstream URL --shadow SHARE lets the small one answer beside")
    if len(names) > 1:
        raise EvidenceError(f"{len(names)} candidates answered {task!r}: {', '.join(names)}", hint="--candidate NAME")
    newest = newest_version([(exchange.at_s, answer.fingerprint) for exchange, answer, _ in found])
    by_others = [one for one in found if one[1].fingerprint != newest]
    found = [one for one in found if one[1].fingerprint == newest]
    if by_others:
        without[OTHER_VERSION] += len(by_others)
    chosen = _label_source(found, label_source, scorer)
    told = [_row(*one, chosen, scorer) for one in found]
    rows = sorted((row for row, _ in told), key=lambda row: row.at_s)
    return CalibrationRows(tuple(rows), names[0], chosen,
                           tuple((number, reason) for reason, number in without.most_common()), newest,
                           sum(not is_known for _, is_known in told))


def newest_version(answers: Sequence[tuple[float, str | None]]) -> str | None:
    """The fingerprint of the newest of these answers, given with their times: what was shown of a model says nothing
    of another one that has its name now. None, from stores without fingerprints, is a version like the others."""
    return max(answers, key=lambda answer: answer[0], default=(0.0, None))[1]


def _pairs(store: TrafficStore, batch: Sequence[Exchange], candidate: str | None) -> Iterator[
        tuple[Exchange, RecordedAnswer, Sequence[Label]]]:
    ids = [exchange.id for exchange in batch]
    labels: dict[str, list[Label]] = {id: [] for id in ids}
    for label in store.labels(ids):
        labels[label.exchange].append(label)
    by_id = {exchange.id: exchange for exchange in batch}
    for answer in store.answers(ids, "shadow"):
        if candidate in (None, answer.served_by):
            yield by_id[answer.exchange], answer, labels[answer.exchange]


def _unfit(exchange: Exchange, answer: RecordedAnswer) -> str | None:
    if not table.named(exchange.kind).is_switched:
        return f"of kind {exchange.kind}: only chat completions are switched"
    missing = no_answer(exchange)
    if missing is not None:
        return f"the large model gave no answer: {missing}"
    if exchange.request is None or exchange.response is None or (answer.response is None and answer.error is None):
        return "their content is not there: it was not kept, or its subject was forgotten"
    return None


def _label_source(found: Sequence[tuple[Exchange, RecordedAnswer, Sequence[Label]]], wanted: WantedSource,
                  scorer: str) -> str:
    """The best source that labels nine of ten answers that differ: fewer labels than that may be the easy ones."""
    if wanted == "fidelity":
        return wanted
    differing = [(answer, labels) for exchange, answer, labels in found if _differs(exchange, answer, scorer)]
    for label_source in JUDGEMENT_SOURCES if wanted == "auto" else (wanted,):
        judged = sum(_labelled(answer, labels, label_source) is not None for answer, labels in differing)
        if differing and judged >= 0.9 * len(differing):
            return label_source
    if wanted != "auto":
        raise EvidenceError(f"{judged} of {len(differing)} answers that differ have a label from {wanted}, 90 % are "
                            "needed", hint="brise label; or --labels fidelity, where differing counts as wrong")
    return "fidelity"


def _row(exchange: Exchange, answer: RecordedAnswer, labels: Sequence[Label], label_source: str,
         scorer: str) -> tuple[CalibrationRow, bool]:
    """The row, and whether it is known to be right or wrong.

    Where both say the same, it is as right as the large model. One that differs and has no label counts as wrong: those
    that nobody labelled may be the wrong ones, and left out they would be what the claim is about.
    """
    assert exchange.request is not None
    differs = _differs(exchange, answer, scorer)
    score = None if label_source == "fidelity" else _labelled(answer, labels, label_source)
    is_known = score is not None or not differs or label_source == "fidelity"
    wrong = differs if score is None else score < 0.5
    measured = dict(answer.signals) if answer.signals else (
        {VETO: 1.0} if answer.response is None else signals.measure(exchange.request, answer.response))
    return CalibrationRow(exchange.id, exchange.conversation or exchange.id, exchange.at_s,
                          answers.user_text(exchange.request), measured if answer.response is not None else {VETO: 1.0},
                          differs, wrong, exchange.cost_usd), is_known


def _differs(exchange: Exchange, answer: RecordedAnswer, scorer: str) -> bool:
    return answers.agreement(answers.of(answer.response), answers.of(exchange.response), scorer) < 1


def _labelled(answer: RecordedAnswer, labels: Sequence[Label], label_source: str) -> float | None:
    """The newest score of this answer."""
    scores = [label.answer_score for label in sorted(labels, key=lambda label: label.at_s)
              if label.rung == label_source and label.answer == answer.id and label.answer_score is not None]
    return scores[-1] if scores else None
