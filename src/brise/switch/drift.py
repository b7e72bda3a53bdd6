"""Drift: cheap signs that something has changed, long before audits could show it, because the answers look different.

Each block of answers is compared with how the rule behaved when it was certified: how many are vetoed, how many
escalate (Fisher's exact test), and where their confidences lie (population stability index over the deciles of then).
A sign raises the share of audits; only audits judge.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from brise.switch.rule import Rule, RuleBaseline
from brise.switch.state import Action, TaskState, gateway_line

BLOCK = 200  # answers; blocks do not overlap
# The chance of a false sign from one block and one test: with 1,000 answers a day, one in several years.
LEVEL = 1e-4
# The usual level of the index above which a population counts as changed; chance alone gives a block about 0.06.
INSTABILITY = 0.25


@dataclass(frozen=True)
class JudgedAnswer:
    """One answer: its confidence (None: it was vetoed, or could not be judged), and whether it was kept or vetoed."""

    confidence: float | None
    is_kept: bool
    is_vetoed: bool


class DriftWatch:
    """Watches each task in blocks of answers. A gateway sees only its own answers, which is enough to raise a doubt."""

    def __init__(self, block: int = BLOCK) -> None:
        self._block = block
        self._blocks: dict[tuple[str, int], deque[JudgedAnswer]] = {}

    def observe(self, state: TaskState, answer: JudgedAnswer) -> Action | None:
        """The ledger's line that is due if this answer completes a block that looks different."""
        if state.rule is None or state.raised_left:
            return None
        block = self._blocks.setdefault((state.task, state.number), deque())
        block.append(answer)
        if len(block) < self._block:
            return None
        sign = next(signs(state.rule, block), None)
        block.clear()
        return None if sign is None else Action("raise", gateway_line(state) | {"reason": sign})


def signs(rule: Rule, block: Sequence[JudgedAnswer] | deque[JudgedAnswer]) -> Iterator[str]:
    """What looks different in these answers, in words."""
    was, number = rule.baseline, len(block)
    for name, count, before in (("are vetoed", sum(answer.is_vetoed for answer in block), was.vetoed),
                                ("escalate", sum(not answer.is_kept for answer in block), was.escalated)):
        if fisher(count, number, round(before * was.units), was.units) < LEVEL:
            yield f"{count} of {number} answers {name}, {100 * before:.1f} % did when the rule was certified"
    confidences = [answer.confidence for answer in block if answer.confidence is not None]
    index = instability(confidences, was)
    if len(confidences) >= number // 2 and index > INSTABILITY:
        yield (f"confidences lie elsewhere than when the rule was certified: the population stability index is "
               f"{index:.2f}, over {INSTABILITY}")


def fisher(count: int, number: int, before: int, units: int) -> float:
    """The chance of `count` or more in `number`, if both samples have one rate: the tail of a hypergeometric."""
    total, whole = count + before, number + units
    terms = [_log_choose(number, k) + _log_choose(units, total - k) for k in range(count, min(number, total) + 1)]
    return min(1.0, sum(math.exp(term - _log_choose(whole, total)) for term in terms))


def instability(confidences: Sequence[float], was: RuleBaseline) -> float:
    """Sum over the bins of (share - share before) log(share / share before); an empty bin counts as half an answer."""
    counts = [0] * len(was.shares)
    for confidence in confidences:
        counts[bisect_right(was.edges, confidence)] += 1
    number = max(len(confidences), 1)
    shares = [max(count, 0.5) / number for count in counts]
    before = [max(share, 0.5 / was.units) for share in was.shares]
    return sum((share - old) * math.log(share / old) for share, old in zip(shares, before, strict=True))


def _log_choose(number: int, taken: int) -> float:
    if not 0 <= taken <= number:
        return -math.inf
    return math.lgamma(number + 1) - math.lgamma(taken + 1) - math.lgamma(number - taken + 1)
