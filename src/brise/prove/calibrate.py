"""Calibration makes a certified rule from answers whose outcome is known: its signals, their weights, a threshold.

The earlier conversations choose signals and weights and fix the sequence of thresholds; the later ones, on which
nothing was chosen, certify it. What is possible at all is computed first, from the earlier conversations alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from brise.errors import EvidenceError
from brise.prove.calibration_rows import CalibrationRow, CalibrationRows
from brise.stats import logistic
from brise.stats import thresholds as cascade
from brise.stats.clusters import MIN_CLUSTERS, ClusterLayout, Floats, Weighting, lay_out
from brise.stats.thresholds import Expected, RiskClaim, Threshold, Try
from brise.switch import novelty
from brise.switch.rule import VETO, Rule, RuleBaseline, Term, from_body, to_body
from brise.switch.signals import OF_TOKENS

FITTED = 1 / 3  # of conversations
FOLDS = 5
GAIN = 0.01  # of AUROC, by which many signals must beat the best single one: people understand a plain rule
SINGLE: Sequence[str] = ("logprob", "mean", "least", "least_field", "margin")
NEVER = -1.0  # the confidence of what is never kept: the rule's are over 0
BINS = 10


@dataclass(frozen=True)
class Feasibility:
    """What can be expected before anything is certified, from the earlier conversations."""

    rows: int
    units: int
    error: float  # share of the small model's answers that are wrong
    floor: float  # the share that must escalate even if confidence ranked perfectly
    auroc: float
    oracle: float  # the share that could be kept if all were known
    certifying: int  # rows that are left to certify with
    expected: float  # the share that they will certify
    needed: Expected | None  # rows for four fifths of the oracle's share
    least: int  # rows that must be kept, all of them right
    most_rows: int | None  # of a conversation that count, its first ones; None: all, and conversations weigh alike
    cut: int  # rows that are behind them, of those left to certify with


@dataclass(frozen=True)
class Calibration:
    """`rule` is None if the claim is impossible on these data; `why` says so."""

    feasibility: Feasibility
    draft: Rule  # signals and weights, without a certified threshold
    rule: Rule | None
    why: str
    saving_usd: float | None  # of the cost of these requests
    missing: tuple[str, ...] = ()  # signals that not all answers have, so that no rule could use them


@dataclass(frozen=True)
class _Prepared:
    """What the earlier conversations give: the rule's draft, what can be expected, the thresholds to try."""

    draft: Rule
    feasibility: Feasibility
    tries: tuple[Try, ...]
    later: tuple[CalibrationRow, ...]
    layout: ClusterLayout  # of the later rows
    missing: tuple[str, ...]


def calibrate(rows: CalibrationRows, task: str, claim: RiskClaim, *, scorer: str = "auto", audit: float = 0.05,
              signals: Sequence[str] | None = None, weighting: Weighting | None = None) -> Calibration:
    """Calibrates and certifies; EvidenceError under 30 conversations on either side of the split.

    The claim is about answers unless the `weighting` says otherwise. If it states no M, the earlier conversations do:
    the power of two that covers the longest of them.
    """
    ready = _prepared(rows, task, claim, scorer, signals, weighting or Weighting())
    later, draft = ready.later, ready.draft
    later_confidences, later_wrong = _judged(draft, later), _wrong(later)
    if ready.layout.per == "conversation":
        found, method = cascade.certify(later_confidences, later_wrong, [row.cluster for row in later],
                                        [one.confidence for one in ready.tries], claim)
    else:
        found, method = cascade.certify_answers(later_confidences, later_wrong, ready.layout, ready.tries, claim)
    if found is None:
        return Calibration(ready.feasibility, draft, None, _why_not(ready.feasibility, claim), None, ready.missing)
    rule = _certified(draft, found, method, later, later_confidences, ready.feasibility.certifying)
    return Calibration(ready.feasibility, draft, rule, "", _saving(later, found, audit), ready.missing)


def plan(rows: CalibrationRows, task: str, claim: RiskClaim, *, scorer: str = "auto",
         signals: Sequence[str] | None = None, weighting: Weighting | None = None) -> Calibration:
    """What can be expected, from the earlier conversations alone: the answers that certify are not looked at.

    So it costs nothing. `why` says why the claim cannot be certified on these data, where that is known beforehand.
    """
    ready = _prepared(rows, task, claim, scorer, signals, weighting or Weighting())
    return Calibration(ready.feasibility, ready.draft, None, _known_beforehand(ready.feasibility, claim) or "", None,
                       ready.missing)


def _prepared(rows: CalibrationRows, task: str, claim: RiskClaim, scorer: str, signals: Sequence[str] | None,
              weighting: Weighting) -> _Prepared:
    earlier, later = split(rows.rows)
    draft = _fit(earlier, task, rows, claim, scorer, signals)
    confidences, wrong = _judged(draft, earlier), _wrong(earlier)
    before, after = _layouts(earlier, later, weighting)
    wanted, expected, needed = _wanted(confidences, wrong, before, after, claim)
    cut, is_per_answer = int((~after.counts).sum()), weighting.per == "answer"
    most_rows = after.most_rows if is_per_answer else None
    feasibility = Feasibility(
        len(earlier), len(_clusters(earlier)), float(wrong.mean()), cascade.floor(float(wrong.mean()), claim),
        cascade.auroc(confidences, wrong), cascade.oracle(confidences, wrong, claim), len(later) - cut, expected,
        needed, cascade.least_units(claim, most_rows or 1), most_rows, cut)
    return _Prepared(draft, feasibility, tuple(one for one in wanted if one.confidence > NEVER), later, after,
                     missing_signals(earlier))


def _layouts(earlier: Sequence[CalibrationRow], later: Sequence[CalibrationRow],
             weighting: Weighting) -> tuple[ClusterLayout, ClusterLayout]:
    """Those of the earlier and of the later rows, with the same M, which the later ones have no part in."""
    if weighting.per == "answer" and weighting.most_rows is None:
        longest = max(Counter(row.cluster for row in earlier).values())
        weighting = Weighting("answer", 1 << (longest - 1).bit_length())
    before, after = (lay_out([row.cluster for row in part], weighting) for part in (earlier, later))
    return before, after


def _wanted(confidences: Floats, wrong: Floats, before: ClusterLayout, after: ClusterLayout,
            claim: RiskClaim) -> tuple[list[Try], float, Expected | None]:
    """The thresholds to try, the share that they are expected to keep, and the rows for four fifths of the oracle's."""
    certifying = int(after.counts.sum())
    if before.per == "conversation" or before.most_rows == 1:
        found = cascade.sequence(confidences, wrong, certifying, claim)
        return ([Try(value, 0.0, 0.0, float((confidences >= value).mean())) for value in found],
                cascade.expected(confidences, wrong, certifying, claim).kept,
                cascade.units_needed(confidences, wrong, claim))
    wanted = cascade.tries(confidences, wrong, before, claim)
    share = 0.8 * cascade.oracle(confidences, wrong, claim)
    return (wanted, cascade.expected_of(wanted, certifying, len(after.limits), claim).kept,
            cascade.needed_of(wanted, certifying / len(after.limits), share, claim))


def split(rows: Sequence[CalibrationRow]) -> tuple[tuple[CalibrationRow, ...], tuple[CalibrationRow, ...]]:
    """Splits by whole conversations: the third that began first, and the others."""
    names = list(dict.fromkeys(row.cluster for row in rows))
    earlier = set(names[:round(FITTED * len(names))])
    if min(len(earlier), len(names) - len(earlier)) < MIN_CLUSTERS:
        raise EvidenceError(f"there are {len(names)} independent conversations, at least {3 * MIN_CLUSTERS} are "
                            "needed: a third to choose the rule, the others to certify it",
                            hint="collect more; more rows of the same conversations do not help")
    return (tuple(row for row in rows if row.cluster in earlier),
            tuple(row for row in rows if row.cluster not in earlier))


def missing_signals(rows: Sequence[CalibrationRow]) -> tuple[str, ...]:
    """Signals of the answers' tokens that not all answers have, unless they are vetoed: a server that gives no
    log-probabilities gives none."""
    usable = [row for row in rows if not row.signals.get(VETO, 0.0)]
    return tuple(name for name in OF_TOKENS if not all(name in row.signals for row in usable))


def _fit(rows: Sequence[CalibrationRow], task: str, all_rows: CalibrationRows, claim: RiskClaim, scorer: str,
         wanted: Sequence[str] | None) -> Rule:
    """The best single signal; or all together, if that is better on conversations that they were not fitted on."""
    centres = novelty.cover([row.text for row in rows])
    rows = with_novelty(rows, centres)
    vetoes = (VETO, "absent") if _is_veto(rows, "absent") else (VETO,)
    usable = [row for row in rows if not any(row.signals.get(name, 0.0) > 0 for name in vetoes)]
    names = [name for name in (*OF_TOKENS, "novelty", "absent") if name not in vetoes
             and usable and all(name in row.signals for row in usable)]
    if wanted is not None:
        missing = [name for name in wanted if name not in names]
        if missing:
            raise EvidenceError(f"the signal {missing[0]!r} is not there for all answers; those that are: "
                                f"{', '.join(names) or 'none'}",
                                hint="a server that gives no log-probabilities gives none of the tokens' signals"
                                if missing[0] in OF_TOKENS else None)
        names = list(wanted)
    if not names:
        raise EvidenceError(f"all {len(rows)} answers of the candidate are vetoed: they cannot be right"
                            if not usable else "no signal is there for all answers")
    chosen = _best(usable, names)
    fitted = logistic.fit(_matrix(usable, chosen), 1 - _wrong(usable))
    terms = tuple(Term(name, float(fitted.means[at]), float(fitted.scales[at]), float(fitted.weights[at]))
                  for at, name in enumerate(chosen))
    return Rule(task, all_rows.candidate, terms, fitted.bias, 1.0, 1.0, claim.risk, claim.delta, 0.0, 1.0, "", 0, 0,
                0.0, 0.0, all_rows.label_source, scorer, RuleBaseline((), (1.0,), 0.0, 1.0, 0.0, 0), vetoes,
                centres if "novelty" in chosen else "", all_rows.fingerprint)


def _best(rows: Sequence[CalibrationRow], names: Sequence[str]) -> list[str]:
    wrong = _wrong(rows)
    single = {name: cascade.auroc(_matrix(rows, [name])[:, 0], wrong) for name in names if name in SINGLE}
    first = max(single, key=lambda name: single[name]) if single else names[0]
    if len(names) > 1 and _held_out(rows, names) - GAIN > single.get(first, 0.5):
        return list(names)
    return [first]


def _held_out(rows: Sequence[CalibrationRow], names: Sequence[str]) -> float:
    """AUROC of the rule of many signals on the conversations of each fold, fitted on the others."""
    wrong = _wrong(rows)
    odds = logistic.out_of_fold(_matrix(rows, names), 1 - wrong, [row.cluster for row in rows], FOLDS)
    return cascade.auroc(odds, wrong)


def _is_veto(rows: Sequence[CalibrationRow], name: str) -> bool:
    """Whether answers with this signal are wrong more often than right, given ten of them or more."""
    with_it = [row.wrong for row in rows if row.signals.get(name, 0.0) > 0 and not row.signals.get(VETO, 0.0)]
    return len(with_it) >= 10 and float(np.mean(with_it)) > 0.5


def with_novelty(rows: Sequence[CalibrationRow], centres: str) -> list[CalibrationRow]:
    """The rows with their distance to the centres among the signals."""
    unpacked = novelty.unpack(centres)
    return [replace(row, signals={**row.signals, "novelty": novelty.novelty(row.text, unpacked)}) for row in rows]


def _judged(rule: Rule, rows: Sequence[CalibrationRow]) -> Floats:
    """The rule's confidences, as a gateway computes them."""
    rows = with_novelty(rows, rule.coverage) if rule.coverage else rows
    found = [rule.confidence(row.signals) for row in rows]
    return np.array([NEVER if value is None else value for value in found], np.float64)


def _certified(draft: Rule, found: Threshold, method: str, rows: Sequence[CalibrationRow], confidences: Floats,
               units: int) -> Rule:
    kept = confidences >= found.confidence
    judged = confidences[confidences > NEVER]
    edges = np.unique(np.quantile(judged, np.linspace(0, 1, BINS + 1)[1:-1]))
    shares = np.bincount(np.searchsorted(edges, judged, side="right"), minlength=len(edges) + 1) / len(judged)
    baseline = RuleBaseline(
        tuple(map(float, edges)), tuple(map(float, shares)), float((confidences == NEVER).mean()),
        float(1 - kept.mean()), float(np.mean([row.differs for row, is_in in zip(rows, kept, strict=True) if is_in])),
        len(rows))
    rule = replace(draft, threshold=found.confidence, tight=float(np.median(confidences[kept])), kept=found.kept,
                   bound=found.bound, method=method, units=units, clusters=len(_clusters(rows)),
                   since_s=rows[0].at_s, until_s=rows[-1].at_s, baseline=baseline)
    return from_body(to_body(rule))


def _known_beforehand(found: Feasibility, claim: RiskClaim) -> str | None:
    if found.certifying < found.least:
        return (f"{found.certifying} answers are left to certify with; even if all were right, {found.least} are "
                f"needed for a risk of {100 * claim.risk:g} % with {100 * (1 - claim.delta):g} % certainty")
    best = found.oracle * found.certifying
    if best < found.least:
        return (f"confidence tells right from wrong only so well (AUROC {found.auroc:.2f}) that, even if all were "
                f"known, {100 * found.oracle:.0f} % could be kept at that risk: {best:.0f} answers, and {found.least} "
                "that are all right are needed to show it")
    return None


def _why_not(found: Feasibility, claim: RiskClaim) -> str:
    known = _known_beforehand(found, claim)
    if known is not None:
        return known
    said = f"{found.certifying} answers do not show it"
    if found.needed is None:
        return said
    if found.needed.units <= found.certifying:
        return f"{said}: more of them are wrong than of the earlier ones, by which {found.needed.units} were enough"
    return f"{said}; about {found.needed.units} labelled answers would"


def _saving(rows: Sequence[CalibrationRow], found: Threshold, audit: float) -> float | None:
    """USD saved if these requests were answered by the rule: kept ones are free, except for audits."""
    costs = [row.cost_usd for row in rows if row.cost_usd is not None]
    return found.kept * (1 - audit) * sum(costs) if costs else None


def _clusters(rows: Sequence[CalibrationRow]) -> list[str]:
    return list(dict.fromkeys(row.cluster for row in rows))


def _matrix(rows: Sequence[CalibrationRow], names: Sequence[str]) -> Floats:
    return np.array([[row.signals[name] for name in names] for row in rows], np.float64)


def _wrong(rows: Sequence[CalibrationRow]) -> Floats:
    return np.array([row.wrong for row in rows], np.float64)
