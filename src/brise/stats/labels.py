"""Label sources, and what is computed from labels. A report names its source: a judge's opinion is not an outcome."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from brise.errors import EvidenceError
from brise.stats.clusters import Floats, scores
from brise.stats.intervals import Interval

# outcome: a program decides (the tool ran, the test passed, the JSON is equal after canonicalisation).
# human: blinded, on discordant pairs, order randomised. judge: a model on all discordant pairs, corrected by people on
# a random part. fidelity: agreement with the large model against its own repeatability, which is not correctness.
LabelSource = Literal["outcome", "human", "judge", "fidelity"]
JudgementSource = Literal["outcome", "human", "judge"]
LABEL_SOURCES: Sequence[LabelSource] = ("outcome", "human", "judge", "fidelity")  # best first
JUDGEMENT_SOURCES: Sequence[JudgementSource] = ("outcome", "human", "judge")


def corrected(judged_rest: Any, judged: Any, labelled: Any, confidence: float = 0.95) -> Interval:
    """The mean score by prediction-powered inference (Angelopoulos et al., 2301.09633).

    `judged` and `labelled` are the judge's and the humans' scores of the same random pairs, `judged_rest` the
    judge's of all others. The mean over all judged pairs is corrected by the judge's mean error on the labelled ones.
    """
    rest = scores(judged_rest, "judged_rest", -1.0, 1.0)
    both, humans = scores(judged, "judged", -1.0, 1.0), scores(labelled, "labelled", -1.0, 1.0)
    if len(both) != len(humans):
        raise EvidenceError(f"{len(both)} units are judged but {len(humans)} of them labelled")
    if len(humans) < 2 or len(rest) < 2:
        raise EvidenceError(f"{len(humans)} labelled and {len(rest)} other units; at least 2 of each are needed")
    errors = humans - both
    estimate = float(rest.mean() + errors.mean())
    spread = math.sqrt(_squared_error(rest) + _squared_error(errors))
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * spread
    return Interval(estimate, estimate - half, estimate + half)


def corrected_units(judged: Any, labelled: Any, is_drawn: Any, probability: float) -> Floats:
    """The same for a test that goes on cluster by cluster: J, and (H - J) / probability more where people were asked.

    Pairs were drawn for people with this `probability`, independently of everything else, so each value is the
    humans' D on average, however biased the judge is. For pairs that were not drawn, `labelled` is ignored.
    """
    if not 0 < probability <= 1:
        raise EvidenceError(f"the probability is {probability}, allowed is over 0 to 1")
    drawn = np.asarray(is_drawn, np.bool_)
    judge = scores(judged, "judged", -1.0, 1.0)
    humans = scores(np.where(drawn, np.asarray(labelled, np.float64), 0.0), "labelled", -1.0, 1.0)
    if not len(judge) == len(humans) == len(drawn):
        raise EvidenceError(f"there are {len(judge)} opinions, {len(humans)} labels and {len(drawn)} draws")
    units: Floats = judge + np.where(drawn, (humans - judge) / probability, 0.0)
    return units


def corrected_bound(probability: float) -> float:
    """The largest |D| that `corrected_units` can give: the judge and people of opposite opinions, and people drawn."""
    return 2 / probability - 1


def _squared_error(values: Floats) -> float:
    return float(values.var(ddof=1)) / len(values)


def fidelity(agrees: Any, large_agrees: Any) -> Floats:
    """D of pairs without labels: 1[small ~ large] - 1[large asked again ~ large]."""
    small, large = scores(agrees, "agrees"), scores(large_agrees, "large_agrees")
    if len(small) != len(large):
        raise EvidenceError(f"{len(small)} agreements of the small model and {len(large)} of the large one")
    difference: Floats = small - large
    return difference


def kappa(first: Sequence[object], second: Sequence[object]) -> float:
    """Cohen's kappa (1960) of two people, or of one asked twice: 1 is agreement, 0 what chance would give."""
    if len(first) != len(second) or not first:
        raise EvidenceError(f"there are {len(first)} and {len(second)} labels; they must be as many, and some")
    count = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / count
    shares, others = Counter(first), Counter(second)
    chance = sum(shares[label] * others[label] for label in shares) / count**2
    return 1.0 if chance == 1 else (observed - chance) / (1 - chance)
