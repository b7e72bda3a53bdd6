"""Guards must hold beside quality: speed, valid answers, refusals and length, each with a margin of its own.

Their claims weigh what the claim about quality weighs: answers, or conversations.

All of them must be shown, each at the test's own alpha: a model that fails one is promoted at most as often as that
one's test errs, so nothing is split.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from brise.evals import compare
from brise.evals.example import EvalAnswer
from brise.prove.pairs import Pair
from brise.prove.scoring import PairClusters
from brise.stats import sequential_test
from brise.stats.clusters import MIN_CLUSTERS, Floats
from brise.stats.sequential_test import NonInferiorityTest

Name = Literal["p95 latency", "valid answers", "refusals", "length"]
Verdict = sequential_test.Verdict

# Words with which models decline, at the start of an answer. A pattern of the user's own may stand in for it.
REFUSAL = (r"(?i)^\W*(i['\u2019]?m (really |very )?sorry|sorry\b|i can ?not|i can['\u2019]?t|i won['\u2019]?t"
           r"|i(['\u2019]?m| am) (unable|not able)|unfortunately,? i (can|am)|as an ai\b|es tut mir leid"
           r"|d[ée]sol[ée]|lo siento|mi dispiace)")


@dataclass(frozen=True)
class Margins:
    """How much worse the small model may be. None: no such guard.

    `latency_s`: how much slower its p95. `valid`, `refusals`: points of the share of answers. `length`: an answer is
    within 1/length to length times the large one's in at least `length_share` of them.
    """

    latency_s: float | None = 1.0
    valid: float | None = 0.02
    refusals: float | None = 0.02
    length: float | None = 3.0
    length_share: float = 0.8
    refusal_words: str = REFUSAL


@dataclass(frozen=True)
class Guard:
    """The result of one guard. `evidence` is the largest so far, `level` what it must reach."""

    name: Name
    claim: str
    small: float
    large: float
    verdict: Verdict
    evidence: float
    level: float
    units: int


def guards(pairs: Sequence[Pair], clusters: PairClusters, margins: Margins,
           test: NonInferiorityTest) -> tuple[Guard, ...]:
    """The guards that the data allow: without seconds in the log there is no latency, and so on."""
    rows = clusters.of(pairs)
    if not rows or len(clusters.names) < MIN_CLUSTERS:
        return ()
    found = [_latency(rows, clusters, margins.latency_s, test), _valid(rows, clusters, margins.valid, test),
             _refusals(rows, clusters, margins, test), _length(rows, clusters, margins, test)]
    weighed = "" if clusters.layout.per == "answer" else ", where conversations weigh alike"
    return tuple(replace(guard, claim=guard.claim + weighed) for guard in found if guard is not None)


def not_asked(found: Sequence[Guard], margins: Margins) -> list[str]:
    """Notes on guards that were wanted but that the data do not allow."""
    wanted: dict[Name, object] = {"p95 latency": margins.latency_s, "valid answers": margins.valid,
                                  "refusals": margins.refusals, "length": margins.length}
    known = {guard.name for guard in found}
    return [f"{name}: not looked at, the data do not say it of every pair" for name, margin in wanted.items()
            if margin is not None and name not in known]


def is_refusal(answer: EvalAnswer, words: str = REFUSAL) -> bool:
    """Whether the model declined, by its finish reason or its first words."""
    return answer.finish == "content_filter" or (not answer.calls and re.search(words, answer.text[:200]) is not None)


def is_valid(answer: EvalAnswer, expects: Literal["json", "call", "text"]) -> bool:
    """Whether an answer can be used at all: no error, not empty, JSON where JSON is expected."""
    if answer.error is not None or not (answer.text.strip() or answer.calls):
        return False
    if any(compare.parse(call.arguments or "{}") is compare.INVALID for call in answer.calls):
        return False
    return expects != "json" or bool(answer.calls) or compare.parse(answer.text) is not compare.INVALID


def _latency(rows: Sequence[Pair], clusters: PairClusters, margin_s: float | None,
             test: NonInferiorityTest) -> Guard | None:
    if margin_s is None or any(pair.small.seconds is None or pair.large.seconds is None for pair in rows):
        return None
    small = np.array([pair.small.seconds for pair in rows], np.float64)
    large = np.array([pair.large.seconds for pair in rows], np.float64)
    path = sequential_test.p95_wealth(small, large, clusters.layout, margin_s)
    evidence, level = float(path.max()), 1 / test.alpha
    return Guard("p95 latency", f"p95 at most {margin_s:g} s above the large model's",
                 _p95(small, clusters), _p95(large, clusters),
                 "promote" if evidence >= level else "undecided", evidence, level, len(path))


def _p95(seconds: Floats, clusters: PairClusters) -> float:
    """The p95, in which answers or conversations weigh alike."""
    if clusters.layout.per == "answer":
        return float(np.quantile(seconds, 0.95))
    weights = 1 / clusters.lengths[clusters.layout.of_row]
    return float(np.quantile(seconds, 0.95, weights=weights, method="inverted_cdf"))


def _valid(rows: Sequence[Pair], clusters: PairClusters, margin: float | None,
           test: NonInferiorityTest) -> Guard | None:
    answers = [(pair.small.answer, pair.large.answer) for pair in rows]
    if margin is None or all(one == other == EvalAnswer() for one, other in answers):
        return None
    json_share = np.mean([compare.parse(large.text) is not compare.INVALID and large.text.strip()[:1] in "{["
                          and bool(large.text.strip()) for _, large in answers])
    expects: Literal["json", "text"] = "json" if json_share > 0.5 else "text"
    small, large = (np.array([is_valid(pair[side], expects) for pair in answers], np.float64) for side in (0, 1))
    what = "valid JSON or calls" if expects == "json" else "answers that are no error and not empty"
    return _paired("valid answers", f"share of {what} at most {100 * margin:g} points lower", small, large,
                   small - large, clusters, margin, test)


def _refusals(rows: Sequence[Pair], clusters: PairClusters, margins: Margins,
              test: NonInferiorityTest) -> Guard | None:
    answers = [(pair.small.answer, pair.large.answer) for pair in rows]
    if margins.refusals is None or all(one == other == EvalAnswer() for one, other in answers):
        return None
    small, large = (np.array([is_refusal(pair[side], margins.refusal_words) for pair in answers], np.float64)
                    for side in (0, 1))
    return _paired("refusals", f"share of refusals at most {100 * margins.refusals:g} points higher", small, large,
                   large - small, clusters, margins.refusals, test)


def _length(rows: Sequence[Pair], clusters: PairClusters, margins: Margins,
            test: NonInferiorityTest) -> Guard | None:
    lengths = np.array([(_size(pair.small.answer), _size(pair.large.answer)) for pair in rows], np.float64)
    if margins.length is None or not lengths.any():
        return None
    # One more on both sides: an empty answer to an empty one is alike, and short labels weigh little.
    ratio = (lengths[:, 0] + 1) / (lengths[:, 1] + 1)
    within = ((ratio <= margins.length) & (ratio >= 1 / margins.length)).astype(np.float64)
    path = sequential_test.rate_wealth(clusters.layout.bets(within), margins.length_share)
    against = sequential_test.rate_wealth(clusters.layout.bets(1 - within), 1 - margins.length_share)
    return _guard("length", f"at least {100 * margins.length_share:g} % of answers {1 / margins.length:.2g} to "
                            f"{margins.length:g} times as long as the large model's",
                  clusters.layout.mean(lengths[:, 0]), clusters.layout.mean(lengths[:, 1]), path, against, test)


def _size(answer: EvalAnswer) -> int:
    return len(answer.text) + sum(len(call.name) + len(call.arguments) for call in answer.calls)


def _paired(name: Name, claim: str, small: Floats, large: Floats, differences: Floats, clusters: PairClusters,
            margin: float, test: NonInferiorityTest) -> Guard:
    layout = clusters.layout
    bets = layout.bets(differences)
    return _guard(name, claim, layout.mean(small), layout.mean(large), sequential_test.wealth(bets, margin),
                  sequential_test.wealth_against(bets, margin), test)


def _guard(name: Name, claim: str, small: float, large: float, path: Floats, against: Floats,
           test: NonInferiorityTest) -> Guard:
    level = 1 / test.alpha
    shown, refuted = (int(np.argmax(reached)) if reached.any() else len(path)
                      for reached in (path >= level, against >= test.futility))
    verdict: Verdict = "undecided" if shown == refuted else "promote" if shown < refuted else "not good enough"
    return Guard(name, claim, small, large, verdict, float(path.max()), level, len(path))


def worst(verdicts: Mapping[str, Verdict]) -> Verdict:
    """The verdict over all: each must be shown, and one that is refuted ends the proof."""
    if "not good enough" in verdicts.values():
        return "not good enough"
    return "undecided" if "undecided" in verdicts.values() else "promote"
