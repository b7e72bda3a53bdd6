"""A proof as one JSON value: what --json prints, and what a report's document is made of.

docs/guides/prove.md says what it has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import numpy as np

from brise.evals.measure import Bounded
from brise.prove import scoring
from brise.prove.baselines import BaselineResult
from brise.prove.pairs import Change, Pair, large_model_of
from brise.prove.proof import Planned, Proof, Terms

# What a verdict is called where it is about one claim of several.
SHOWN: Mapping[str, str] = MappingProxyType({"promote": "shown", "not good enough": "refuted",
                                             "undecided": "not shown yet"})
MOST_POINTS = 2000  # of the path that is shown; the certificate has all


@dataclass(frozen=True)
class About:
    """The context of a proof: which task, which models, where the data came from, what was left out and why."""

    task: str
    source: str
    student: str
    teachers: tuple[str, ...]
    since_s: float | None = None
    until_s: float | None = None
    cluster: str = "conversation"
    left_out: Sequence[tuple[int, str]] = ()
    changes: Sequence[Change] = ()
    notes: Sequence[str] = ()
    fingerprint: str | None = None  # of the small model, if it is known and there is one


def about(task: str, source: str, pairs: Sequence[Pair], **rest: Any) -> About:
    """The context, with names and times from the pairs."""
    times = [pair.at_s for pair in pairs if pair.at_s is not None]
    fingerprints = {pair.small.fingerprint for pair in pairs}
    students = dict.fromkeys(pair.small.model for pair in pairs if pair.small.model)
    teachers = tuple(dict.fromkeys(name for pair in pairs if (name := large_model_of(pair))))
    return About(task, source, ", ".join(students) or "the small model", teachers, min(times, default=None),
                 max(times, default=None), fingerprint=fingerprints.pop() if len(fingerprints) == 1 else None, **rest)


def planned(around: About, plan: Planned, terms: Terms) -> dict[str, Any]:
    """The document of a plan, before any answer is compared."""
    return {"version": 1, **_around(around), "verdict": None, "terms": _terms(terms), "plan": asdict(plan)}


def proven(around: About, proof: Proof, baselines: Sequence[BaselineResult]) -> dict[str, Any]:
    """The document of a proof."""
    outcome, level = proof.outcome, proof.plan.level
    kept = _thinned(len(outcome.path))
    return {
        "version": 1, **_around(around), "verdict": proof.verdict, "reason": proof.reason,
        "terms": _terms(proof.terms), "plan": asdict(proof.plan),
        "gate": {
            "verdict": outcome.verdict, "level": level, "decided_at": outcome.decided_at,
            "units": len(outcome.path), "rows": len(proof.clusters.rows), "waiting": proof.clusters.waiting,
            "most_rows": proof.clusters.layout.most_rows if proof.terms.weighting.per == "answer" else None,
            "longest": int(proof.clusters.lengths.max()), "cut": len(proof.clusters.cut),
            "evidence": float(outcome.path[-1]), "most": float(outcome.path.max()),
            "against": float(outcome.futility_path[-1]), "at": [int(at) + 1 for at in kept],
            "path": [float(outcome.path[at]) for at in kept],
            "futility_path": [float(outcome.futility_path[at]) for at in kept]},
        "scores": {"small": _bounds(proof.small), "large": _bounds(proof.large),
                   "difference": _bounds(proof.difference), "discordance": proof.discordance,
                   "weighed": proof.terms.weighting.per, "other": proof.other},
        "doubts": [doubt.words for doubt in proof.doubts],
        "labels": {"rung": proof.scored.label_source, "source": scoring.WORDS[proof.scored.label_source],
                   "definition": proof.scored.definition},
        "guards": [asdict(guard) for guard in proof.guards],
        "slices": [asdict(one) | {"name": one.name} for one in proof.slices],
        "baselines": [asdict(baseline) for baseline in baselines]}


def claim_words(found: Mapping[str, Any]) -> str:
    """What the claim is about: a sentence without its beginning and end."""
    weighting, gate = found["terms"]["weighting"], found.get("gate")
    if weighting["per"] == "conversation":
        return "each conversation weighs alike, whatever its number of answers"
    most = weighting["most_rows"] if gate is None else gate["most_rows"]
    if gate is not None and most == 1 and not gate["cut"]:
        return "each answer weighs alike; each conversation has one"
    if most is None:
        return "each answer weighs alike"
    whose = "stated" if weighting["most_rows"] is not None else "the power of two that covers the first 30"
    cut = f", {gate['cut']:,} later ones are cut" if gate is not None else ""
    return (f"each answer weighs alike; of a conversation the first {most} count ({whose}{cut}), and conversations are "
            "the independent observations")


def plan_words(found: Mapping[str, Any]) -> str:
    """The plan in a sentence or two."""
    plan, terms = found["plan"], found["terms"]
    stated = "stated" if plan["is_stated"] else "as in the data"
    return (f"Plan: for {100 * terms['power']:g} % power at a margin of {100 * terms['delta']:g} points, with "
            f"{100 * plan['discordance']:.1f} % of answers that differ ({stated}): {plan['units']:,} clusters, about "
            f"{plan['labels']:,} judgements; about {plan['anytime_units']:,} clusters with interim analyses "
            f"at any time. {_price_words(found)}There are {plan['have_units']:,} clusters, {plan['have_labels']:,} "
            f"pairs that differ are judged, {plan['open_rows']:,} are open.")


def _price_words(found: Mapping[str, Any]) -> str:
    """What the claim costs beside the other one."""
    plan, per = found["plan"], found["terms"]["weighting"]["per"]
    if plan["anytime_units"] == plan["other_anytime_units"]:
        return ""
    other = "conversations" if per == "answer" else "answers"
    return (f"That is for a claim about {per}s; one about {other}, which then weigh "
            f"alike, takes about {plan['other_anytime_units']:,} with interim "
            "analyses. ")


def guarantee_words(found: Mapping[str, Any]) -> str:
    """What the test guarantees."""
    terms = found["terms"]
    per = terms["weighting"]["per"]
    return (f"Of models that are {100 * terms['delta']:g} points worse at most {100 * terms['alpha_of_this']:.2g} % "
            f"are promoted, at any number of interim analyses (candidate {terms['candidate']}; all candidates on "
            f"these data share {100 * terms['alpha']:g} %). Worse is meant of {per}s: {claim_words(found)}")


def time_words(seconds: float) -> str:
    """A time in UTC, to the minute."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _around(around: About) -> dict[str, Any]:
    return {"task": around.task, "source": around.source, "student": around.student,
            "teachers": list(around.teachers),
            "window": {"since_s": around.since_s, "until_s": around.until_s, "unit": around.cluster},
            "left_out": [{"pairs": number, "why": why} for number, why in around.left_out],
            "changes": [asdict(change) for change in around.changes], "notes": list(around.notes)}


def _terms(terms: Terms) -> dict[str, Any]:
    return {**asdict(terms), "alpha_of_this": terms.test.alpha}


def _bounds(found: Bounded) -> dict[str, Any]:
    return {"estimate": None if math.isnan(found.estimate) else found.estimate, "low": found.low, "high": found.high,
            "interval": found.how}


def _thinned(length: int) -> Sequence[int]:
    if length <= MOST_POINTS:
        return range(length)
    return sorted({int(at) for at in np.linspace(0, length - 1, MOST_POINTS)})
