"""The quality of each system's answers, as far as they have labels: by one label source, never a mix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from brise.evals.measure import Bounded, Measure, bounded, difference, ratio
from brise.report.traffic import TrafficOverview
from brise.stats.labels import LABEL_SOURCES
from brise.traffic.records import Label, no_answer

WORDS: Mapping[str, str] = {
    "outcome": "outcomes: a program compared each answer with what was right, or saw what came of it",
    "human": "people", "judge": "a model's opinion", "fidelity": "agreement with the large model: no correctness"}


@dataclass(frozen=True)
class AnswerQuality:
    """The mean score of a system's answers. `rows` of them have a label, in so many `conversations`."""

    estimate: float | None
    low: float | None
    high: float | None
    how: str
    rows: int
    conversations: int


@dataclass(frozen=True)
class Qualities:
    """`label_source` is None where there are no labels. `difference` is the small model less the large one, on the
    same requests.
    """

    label_source: str | None
    systems: Mapping[str, AnswerQuality]
    difference: AnswerQuality | None


@dataclass(frozen=True)
class _Scored:
    conversation: str
    score: float
    weight: float = 1.0


def qualities(traffic: TrafficOverview) -> Qualities:
    """Quality by the best label source that there is.

    hosted: its own answers to requests that no switch had chosen; an outage is none. small: shadow answers, each
    weighing 1 over the probability with which it was drawn. cascade: what clients got from a switched task; the
    labelled answers of each mode stand for all of that mode. degraded: what they got in an outage.
    """
    label_source = next((source for source in LABEL_SOURCES if any(label.rung == source for label in traffic.labels)),
                        None)
    if label_source is None:
        return Qualities(None, {}, None)
    own, others = _scores([label for label in traffic.labels if label.rung == label_source])
    conversation = {row.id: row.conversation for row in traffic.exchanges}
    unanswered = {row.id for row in traffic.of("hosted") if row.id in own and no_answer(row) is not None}
    shadows = [answer for answer in traffic.answers_as("shadow") if answer.id in others]
    systems = {
        "hosted": [_Scored(row.conversation, own[row.id]) for row in traffic.of("hosted")
                   if row.id in own and row.id not in unanswered],
        "small": [_Scored(conversation[answer.exchange], others[answer.id], 1 / (answer.probability or 1.0))
                  for answer in shadows],
        "cascade": _stratified(traffic, own),
        "degraded": [_Scored(row.conversation, own[row.id]) for row in traffic.of("degraded") if row.id in own]}
    if label_source == "human":
        # People see only the answers that differ: neither mean nor difference is that of all answers.
        return Qualities(label_source, {}, None)
    pairs = [(conversation[answer.exchange], others[answer.id], own[answer.exchange]) for answer in shadows
             if answer.exchange in own and answer.exchange not in unanswered]
    return Qualities(label_source, {name: _quality(rows) for name, rows in systems.items() if rows}, _difference(pairs))


def _scores(labels: Sequence[Label]) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Scores of exchanges' own answers and of other answers, by id; the newest label counts."""
    own, others = dict[str, float](), dict[str, float]()
    for label in sorted(labels, key=lambda label: label.at_s):
        if label.score is not None:
            own[label.exchange] = label.score
        if label.answer is not None and label.answer_score is not None:
            others[label.answer] = label.answer_score
    return own, others


def _stratified(traffic: TrafficOverview, own: Mapping[str, float]) -> list[_Scored]:
    rows = traffic.of("small", "escalated")
    all_of = Counter(row.mode for row in rows)
    labelled = Counter(row.mode for row in rows if row.id in own)
    if any(mode not in labelled for mode in all_of):
        return []  # one of the modes has no labels at all
    return [_Scored(row.conversation, own[row.id], all_of[row.mode] / labelled[row.mode])
            for row in rows if row.id in own]


def _measure(name: str, scores: Sequence[float], weights: Sequence[float]) -> Measure:
    return Measure(name, np.array([(score * weight, weight) for score, weight in zip(scores, weights, strict=True)],
                                  np.float64), ratio)


def _quality(rows: Sequence[_Scored]) -> AnswerQuality:
    names = [row.conversation for row in rows]
    found = bounded(_measure("score", [row.score for row in rows], [row.weight for row in rows]), names)
    return _as_quality(found, names)


def _difference(pairs: Sequence[tuple[str, float, float]]) -> AnswerQuality | None:
    if not pairs:
        return None
    names, ones = [name for name, _, _ in pairs], [1.0] * len(pairs)
    small = _measure("small", [score for _, score, _ in pairs], ones)
    hosted = _measure("hosted", [score for _, _, score in pairs], ones)
    return _as_quality(difference(small, hosted, names), names)


def _as_quality(found: Bounded, names: Sequence[str]) -> AnswerQuality:
    return AnswerQuality(found.estimate, found.low, found.high, found.how, len(names), len(set(names)))
