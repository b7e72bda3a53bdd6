"""The proof: from pairs to a verdict, over all of them and in slices. The claim is stated before data are seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from brise.errors import EvidenceError
from brise.evals.measure import Bounded, Measure, bounded, difference, ratio
from brise.prove import guards
from brise.prove.guards import Guard, Margins
from brise.prove.pairs import Pair
from brise.prove.scoring import PairClusters, PairScores, complete, part
from brise.stats import intervals, sequential_test
from brise.stats.clusters import MIN_CLUSTERS, Floats, cluster_means
from brise.stats.sequential_test import NonInferiorityTest, Outcome, Verdict
from brise.text.conversation import plain_text
from brise.traffic import slice_keys

MOST_VALUES = 20  # of a label that makes slices; one with more, such as a user's name, does not
ANYTIME = 2.0  # times the fixed sample size, until the sequential test has 90 % power


@dataclass(frozen=True)
class Terms:
    """What is stated before data are seen. `alpha` is shared by all candidates; this one is the `candidate`-th.

    `slice_delta` is the margin of a slice: each has fewer clusters than the whole.
    """

    delta: float = 0.02
    alpha: float = 0.05
    futility: float = 20.0
    candidate: int = 1
    power: float = 0.9
    slice_delta: float = 0.05
    dimensions: tuple[str, ...] | None = None
    margins: Margins = field(default_factory=Margins)

    @property
    def test(self) -> NonInferiorityTest:
        """The non-inferiority test with this candidate's part of alpha."""
        return NonInferiorityTest(self.delta, sequential_test.candidate_alpha(self.alpha, self.candidate),
                                  self.futility)


@dataclass(frozen=True)
class Planned:
    """What is needed, and what there is. `discordance` is the share of rows whose answers differ, or is stated.

    `units` are clusters: by the formula for a fixed number; `anytime_units` for the sequential test.
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
class Proof:
    """The result; `verdict` is over quality and guards, the numbers are of the counted rows."""

    terms: Terms
    plan: Planned
    scored: PairScores
    clusters: PairClusters
    differences: Floats  # of clusters
    outcome: Outcome
    verdict: Verdict
    reason: str
    small: Bounded
    large: Bounded
    difference: Bounded
    discordance: float  # P(S != T) of the counted rows
    guards: tuple[Guard, ...]
    slices: tuple[Slice, ...]


def plan(pairs: Sequence[Pair], scored: PairScores, terms: Terms, discordance: float | None = None) -> Planned:
    """Clusters and labels needed for a model as good as the large one. It uses whether answers differ, not whose is
    better, so that it may be computed at any time.
    """
    clusters = tuple(pair.cluster for pair in pairs)
    test = terms.test
    found = discordance
    if found is None:
        if not len(scored.differs):
            raise EvidenceError("there are no pairs", hint="state --psi, the share of answers that will differ")
        found = max(float(scored.differs.mean()), 1 / len(pairs))
    # The variance of a cluster's mean is at most the mean square of its share of rows that differ.
    spread = found if discordance is not None else max(
        float((cluster_means(scored.differs.astype(np.float64), clusters) ** 2).mean()), 1 / len(pairs))
    planned = sequential_test.plan(spread, test, terms.power)
    rows_per_cluster = len(pairs) / max(len(set(clusters)), 1) if pairs else 1.0
    return Planned(
        found, discordance is not None, planned.units, math.ceil(ANYTIME * planned.units),
        round(planned.units * rows_per_cluster * found), len(set(clusters)),
        int((scored.differs & ~scored.is_open).sum()), len(pairs), int(scored.is_open.sum()), 1 / test.alpha)


def prove(pairs: Sequence[Pair], scored: PairScores, terms: Terms, planned: Planned) -> Proof:
    """The verdict over all pairs, which are in the order of time and of one context and one large model."""
    clusters, test = complete(pairs, scored), replace(terms.test, bound=scored.bound)
    if len(clusters.names) < MIN_CLUSTERS and clusters.waiting:
        raise EvidenceError(
            f"{len(clusters.names)} clusters have no answers left to judge, at least {MIN_CLUSTERS} are needed; behind "
            f"them {clusters.waiting} wait", hint=f"brise label: {int(scored.is_open.sum())} pairs differ and nobody "
                                                  "has said which answer is good")
    differences = clusters.means(scored.differences)
    outcome = sequential_test.decide(differences, test)
    found = guards.guards(pairs, clusters, terms.margins, test)
    verdict = guards.worst({"quality": outcome.verdict} | {guard.name: guard.verdict for guard in found})
    parts = slices_of(pairs, scored, clusters, dimensions(pairs, terms.dimensions),
                          max(terms.slice_delta, terms.delta), test.alpha)
    if outcome.verdict != "promote":
        parts = tuple(replace(one, is_proven=False) for one in parts)
    small, large = (_measure(name, values, clusters) for name, values in (("small", scored.small),
                                                                       ("large", scored.large)))
    d = scored.differences[clusters.rows]
    return Proof(terms, planned, scored, clusters, differences, outcome, verdict,
                 _reason(verdict, outcome, found, clusters), bounded(small, clusters.of_row),
                 bounded(large, clusters.of_row), _difference(scored, small, large, clusters), float((d != 0).mean()),
                 found, parts)


def _difference(scored: PairScores, small: Measure, large: Measure, clusters: PairClusters) -> Bounded:
    """Tango's interval for right and wrong with one row per cluster; else clusters are resampled.

    Rows without scores, because their answers are the same, count as equal.
    """
    if scored.label_source == "judge":  # corrected differences are all there is: no answer has a score by itself
        found = intervals.normal(clusters.means(scored.differences) / scored.bound)
        return Bounded(scored.bound * found.estimate, scored.bound * found.low, scored.bound * found.high,
                       "normal, of corrected units")
    missing = (small.counts[:, 1] == 0) | (large.counts[:, 1] == 0)
    if missing.any():
        ones = np.ones(len(missing))
        filled = [np.where(missing, 1.0, side.counts[:, 0]) for side in (small, large)]
        small, large = (Measure(side.name, np.column_stack([values, ones]), ratio)
                        for side, values in zip((small, large), filled, strict=True))
    return difference(small, large, clusters.of_row)


def _measure(name: str, values: Floats, clusters: PairClusters) -> Measure:
    """The mean over rows whose score is known."""
    rows = values[clusters.rows]
    known = ~np.isnan(rows)
    return Measure(name, np.column_stack([np.where(known, rows, 0.0), known.astype(np.float64)]), ratio)


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
        own = part(clusters, values == value)
        means = own.means(scored.differences)
        evidence = float(sequential_test.wealth(means, delta, scored.bound)[-1]) if len(means) >= MIN_CLUSTERS else 0.0
        found.append(Slice(name, value, len(own.rows), len(means), float(means.mean()), evidence, False))
    return found
