"""What the small model must be seen beside: the large one against itself, and a classifier that costs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from brise.errors import EvidenceError, MissingExtraError
from brise.evals import baseline
from brise.evals.example import Example
from brise.evals.measure import bounded, of_rows
from brise.evals.scorers import Scorer
from brise.evidence import scoring
from brise.evidence.pairs import Pair
from brise.evidence.units import Units
from brise.proof import gate
from brise.proof.gate import Gate, Verdict
from brise.proof.units import MIN_CLUSTERS, unit_means


@dataclass(frozen=True)
class Baseline:
    """Another system on the same units: how it scores, or how often it says the same, and what the gate says of it."""

    name: str
    what: str
    estimate: float | None
    low: float | None
    high: float | None
    rows: int
    verdict: Verdict | None = None
    evidence: float | None = None


def itself(pairs: Sequence[Pair], units: Units) -> list[Baseline]:
    """How often the large model repeats its own answer, and what its second answers are worth, as far as either is
    known.
    """
    rows = units.of(pairs)
    same = {at: float(scoring.same(pair.again.answer, pair.large.answer)) for at, pair in enumerate(rows)
            if pair.again is not None}
    worth = {at: judgement.again for at, pair in enumerate(rows) for judgement in pair.judgements
             if judgement.again is not None}
    return [_again(what, values, rows) for what, values in (("the same answer", same), ("score", worth)) if values]


def _again(what: str, values: Mapping[int, float], rows: Sequence[Pair]) -> Baseline:
    found = bounded(of_rows([{what: (value, 1.0)} for value in values.values()], [what])[0],
                    [rows[at].unit for at in values])
    return Baseline("the large model, asked again", what, found.estimate, found.low, found.high, len(values))


def classical(pairs: Sequence[Pair], units: Units, scorer: Scorer, train: Sequence[Example],
              promise: Gate) -> Baseline:
    """TF-IDF with a linear model, which learns from `train` and is put to the same test as the small model.

    Where nobody knows the right answer, the large model's is learned and counted as right.
    """
    rows = units.of(pairs)
    examples = [pair.example(pair.reference or pair.large.answer) for pair in rows]
    answerer = baseline.BaselineAnswerer("tfidf", baseline.without(train, examples), classifies=True)
    answerer.prepare(examples)
    given = [answerer.answer(example) for example in examples]
    figure = scoring.figure_of(scorer)
    own = scoring.values(scorer, figure, examples, given)
    large = scoring.values(scorer, figure, examples, [pair.large.answer for pair in rows])
    means = unit_means(own - large, units.of_row)
    outcome = gate.decide(means, promise) if len(means) >= MIN_CLUSTERS else None
    found = bounded(of_rows([{"right": (float(value), 1.0)} for value in own], ["right"])[0], units.of_row)
    return Baseline(answerer.name, figure, found.estimate, found.low, found.high, len(rows),
                    None if outcome is None else outcome.verdict,
                    None if outcome is None else float(np.max(outcome.path)))


def classical_if_it_can(pairs: Sequence[Pair], units: Units, scorer: Scorer | None, train: Sequence[Example],
                        promise: Gate) -> tuple[Baseline | None, str | None]:
    """For a classification with rows to learn from; else why there is none."""
    if scorer is None or scorer.name != "class":
        return None, None
    if not train:
        return None, "no TF-IDF baseline: nothing to learn from was given (--train)"
    try:
        return classical(pairs, units, scorer, train, promise), None
    except (MissingExtraError, EvidenceError) as error:
        return None, f"no TF-IDF baseline: {error.args[0]}"
