"""A certified rule of a cascade: it turns an answer's signals into a confidence, and says which confidence is kept.

It is plain numbers, so that it can stand in the ledger and be computed again anywhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from brise.dialects.bodies import Body
from brise.errors import StoreError
from brise.files.digests import text_digest

VETO = "veto"  # the signal that overrules all others: the answer cannot be right
REMOVED_SIGNALS = frozenset({"head"})  # of rules that brise 0.1 certified; their weights stand under the same name


@dataclass(frozen=True)
class Term:
    """One signal of the rule, standardised by `mean` and `scale` of the data that it was fitted on."""

    signal: str
    mean: float
    scale: float
    weight: float


@dataclass(frozen=True)
class RuleBaseline:
    """How the rule behaved when it was certified; a change is noticed long before wrong answers are counted.

    `edges` part the confidences into bins, of which bin i held `shares[i]` of the answers.
    """

    edges: tuple[float, ...]
    shares: tuple[float, ...]
    vetoed: float
    escalated: float
    disagreed: float  # of kept answers, with the large model's
    units: int


@dataclass(frozen=True)
class Rule:
    """Keep an answer whose confidence is `threshold` or more; `tight` instead, while there is reason for caution.

    At most `risk` of the kept ones are wrong, except with probability `delta`. `kept` is their share.
    """

    task: str
    candidate: str
    terms: tuple[Term, ...]
    bias: float
    threshold: float
    tight: float
    risk: float
    delta: float
    kept: float
    bound: float
    method: str
    units: int
    clusters: int
    since_s: float
    until_s: float
    rung: str  # the label source
    scorer: str
    baseline: RuleBaseline
    vetoes: tuple[str, ...] = (VETO,)  # signals that overrule all others where they are over 0
    coverage: str = ""  # what `novelty` is measured from (switch/novelty.py), if the rule uses it
    fingerprint: str | None = None  # of the small model whose answers it was fitted on
    digest: str = ""

    @property
    def removed_signal(self) -> str | None:
        """A signal that the rule needs and that this version does not measure: it can be read, and keeps nothing."""
        return next((term.signal for term in self.terms if term.signal in REMOVED_SIGNALS), None)

    def missing_signal(self, signals: Mapping[str, float]) -> str | None:
        """A signal that the rule needs and that an answer does not have, unless it is vetoed anyway."""
        if any(signals.get(name, 0.0) > 0 for name in self.vetoes):
            return None
        return next((term.signal for term in self.terms if term.signal not in signals), None)

    def confidence(self, signals: Mapping[str, float]) -> float | None:
        """Between 0 and 1, by a logistic curve; None if a signal is missing, or the answer was vetoed."""
        if any(signals.get(name, 0.0) > 0 for name in self.vetoes):
            return None
        if self.missing_signal(signals) is not None:
            return None
        score = self.bias + sum(term.weight * (signals[term.signal] - term.mean) / term.scale for term in self.terms)
        return 1 / (1 + math.exp(-min(max(score, -700.0), 700.0)))

    def keeps(self, signals: Mapping[str, float], *, is_tight: bool = False) -> bool:
        """Whether the small model's answer may go out; what cannot be judged may not."""
        confidence = self.confidence(signals)
        return confidence is not None and confidence >= (self.tight if is_tight else self.threshold)


def to_body(rule: Rule) -> dict[str, Any]:
    """What the ledger holds of a rule, its digest included."""
    body = {name: value for name, value in asdict(rule).items()
            if name != "digest" and (name, value) != ("fingerprint", None)}  # as in older rules
    return body | {"digest": _digest(body)}


def from_body(body: Body) -> Rule:
    """The rule of a ledger's line; StoreError if it is not the one that its digest was made of."""
    try:
        plain = {name: value for name, value in body.items()
                 if name not in ("terms", "baseline", "vetoes", *REMOVED_SIGNALS)}
        was = body["baseline"]
        baseline = RuleBaseline(tuple(was["edges"]), tuple(was["shares"]), was["vetoed"], was["escalated"],
                                was["disagreed"], was["units"])
        rule = Rule(**plain, terms=tuple(Term(**term) for term in body["terms"]), baseline=baseline,
                    vetoes=tuple(body["vetoes"]))
    except (KeyError, TypeError) as error:
        raise StoreError(f"a rule of the ledger cannot be read: {error!r}") from None
    if rule.digest != _digest({name: value for name, value in body.items() if name != "digest"}):
        raise StoreError(f"the rule {rule.digest[:12]} of the ledger is not what its digest was made of")
    return rule


def _digest(body: Body) -> str:
    return text_digest(json.dumps(body, sort_keys=True, allow_nan=False))
