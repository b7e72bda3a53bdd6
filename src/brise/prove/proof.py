"""The proof: from pairs to a verdict, over all of them and in slices. The claim is stated before data are seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from brise.errors import EvidenceError
from brise.evals.measure import Bounded, bounded, difference
from brise.prove import guards
from brise.prove.guards import Guard, Margins
from brise.prove.pairs import MissingPair, Pair
from brise.prove.scoring import PairClusters, PairScores, complete
from brise.stats import intervals, sequential_test
from brise.stats.clusters import MIN_CLUSTERS, Bets, ClusterLayout, Floats, Per, Weighting, cluster_means, lay_out
from brise.stats.intervals import Interval
from brise.stats.sequential_test import NonInferiorityTest, Outcome, Verdict
from brise.text.conversation import plain_text
from brise.traffic import slice_keys

MOST_VALUES = 20  # of a label that makes slices; one with more, such as a user's name, does not
ANYTIME = 2.0  # times the fixed sample size, until the sequential test has 90 % power


@dataclass(frozen=True)
class Terms:
    """What is stated before data are seen. `alpha` is shared by all candidates; this one is the `candidate`-th.

    `slice_delta` is the margin of a slice: each has fewer clusters than the whole. `weighting` says what weighs alike
    in the claim, answers or conversations.
    """

    delta: float = 0.02
    alpha: float = 0.05
    futility: float = 20.0
    candidate: int = 1
    power: float = 0.9
    slice_delta: float = 0.05
    dimensions: tuple[str, ...] | None = None
    margins: Margins = field(default_factory=Margins)
    weighting: Weighting = Weighting()

    @property
    def test(self) -> NonInferiorityTest:
        """The non-inferiority test with this candidate's part of alpha."""
        return NonInferiorityTest(self.delta, sequential_test.candidate_alpha(self.alpha, self.candidate),
                                  self.futility)


@dataclass(frozen=True)
class Planned:
    """What is needed, and what there is. `discordance` is the share of rows whose answers differ, or is stated.

    `units` are clusters: by the formula for a fixed number; `anytime_units` for the sequential test, and
    `other_anytime_units` too, for the other claim, about conversations in place of answers or the other way round.
    """

    discordance: float
    is_stated: bool
    units: int
    anytime_units: int
    labels: int
    have_units: int
    have_labels: int
    have_rows: int
    open_rows: int
    level: float
    other_anytime_units: int


@dataclass(frozen=True)
class Slice:
    """One value of one dimension. `evidence` is the wealth after all of its clusters; 0 under 30 of them."""

    dimension: str
    value: str
    rows: int
    units: int
    mean: float
    evidence: float
    is_proven: bool

    @property
    def name(self) -> str:
        return f"{self.dimension}={self.value}"


@dataclass(frozen=True)
class Doubt:
    """A reason why the `verdict` of the test does not stand, or which a reader must see beside it."""

    words: str
    is_grave: bool = False  # what would be promoted is undecided


@dataclass(frozen=True)
class Proof:
    """The result; `verdict` is over quality and guards, the numbers are of the counted rows, weighed as the claim does.

    `other` is the difference in the other weighting: of conversations beside answers, and the other way round.
    """

    terms: Terms
    plan: Planned
    scored: PairScores
    clusters: PairClusters
    bets: Bets
    outcome: Outcome
    verdict: Verdict
    reason: str
    small: Bounded
    large: Bounded
    difference: Bounded
    discordance: float  # P(S != T) of the counted rows
    guards: tuple[Guard, ...]
    slices: tuple[Slice, ...]
    other: float
    doubts: tuple[Doubt, ...]

    @property
    def sums(self) -> Floats:
        """What each cluster gave to bet on: the sum of its D, or their mean where conversations weigh alike."""
        return self.clusters.sums(self.scored.differences)


def plan(pairs: Sequence[Pair], scored: PairScores, terms: Terms, discordance: float | None = None) -> Planned:
    """Clusters and labels needed for a model as good as the large one. It uses whether answers differ, not whose is
    better, so that it may be computed at any time.
    """
    clusters, test = [pair.cluster for pair in pairs], terms.test
    if discordance is None and not pairs:
        raise EvidenceError("there are no pairs", hint="state --psi, the share of answers that will differ")
    found = discordance if discordance is not None else max(float(scored.differs.mean()), 1 / len(pairs))
    per = terms.weighting.per
    other: Per = "conversation" if per == "answer" else "answer"
    layouts = {per: lay_out(clusters, terms.weighting), other: lay_out(clusters, Weighting(other))}
    units, anytime = dict[Per, int](), dict[Per, int]()
    for name, one in layouts.items():
        spread = _spread(one, scored, discordance)
        units[name] = sequential_test.units_needed(spread, test, terms.power)
        anytime[name] = _anytime(one, spread, units[name], test)
    layout = layouts[per]
    rows = float(layout.counts.sum()) / max(len(layout.limits), 1) if pairs else 1.0
    return Planned(
        found, discordance is not None, units[per], anytime[per], round(units[per] * rows * found), len(layout.limits),
        int((scored.differs & ~scored.is_open).sum()), len(pairs), int(scored.is_open.sum()), 1 / test.alpha,
        anytime[other])


def _spread(layout: ClusterLayout, scored: PairScores, discordance: float | None) -> float:
    """At most the variance of a cluster's mean D; of answers, of its sum over the mean number of rows.

    At most, for it takes all answers of a cluster that differ to differ in the same direction; and where it is only
    stated how many will differ, all answers of a cluster to do so together.
    """
    if not len(layout.of_row):
        return discordance or 1.0
    if layout.per == "conversation":
        if discordance is not None:
            return discordance
        return max(float((layout.bets(scored.differs).values ** 2).mean()), 1 / len(layout.of_row))
    counts = layout.counts
    number = np.bincount(layout.of_row[counts]).astype(np.float64)
    apart = np.bincount(layout.of_row[counts], scored.differs[counts]) if discordance is None else number
    spread = float((apart ** 2).mean()) / float(number.mean()) ** 2 * (1.0 if discordance is None else discordance)
    return max(spread, 1 / len(layout.of_row))


def _anytime(layout: ClusterLayout, spread: float, needed: int, test: NonInferiorityTest) -> int:
    """Clusters for the sequential test: twice those of a fixed number; more where the largest stake is under the best.

    No stake may be so large that M rows lose more than all. With the stake 1, the log of wealth grows with each cluster
    by the mean of what is bet on, less half its mean square. Its level, 1.5 more because the stakes share the wealth,
    and a quarter for chance are enough in 9 of 10 runs (docs/dev/LOG.md, 2026-11-30).
    """
    twice = math.ceil(ANYTIME * needed)
    if layout.per == "conversation" or layout.most_rows == 1 or not len(layout.of_row):
        return twice
    rows = float(layout.counts.sum()) / len(layout.limits) / layout.most_rows
    growth = rows * test.delta - min(rows * rows * spread, rows * test.delta) / 2
    return max(twice, math.ceil(5 / 4 * (1.5 - math.log(test.alpha)) / growth))


def prove(pairs: Sequence[Pair], scored: PairScores, terms: Terms, planned: Planned,
          missing: Sequence[MissingPair] = ()) -> Proof:
    """The verdict over all pairs, which are in the order of time and of one context and one large model.

    If it would be another one with the worst scores for those that are `missing`, it is undecided.
    """
    clusters, test = complete(pairs, scored, terms.weighting), replace(terms.test, bound=scored.bound)
    if len(clusters.names) < MIN_CLUSTERS and clusters.waiting:
        raise EvidenceError(
            f"{len(clusters.names)} clusters have no answers left to judge, at least {MIN_CLUSTERS} are needed; behind "
            f"them {clusters.waiting} wait", hint=f"brise label: {int(scored.is_open.sum())} pairs differ and nobody "
                                                  "has said which answer is good")
    bets = clusters.bets(scored.differences)
    outcome = sequential_test.decide(bets, test)
    found = guards.guards(pairs, clusters, terms.margins, test)
    verdict = guards.worst({"quality": outcome.verdict} | {guard.name: guard.verdict for guard in found})
    other, doubts = _other(pairs, scored, clusters), _cut(pairs, scored, clusters, terms)
    if verdict == "promote":
        doubts += _absent(pairs, scored, clusters, missing, test, terms.weighting)
    is_doubted = verdict == "promote" and any(doubt.is_grave for doubt in doubts)
    verdict = "undecided" if is_doubted else verdict
    parts = slices_of(pairs, scored, clusters, dimensions(pairs, terms.dimensions),
                      max(terms.slice_delta, terms.delta), test.alpha)
    if outcome.verdict != "promote" or is_doubted:
        parts = tuple(replace(one, is_proven=False) for one in parts)
    small, large = (clusters.measured(name, _if_complete(values[clusters.rows]))
                    for name, values in (("small", scored.small), ("large", scored.large)))
    gap = _difference(scored, clusters)
    doubts += _disagreement(gap.estimate, other, terms, clusters)
    reason = "; ".join(doubt.words for doubt in doubts if doubt.is_grave) if is_doubted else _reason(
        verdict, outcome, found, clusters)
    return Proof(terms, planned, scored, clusters, bets, outcome, verdict, reason, bounded(*small), bounded(*large),
                 gap, clusters.layout.mean(scored.differences[clusters.rows] != 0), found, parts, other, tuple(doubts))


def _if_complete(scores: Floats) -> Floats:
    """The scores, or none of them where some are missing: answers that are the same need no label for their difference,
    and the mean of the others is not that of all.
    """
    return np.full_like(scores, np.nan) if np.isnan(scores).any() else scores


def _difference(scored: PairScores, clusters: PairClusters) -> Bounded:
    """Tango's interval for right and wrong with one row per cluster; else clusters are resampled.

    Rows without scores, because their answers are the same, count as equal.
    """
    if scored.label_source == "judge":  # corrected differences are all there is: no answer has a score by itself
        found = _ratio(scored.differences[clusters.rows], clusters)
        return Bounded(found.estimate, found.low, found.high, "normal, of corrected units")
    small, large = scored.small[clusters.rows], scored.large[clusters.rows]
    missing = np.isnan(small) | np.isnan(large)
    (one, names), (two, _) = (clusters.measured(name, np.where(missing, 1.0, values))
                              for name, values in (("small", small), ("large", large)))
    return difference(one, two, names)


def _ratio(differences: Floats, clusters: PairClusters) -> Interval:
    """The mean difference of the rows that count and its interval by the central limit theorem."""
    of_row = clusters.layout.of_row
    sums, numbers = np.bincount(of_row, differences), np.bincount(of_row)
    if clusters.layout.per == "conversation":
        return intervals.ratio(sums / numbers, np.ones(len(numbers)))
    return intervals.ratio(sums, numbers)


def _other(pairs: Sequence[Pair], scored: PairScores, clusters: PairClusters) -> float:
    """The difference in the other weighting, of all rows of the same clusters."""
    rows = np.concatenate([clusters.rows, clusters.cut])
    d = scored.differences[rows]
    if clusters.layout.per == "conversation":
        return float(d.mean())
    return float(cluster_means(d, [pairs[int(at)].cluster for at in rows]).mean())


def _cut(pairs: Sequence[Pair], scored: PairScores, clusters: PairClusters, terms: Terms) -> list[Doubt]:
    """What the answers behind the first M of their conversations say. They are no evidence for the claim, but where
    they could turn it, nothing is promoted.
    """
    if not len(clusters.cut):
        return []
    rows = np.sort(np.concatenate([clusters.rows, clusters.cut]))
    layout = lay_out([pairs[int(at)].cluster for at in rows], Weighting("conversation"))
    d = scored.differences[rows]
    found = intervals.ratio(np.bincount(layout.of_row, d), np.bincount(layout.of_row))
    most, bound = clusters.layout.most_rows, scored.bound
    words = (f"{len(clusters.cut):,} of {len(rows):,} answers are cut, because they come after the first {most} of "
             f"their conversation; over all answers the difference is {_points(found.estimate)} "
             f"[{_points(max(found.low, -bound))}, {_points(min(found.high, bound))}]")
    if found.low > -terms.delta:
        return [Doubt(words)]
    return [Doubt(f"{words}, which may be under the margin; --rows-per-conversation, with more on fresh data, would "
                  "count them", True)]


def _absent(pairs: Sequence[Pair], scored: PairScores, clusters: PairClusters, missing: Sequence[MissingPair],
            test: NonInferiorityTest, weighting: Weighting) -> list[Doubt]:
    """Whether the test would promote as well if the small model's missing answers were all wrong, and the large one's
    right.
    """
    if not missing:
        return []
    rows = np.sort(np.concatenate([clusters.rows, clusters.cut]))
    told = [(pairs[int(at)].at_s or 0.0, pairs[int(at)].cluster, float(scored.differences[at])) for at in rows]
    last_s = max(at_s for at_s, _, _ in told)
    worst = [(one.at_s, one.cluster, -1.0) for one in missing if one.at_s <= last_s]
    together = sorted([*told, *worst], key=lambda row: row[0])
    layout = lay_out([cluster for _, cluster, _ in together], weighting)
    outcome = sequential_test.decide(layout.bets([d for _, _, d in together]), test)
    words = f"{len(worst):,} answers are missing, because their content is not there"
    if outcome.verdict == "promote":
        return [Doubt(f"{words}; with the worst scores for them the verdict is the same")]
    return [Doubt(f"{words}, and with the worst scores for them the verdict would be another one", True)]


def _disagreement(estimate: float, other: float, terms: Terms, clusters: PairClusters) -> list[Doubt]:
    """A word where the other weighting has the other sign, or lies on the other side of the margin."""
    is_answer = clusters.layout.per == "answer"
    if estimate * other < 0:
        what = "has the other sign"
    elif (estimate > -terms.delta) != (other > -terms.delta):
        what = "is on the other side of the margin"
    else:
        return []
    one, two = ("conversation", "answer") if is_answer else ("answer", "conversation")
    return [Doubt(f"the difference in which each {one} weighs alike is {_points(other)}, which {what}: in this test "
                  f"each {two} weighs alike, and the difference is {_points(estimate)}")]


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points"


def _reason(verdict: Verdict, outcome: Outcome, found: Sequence[Guard], clusters: PairClusters) -> str:
    names: list[str] = [guard.name for guard in found if guard.verdict == verdict]
    if verdict == "promote":
        return f"quality is shown after {outcome.decided_at} units" + (f", and so are {', '.join(names)}"
                                                                       if names else "")
    if outcome.verdict == verdict:
        names.insert(0, "quality")
    what = "refuted" if verdict == "not good enough" else "not shown yet"
    waiting = f"; {clusters.waiting} units wait for judgements" if clusters.waiting and verdict == "undecided" else ""
    return f"{', '.join(names)}: {what}{waiting}"


def dimensions(pairs: Sequence[Pair], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The dimensions of slices: the wanted ones, else every label of 2 to 20 values, length and writing."""
    if wanted is not None:
        return tuple(wanted)
    found: dict[str, set[str]] = {}
    for pair in pairs:
        for name, value in pair.labels.items():
            found.setdefault(name, set()).add(value)
    return (*(name for name, values in sorted(found.items()) if 2 <= len(values) <= MOST_VALUES), *slice_keys.DERIVED)


def slices_of(pairs: Sequence[Pair], scored: PairScores, clusters: PairClusters, names: Sequence[str], delta: float,
           alpha: float) -> tuple[Slice, ...]:
    """All slices with their evidence; those that pass e-BH together are proven, if the whole is."""
    found = [one for name in names for one in _slices_of(name, pairs, scored, clusters, delta)]
    proven = sequential_test.proven_slices({one.name: one.evidence for one in found}, alpha)
    return tuple(Slice(one.dimension, one.value, one.rows, one.units, one.mean, one.evidence, one.name in proven)
                 for one in found)


def value_of(pair: Pair, dimension: str) -> str:
    """The value of a label, or of what is derived from the request; the gateway computes it in the same way."""
    text = plain_text(pair.prompt[-1].get("content")) if pair.prompt else ""
    return slice_keys.value_of(pair.labels, text, dimension)


def _slices_of(name: str, pairs: Sequence[Pair], scored: PairScores, clusters: PairClusters,
               delta: float) -> list[Slice]:
    values = np.array([value_of(pair, name) for pair in pairs], object)
    found = []
    for value in sorted({str(values[at]) for at in clusters.rows}):
        inside = (values == value)[clusters.rows]
        differences = scored.differences[clusters.rows]
        bets = clusters.layout.bets(differences, inside)
        units = int((bets.weights > 0).sum())
        evidence = float(sequential_test.wealth(bets, delta, scored.bound)[-1]) if units >= MIN_CLUSTERS else 0.0
        found.append(Slice(name, value, int(inside.sum()), units, clusters.layout.mean(differences, inside), evidence,
                           False))
    return found
