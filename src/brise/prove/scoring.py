"""Scores of both answers of each pair, by one label source; and the clusters whose scores are complete.

Where the two answers are the same, D is 0 and nobody is asked. Where they differ, the chosen label source gives S and
T; a pair that has no label of it yet is open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from brise.errors import EvidenceError
from brise.evals import classify, compare, custom, scorers
from brise.evals.example import EvalAnswer, EvalExample
from brise.evals.measure import Measure, ratio
from brise.evals.scorers import Scorer
from brise.files.digests import hash_draw
from brise.prove.pairs import Judgement, Pair
from brise.stats import labels
from brise.stats.clusters import Bets, ClusterLayout, Floats, Ints, Weighting, lay_out
from brise.stats.labels import LabelSource

WORDS: Mapping[LabelSource, str] = MappingProxyType({
    "outcome": "outcomes: a program compared each answer with what was right",
    "human": "people, who compared the answers that differ without knowing whose is which",
    "judge": "a model's opinion, corrected by people on a random part",
    "fidelity": "agreement with the large model, against its agreement with itself: no correctness",
})
Rows = np.ndarray[tuple[int], np.dtype[np.intp]]

JUDGED_SHARE = 0.3  # of the pairs that a judge sees, people see this share
# What a scorer's figures say of one answer as a whole; others may be chosen.
FIGURES: Mapping[str, str] = MappingProxyType({
    "exact": "exact_squeezed", "json": "equal", "call": "call_exact", "class": "accuracy", "spans": "equal"})


@dataclass(frozen=True)
class PairScores:
    """S and T of each pair, nan where they are unknown; `differs` where the answers are not the same.

    `differences` is S - T, 0 where the answers are the same, and nan where a pair is open.
    """

    label_source: LabelSource
    definition: str
    small: Floats
    large: Floats
    differences: Floats
    differs: np.ndarray[tuple[int], np.dtype[np.bool_]]
    bound: float = 1.0  # of the differences

    @property
    def is_open(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which pairs still wait for a judgement."""
        return np.isnan(self.differences)


def same(one: EvalAnswer, other: EvalAnswer) -> bool:
    """Whether two answers say the same: equal calls, and equal JSON or equal text but for white space."""
    if one.error is not None or other.error is not None:
        return one.error is not None and other.error is not None
    return _plain(one) == _plain(other)


def best_label_source(pairs: Sequence[Pair], differs: Sequence[bool]) -> LabelSource:
    """The best source that labels every pair that differs; all pairs, where none does.

    Else a judge that does, if people began to correct it; else people, if they began; else fidelity.
    """
    apart = [pair for pair, is_apart in zip(pairs, differs, strict=True) if is_apart] or pairs
    if all(pair.reference is not None or _judgement(pair, ("outcome",)) for pair in apart):
        return "outcome"
    people = sum(_judgement(pair, ("outcome", "human")) is not None for pair in apart)
    if 0 < people < len(apart) and all(_judgement(pair, ("judge",)) for pair in apart):
        return "judge"
    return "human" if people else "fidelity"


def score(pairs: Sequence[Pair], label_source: LabelSource | None, scorer: Scorer | None, figure: str | None = None,
          share: float = JUDGED_SHARE) -> PairScores:
    """Scores all pairs by one label source (None: the best one they have). `scorer` compares answers with references.

    `share` of the pairs that differ are drawn for people, who correct a judge.
    """
    differs = np.array([_differs(pair) for pair in pairs], np.bool_)
    label_source = label_source or best_label_source(pairs, differs.tolist())
    match label_source:
        case "outcome":
            small, large, definition = _outcomes(pairs, scorer, figure)
        case "human":
            small, large = _judged(pairs, ("outcome", "human"))
            definition = "1 for a good answer, 0 for another; answers that are the same are equally good"
        case "judge":
            return _corrected(pairs, differs, share)
        case "fidelity":
            return _fidelity(pairs, differs)
    differences = np.where(np.isnan(small - large) & ~differs, 0.0, small - large)
    return PairScores(label_source, definition, small, large, differences, differs)


def scorer_of(score: str | None, own: str | None, pairs: Sequence[Pair]) -> Scorer | None:
    """The wanted scorer, or the one for these rows; None where no row has a reference."""
    if own is not None:
        return custom.load(own)
    examples = [pair.example(pair.reference) for pair in pairs if pair.reference is not None]
    if not examples and score is None:
        return None
    name = score or scorers.pick(examples)[0]
    return scorers.built_in(classify.labels_of(examples))[name]


def values(scorer: Scorer, figure: str, examples: Sequence[EvalExample], answers: Sequence[EvalAnswer]) -> Floats:
    """One figure of a scorer for each answer by itself; EvidenceError if it has none that lies in [0, 1]."""
    found = {measure.name: measure for measure in scorer.measures(examples, answers)}
    if figure not in found:
        raise EvidenceError(f"the score {scorer.name!r} has no figure {figure!r}, it has {', '.join(found)}")
    measure = found[figure]
    if measure.value is not ratio or not measure.is_share:
        raise EvidenceError(f"the figure {figure!r} of the score {scorer.name!r} is no share of each answer by itself")
    # A row that has nothing to count (no field wanted, none given) is right.
    out: Floats = np.where(measure.counts[:, 1] == 0, 1.0, ratio(measure.counts))
    return out


def _outcomes(pairs: Sequence[Pair], scorer: Scorer | None, figure: str | None) -> tuple[Floats, Floats, str]:
    small, large = _judged(pairs, ("outcome",))
    with_reference = [at for at, pair in enumerate(pairs) if np.isnan(small[at]) and pair.reference is not None]
    if not with_reference:
        return small, large, "scores of the log or of the store"
    assert scorer is not None, "chosen where there are references"
    figure = figure or figure_of(scorer)
    examples = [pairs[at].example(reference) for at in with_reference
                if (reference := pairs[at].reference) is not None]
    for scores, answers in ((small, [pairs[at].small.answer for at in with_reference]),
                            (large, [pairs[at].large.answer for at in with_reference])):
        scores[with_reference] = values(scorer, figure, examples, answers)
    return small, large, f"{figure} of {scorer.name}: {scorer.definition}"


def figure_of(scorer: Scorer) -> str:
    """The figure of a scorer that rates an answer as a whole; of a user's own it is `score`."""
    return FIGURES.get(scorer.name, "score")


def _judged(pairs: Sequence[Pair], sources: Sequence[str]) -> tuple[Floats, Floats]:
    """The scores by the first of these sources that labels a pair."""
    small, large = np.full(len(pairs), np.nan), np.full(len(pairs), np.nan)
    for at, pair in enumerate(pairs):
        judgement = _judgement(pair, sources)
        if judgement is not None:
            small[at], large[at] = judgement.small, judgement.large
    return small, large


def _judgement(pair: Pair, sources: Sequence[str]) -> Judgement | None:
    return next((found for source in sources for found in pair.judgements if found.label_source == source), None)


def _fidelity(pairs: Sequence[Pair], differs: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> PairScores:
    """Where the large model was not asked again, it is taken to agree with itself: the harder claim."""
    again = [pair.again is None or same(pair.again.answer, pair.large.answer) for pair in pairs]
    asked = sum(pair.again is not None for pair in pairs)
    small = (~differs).astype(np.float64)
    large = np.array(again, np.float64)
    rest = ", and is taken to repeat itself in the others" if asked < len(pairs) else ""
    definition = (f"1 where an answer is the same as the large model's; of {len(pairs)} pairs the large model was "
                  f"asked again in {asked}{rest}")
    return PairScores("fidelity", definition, small, large, labels.fidelity(small, large), differs)


def is_drawn(pair: Pair, share: float) -> bool:
    """Whether people are asked about a pair that a judge saw: by its name only, so that nothing biases it."""
    return hash_draw(f"brise judge\0{pair.id}") < share


def _corrected(pairs: Sequence[Pair], differs: np.ndarray[tuple[int], np.dtype[np.bool_]], share: float) -> PairScores:
    """A pair that differs is open until the judge has rated it and, where it was drawn, until people have."""
    judge = np.subtract(*_judged(pairs, ("judge",)))
    humans = np.subtract(*_judged(pairs, ("outcome", "human")))
    judge, humans = (np.where(differs, side, 0.0) for side in (judge, humans))
    drawn = np.array([is_drawn(pair, share) for pair in pairs], np.bool_)
    is_open = np.isnan(judge) | (drawn & np.isnan(humans))
    values = labels.corrected_units(np.nan_to_num(judge), np.nan_to_num(humans), drawn, share)
    nobody = np.full(len(pairs), np.nan)
    return PairScores("judge",
                      f"a judge's opinion of each pair that differs, and people's of {100 * share:g} % of them, "
                           "drawn by chance, as a correction (prediction-powered)", nobody, nobody,
                      np.where(is_open, np.nan, values), differs, labels.corrected_bound(share))


def _differs(pair: Pair) -> bool:
    """Whether the answers differ; where a log has scores only, whether these do."""
    if pair.judgements and pair.small.answer == pair.large.answer == EvalAnswer():
        return any(found.small != found.large for found in pair.judgements)
    return not same(pair.small.answer, pair.large.answer)


def _plain(answer: EvalAnswer) -> tuple[object, ...]:
    value = compare.parse(answer.text)
    text = compare.squeezed(answer.text) if value is compare.INVALID else compare.canonical(value)
    calls = [(call.name, call.arguments if (given := compare.parse(call.arguments or "{}")) is compare.INVALID
              else compare.canonical(given)) for call in answer.calls]
    return text, tuple(calls)


@dataclass(frozen=True)
class PairClusters:
    """The rows that count, and the cluster of each. `waiting` clusters come after the first that has an open row.

    Where answers weigh alike, rows behind the first M of their cluster are `cut`.
    """

    rows: Rows
    of_row: tuple[str, ...]
    waiting: int
    layout: ClusterLayout
    cut: Rows

    @property
    def names(self) -> tuple[str, ...]:
        """The clusters in the order in which they began."""
        return tuple(dict.fromkeys(self.of_row))

    @property
    def lengths(self) -> Ints:
        """The rows of each cluster that count."""
        return np.bincount(self.layout.of_row).astype(np.intp)

    def of(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs of the rows that count."""
        return [pairs[int(at)] for at in self.rows]

    def bets(self, values: Any, inside: Any = None) -> Bets:
        """A number for each of all rows, as bets of the rows that count (and are inside of a slice)."""
        own = None if inside is None else np.asarray(inside, np.bool_)[self.rows]
        return self.layout.bets(np.asarray(values, np.float64)[self.rows], own)

    def sums(self, values: Any) -> Floats:
        """A number for each of all rows, as the sum over each cluster's rows that are bet on; or as their mean, where
        conversations weigh alike.
        """
        own = np.asarray(values, np.float64)[self.rows]
        return self.layout.sums(own)[0] if self.layout.per == "answer" else self.layout.bets(own).values

    def measured(self, name: str, values: Floats) -> tuple[Measure, Sequence[str]]:
        """The mean over rows that count and whose value is not nan, weighed as the claim does; and the cluster of each
        of its rows. `values` has one for each row that counts.
        """
        known = ~np.isnan(values)
        top, bottom = np.where(known, values, 0.0), known.astype(np.float64)
        if self.layout.per == "answer":
            return Measure(name, np.column_stack([top, bottom]), ratio), self.of_row
        tops, bottoms = (np.bincount(self.layout.of_row, side) for side in (top, bottom))
        has = (bottoms > 0).astype(np.float64)
        return Measure(name, np.column_stack([tops / np.maximum(bottoms, 1.0), has]), ratio), self.names


def complete(pairs: Sequence[Pair], scored: PairScores, weighting: Weighting | None = None) -> PairClusters:
    """All clusters before the first that has an open row.

    Only these, because which of two answers is better must not decide whether a pair counts.
    """
    is_open = scored.is_open
    waiting = {pair.cluster for pair, open_ in zip(pairs, is_open, strict=True) if open_}
    order = list(dict.fromkeys(pair.cluster for pair in pairs))
    first = next((at for at, name in enumerate(order) if name in waiting), len(order))
    counted = frozenset(order[:first])
    rows = np.array([at for at, pair in enumerate(pairs) if pair.cluster in counted], np.intp)
    layout = lay_out([pairs[at].cluster for at in rows], weighting or Weighting())
    kept = layout.counts
    return PairClusters(rows[kept], tuple(pairs[at].cluster for at in rows[kept]), len(order) - first,
                        replace(layout, of_row=layout.of_row[kept], place=layout.place[kept]), rows[~kept])
