"""Baselines stand beside the small model: the large one against itself, and a classifier that costs next to nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from brise.errors import EvidenceError, MissingExtraError
from brise.evals import baseline
from brise.evals.example import EvalExample
from brise.evals.measure import bounded
from brise.evals.scorers import Scorer
from brise.prove import scoring
from brise.prove.pairs import Pair
from brise.prove.scoring import PairClusters
from brise.stats import sequential_test
from brise.stats.clusters import MIN_CLUSTERS
from brise.stats.sequential_test import NonInferiorityTest, Verdict


@dataclass(frozen=True)
class BaselineResult:
    """Another system on the same clusters: how it scores, or how often it says the same, and its own test's verdict."""

    name: str
    what: str
    estimate: float | None
    low: float | None
    high: float | None
    rows: int
    verdict: Verdict | None = None
    evidence: float | None = None


def itself(pairs: Sequence[Pair], clusters: PairClusters) -> list[BaselineResult]:
    """How often the large model repeats its own answer, and the score of its second answers, as far as known."""
    rows = clusters.of(pairs)
    same = {at: float(scoring.same(pair.again.answer, pair.large.answer)) for at, pair in enumerate(rows)
            if pair.again is not None}
    worth = {at: judgement.again for at, pair in enumerate(rows) for judgement in pair.judgements
             if judgement.again is not None}
    return [_again(what, values, clusters) for what, values in (("the same answer", same), ("score", worth)) if values]


def _again(what: str, values: Mapping[int, float], clusters: PairClusters) -> BaselineResult:
    known = np.full(len(clusters.of_row), np.nan)
    known[list(values)] = list(values.values())
    measure, names = clusters.measured(what, known)
    has = measure.counts[:, 1] > 0
    found = bounded(replace(measure, counts=measure.counts[has]),
                    [name for name, is_known in zip(names, has, strict=True) if is_known])
    return BaselineResult("the large model, asked again", what, found.estimate, found.low, found.high, len(values))


def classical(pairs: Sequence[Pair], clusters: PairClusters, scorer: Scorer, train: Sequence[EvalExample],
              test: NonInferiorityTest) -> BaselineResult:
    """TF-IDF with a linear model, which learns from `train` and is put to the same test as the small model.

    Where nobody knows the right answer, the large model's is learned and counted as right.
    """
    rows = clusters.of(pairs)
    examples = [pair.example(pair.reference or pair.large.answer) for pair in rows]
    answerer = baseline.BaselineAnswerer("tfidf", baseline.without(train, examples), classifies=True)
    answerer.prepare(examples)
    given = [answerer.answer(example) for example in examples]
    figure = scoring.figure_of(scorer)
    own = scoring.values(scorer, figure, examples, given)
    large = scoring.values(scorer, figure, examples, [pair.large.answer for pair in rows])
    bets = clusters.layout.bets(own - large)
    outcome = sequential_test.decide(bets, test) if len(bets.limits) >= MIN_CLUSTERS else None
    found = bounded(*clusters.measured("right", own))
    return BaselineResult(answerer.name, figure, found.estimate, found.low, found.high, len(rows),
                          None if outcome is None else outcome.verdict,
                          None if outcome is None else float(np.max(outcome.path)))


def classical_if_it_can(pairs: Sequence[Pair], clusters: PairClusters, scorer: Scorer | None,
                        train: Sequence[EvalExample],
                        test: NonInferiorityTest) -> tuple[BaselineResult | None, str | None]:
    """The classical baseline, for a classification with rows to learn from; else the reason why there is none."""
    if scorer is None or scorer.name != "class":
        return None, None
    if not train:
        return None, "no TF-IDF baseline: nothing to learn from was given (--train)"
    try:
        return classical(pairs, clusters, scorer, train, test), None
    except (MissingExtraError, EvidenceError) as error:
        return None, f"no TF-IDF baseline: {error.args[0]}"
