"""Cheap signs: quiet while nothing has changed, there at once when it has."""

from __future__ import annotations

import math

import numpy as np
import pytest

from brise.switch import drift
from brise.switch.drift import BLOCK, DriftWatch, JudgedAnswer
from brise.switch.rule import Rule, RuleBaseline, to_body
from brise.switch.state import TaskState, fold
from tests.switch.ledger_lines import Lines, switched
from tests.switch.small_models import rule

DECILES = tuple(float(edge) for edge in np.linspace(0.1, 0.9, 9))
WAS = RuleBaseline(DECILES, (0.1,) * 10, vetoed=0.02, escalated=0.25, disagreed=0.02, units=1000)


def certified() -> Rule:
    return rule(baseline=WAS)


def state(*raised: str) -> TaskState:
    lines = Lines()
    lines.append("cascade", to_body(certified()))
    lines.append("switch", switched(rule=certified().digest))
    for kind in raised:
        lines.append(kind, {"task": "calls", "by": "gateway", "reason": "a test"})
    return fold(lines.ledger()).tasks["calls"]


def block(rng: np.random.Generator, vetoed: float = 0.02, escalated: float = 0.25,
          power: float = 1.0) -> list[JudgedAnswer]:
    """Answers whose confidences are uniform, as the baseline's, unless bent by `power`."""
    found = []
    for _ in range(BLOCK):
        if rng.random() < vetoed:
            found.append(JudgedAnswer(None, False, True))
        else:
            confidence = float(rng.random() ** power)
            is_kept = rng.random() > (escalated - vetoed) / (1 - vetoed)
            found.append(JudgedAnswer(confidence, is_kept, False))
    return found


def test_nothing_is_seen_where_nothing_changed() -> None:
    rng = np.random.default_rng(1)
    false = sum(next(drift.signs(certified(), block(rng)), None) is not None for _ in range(1000))
    assert false <= 3, "one block in 10,000 is allowed for each of two tests, and the index has a margin of four"


@pytest.mark.parametrize(("changes", "says"), [
    ({"vetoed": 0.12}, "are vetoed"), ({"escalated": 0.45}, "escalate"), ({"power": 2.5}, "confidences lie elsewhere")])
def test_a_change_is_seen_in_the_first_block(changes: dict[str, float], says: str) -> None:
    rng = np.random.default_rng(2)
    seen = [list(drift.signs(certified(), block(rng, **changes))) for _ in range(50)]
    assert sum(any(says in sign for sign in signs) for signs in seen) >= 45


def test_a_sign_raises_audits_once() -> None:
    rng, quiet, looking = np.random.default_rng(3), state(), DriftWatch()
    actions = [looking.observe(quiet, seen) for seen in block(rng, escalated=0.9)]
    assert [action.kind for action in actions if action is not None] == ["raise"] and actions[-1] is not None
    raised = state("raise")
    assert raised.audit_probability == 0.5
    assert all(looking.observe(raised, seen) is None for seen in block(rng, escalated=0.9))


def test_fishers_tail_is_the_hypergeometric_one() -> None:
    def brute(count: int, number: int, before: int, units: int) -> float:
        total = count + before
        ways = [math.comb(number, k) * math.comb(units, total - k) for k in range(total + 1)]
        return sum(ways[count:]) / sum(ways)
    for case in ((3, 10, 1, 12), (0, 5, 2, 9), (8, 8, 1, 20), (5, 20, 5, 20)):
        assert drift.fisher(*case) == pytest.approx(brute(*case))


def test_the_index_is_zero_for_equal_populations() -> None:
    middles = [edge + 0.05 for edge in (0.0, *DECILES)] * 20
    assert drift.instability(middles, WAS) == pytest.approx(0, abs=1e-12)
    assert drift.instability([0.95] * 200, WAS) > 1
