"""The one sentence of a report: its verdict, its numbers, and what it says where a number is not known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from brise.report import report, traffic
from brise.report.summary import ReportSummary, evidence, summarize
from brise.traffic.prices import Prices
from tests.prove.planted import PRICES, START_S, TASK, Planted


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    found = Planted(tmp_path, every_s=3600.0)
    found.requests(60, shadow=0.9)
    return found


def summed(planted: Planted, prices: Prices = PRICES) -> ReportSummary:
    return summarize(report.make(traffic.read(planted.store, None), prices, None, planted.now_s))


def proof(planted: Planted, verdict: str = "undecided", **changes: Any) -> None:
    planted.store.append("proof", {
        "task": TASK, "verdict": verdict, "reason": "quality: not shown yet", "delta": 0.02, "units": 60,
        "evidence": 3.1,
        "plan": {"units": 200, "anytime_units": 470, "have_units": 60, "labels": 30, "have_labels": 6},
        "scores": {"difference": {"estimate": 0.0, "low": -0.1, "high": 0.1, "interval": "Tango"}}, "baselines": [],
        "gate": {"level": 20.0, "decided_at": None, "at": [60], "path": [3.1], "futility_path": [0.2]}, **changes})


def test_before_any_proof_it_says_that_nothing_was_compared(planted: Planted) -> None:
    found = summed(planted)
    assert found.verdict == "not yet" and found.evidence is None and found.more_conversations is None
    assert "60 conversations were captured, and nothing was proven yet" in found.sentence


def test_an_open_test_says_how_far_it_is_and_what_would_decide_it(planted: Planted) -> None:
    proof(planted)
    found = summed(planted)
    assert (found.evidence, found.level, found.more_conversations) == (3.1, 20.0, 410)
    assert found.more_labels == 65  # 30 / 200 of 470 clusters are 70.5 labels, and 6 are there
    assert found.sentence.startswith(
        "May the small model take over? Not yet: the evidence K is 3.1 of 20 after 60 clusters. About 410 more "
        "conversations and 65 more labels would decide it, if both are equally good.")
    assert found.sentence.endswith("big-1 answers everything now.")


def test_where_a_guard_is_missing_it_says_which_and_how_long_that_takes(planted: Planted) -> None:
    guard = {"name": "refusals", "verdict": "undecided", "evidence": 10.0, "level": 20.0, "units": 60}
    gate = {"level": 20.0, "decided_at": 40, "at": [60], "path": [25.0], "futility_path": [0.2]}
    proof(planted, reason="refusals: not shown yet", gate=gate, evidence=25.0, report={"guards": [guard]})
    found = summed(planted)
    assert found.more_conversations == 19  # the logarithm grows from ln 10 to ln 20, by 30 % of 60 clusters
    assert "reached the 20 that it takes after 40 clusters, but refusals: not shown yet." in found.sentence
    assert "About 19 more" in found.sentence and "if it goes on as it did" in found.sentence


def test_savings_are_those_of_the_report(planted: Planted) -> None:
    proof(planted)
    found, priced = summed(planted), report.make(traffic.read(planted.store, None), PRICES, None, planted.now_s)
    costs = {name: cost.usd for name, cost in priced.costs.systems.items()}
    assert costs["hosted"] is not None and costs["small"] is not None
    assert found.saving_usd == pytest.approx(costs["hosted"] - costs["small"])
    assert f"saves ${found.saving_usd:.4f}"[:12] in found.sentence and "a month at this rate" in found.sentence
    assert "not known yet" in summed(planted, Prices()).sentence


@pytest.mark.parametrize(("verdict", "says", "word"), [
    ("promote", "at most 2 points worse", "yes"), ("not good enough", "more than 2 points worse", "no")])
def test_a_decided_test_says_so(planted: Planted, verdict: str, says: str, word: str) -> None:
    proof(planted, verdict)
    found = summed(planted)
    assert found.verdict == word and says in found.sentence and found.more_conversations is None


def test_who_answers_now_follows_the_ledger(planted: Planted) -> None:
    proof(planted, "promote")
    planted.switch(0.1, audits=3)
    assert "mine answers 10 % of the conversations now, big-1 the rest." in summed(planted).sentence
    planted.switch(1.0)
    assert "mine answers now" in summed(planted).sentence
    planted.store.append("back", {"task": TASK, "by": "user", "user": "me", "reason": "answers were late"})
    found = summed(planted)
    assert found.verdict == "no" and "taken back (answers were late)" in found.sentence
    assert found.sentence.endswith("big-1 answers everything now.")


def test_an_expired_certificate_is_no_yes(planted: Planted) -> None:
    planted.proof("promote", expires_s=START_S)
    assert summed(planted).verdict == "not yet" and "the certificate has expired" in summed(planted).sentence


@pytest.mark.parametrize(("value", "text"), [
    (3.14159, "3.1"), (20.0, "20"), (32.898, "32.9"), (0.6865, "0.69"), (0.0421, "0.042"), (1e-9, "under 0.001"),
    (1204.3, "1,204"), (2.7e17, "over 1,000,000")])
def test_evidence_has_the_digits_that_matter(value: float, text: str) -> None:
    assert evidence(value) == text
