"""What the ledger knows against a small model, and what answers it."""

from __future__ import annotations

from typing import Any

import pytest

from brise.switch.objections import against
from tests.switch.ledger_lines import Lines, switched

REFUTED: dict[str, Any] = {"task": "calls", "student": "small", "fingerprint": None, "definition": "d", "delta": 0.02,
                           "verdict": "not good enough", "reason": "quality: refuted", "since_s": 500.0}
IMPOSSIBLE: dict[str, Any] = {"task": "calls", "candidate": "small", "risk": 0.05, "result": "impossible",
                              "reason": "too many are wrong"}
ALARM: dict[str, Any] = {"task": "calls", "by": "gateway", "reason": "alarm: it rang"}


def said(*lines: tuple[str, dict[str, Any]], candidate: str | None = None) -> list[str]:
    ledger = Lines()
    for kind, body in lines:
        ledger.append(kind, {"switch": len(ledger.entries), **body} if kind == "back" else body)
    return [one.said for one in against(ledger.ledger(), "calls", candidate)]


def test_refuted_proofs_impossible_guarantees_and_alarms_are_known() -> None:
    found = said(("proof", REFUTED | {"fingerprint": "v1"}), ("certification", IMPOSSIBLE),
                 ("switch", switched()), ("back", ALARM))
    assert found == [
        "small: NOT GOOD ENOUGH with the weights v1 at a margin of 2 points: quality: refuted (line 1, 1970-01-01)",
        "small: impossible to keep answers of which at most 5 % are wrong: too many are wrong (line 2, 1970-01-01)",
        "small: alarm: it rang (line 4, 1970-01-01)"]


@pytest.mark.parametrize("later", [
    ("proof", REFUTED | {"verdict": "promote"}), ("proof", REFUTED | {"verdict": "promote", "fingerprint": "v2"}),
    ("proof", REFUTED | {"task": "other"}), ("proof", REFUTED | {"verdict": "undecided", "student": "other"})])
def test_a_promotion_by_the_same_test_answers_a_refutation(later: tuple[str, dict[str, Any]]) -> None:
    assert bool(said(("proof", REFUTED), later)) == (later[1]["verdict"] != "promote" or later[1]["task"] != "calls")


def test_a_wider_margin_and_more_of_the_same_answer_nothing() -> None:
    for later in ({"verdict": "promote", "definition": "wider"}, {"verdict": "undecided"},
                  {"verdict": "promote", "student": "other"}):
        assert len(said(("proof", REFUTED), ("proof", REFUTED | later))) == 1


def test_a_cascade_answers_those_of_its_risk_and_more() -> None:
    certified = IMPOSSIBLE | {"result": "certified"}
    assert not said(("certification", IMPOSSIBLE), ("certification", certified | {"risk": 0.04}))
    assert said(("certification", IMPOSSIBLE), ("certification", certified | {"risk": 0.2}))
    assert said(("certification", IMPOSSIBLE), ("certification", IMPOSSIBLE | {"result": "refused"}))


def test_an_alarm_is_answered_by_a_promotion_on_requests_from_after_it() -> None:
    rang = (("switch", switched()), ("back", ALARM))
    promote = REFUTED | {"verdict": "promote"}
    assert said(*rang, ("proof", promote)) and said(*rang, ("proof", promote | {"since_s": None}))
    assert not said(*rang, ("proof", promote | {"since_s": 1000.0}))
    assert not said(("switch", switched()), ("back", ALARM | {"by": "user", "reason": "alarmed by a friend"}))


def test_each_small_model_has_its_own() -> None:
    lines = (("proof", REFUTED), ("proof", REFUTED | {"student": "other"}))
    assert len(said(*lines)) == 2
    assert [one.partition(":")[0] for one in said(*lines, candidate="other")] == ["other"]
