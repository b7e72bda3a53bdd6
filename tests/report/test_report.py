"""Reports on planted stores: each figure is the one that was planted, and gaps are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from brise.dialects.bodies import Usage
from brise.errors import EvidenceError
from brise.report import html, report, traffic
from brise.report.control import ModelOrigin
from brise.report.report import SwitchReport
from brise.report.service import REFERENCE
from brise.report.switch_document import switch_document
from brise.traffic.prices import Prices
from brise.traffic.records import KnownSum
from tests.prove.planted import PRICES, START_S, TASK, Planted
from tests.report.html import words

MODEL = ModelOrigin("tiny", "ab", "apache-2.0", "mine", "ab", "cd", {"big": "contract <1>"})


def made(planted: Planted, prices: Prices = PRICES, model: ModelOrigin | None = MODEL) -> SwitchReport:
    return report.make(traffic.read(planted.store, None), prices, model, planted.now_s)


def missing(found: SwitchReport) -> str:
    return " | ".join(one.what for one in found.unknowns)


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(tmp_path)


def test_quality_is_that_of_the_labels_with_an_interval_around_it(planted: Planted) -> None:
    planted.requests(400, right=0.9, shadow=0.8)
    found = made(planted).qualities
    assert found.label_source == "outcome" and found.difference is not None
    for name, rate in (("hosted", 0.9), ("small", 0.8)):
        quality = found.systems[name]
        assert quality.low is not None and quality.high is not None
        assert quality.low < rate < quality.high and quality.conversations == 400
    assert found.difference.high is not None and found.difference.high < 0


def test_a_labelled_outage_says_nothing_of_a_models_quality(planted: Planted) -> None:
    planted.requests(60, right=1.0, shadow=1.0)
    planted.requests(40, right=0.0, shadow=1.0, status=502)
    found = made(planted).qualities
    assert found.systems["hosted"].estimate == 1.0 and found.systems["hosted"].conversations == 60
    assert found.difference is not None and found.difference.estimate == 0.0


def test_labels_of_different_rungs_are_not_mixed(planted: Planted) -> None:
    planted.requests(50, right=1.0)
    planted.requests(50, right=0.0, rung="judge")
    found = made(planted).qualities
    assert found.label_source == "outcome" and found.systems["hosted"].estimate == 1.0


def test_people_who_saw_only_discordant_pairs_give_no_share(planted: Planted) -> None:
    planted.requests(60, right=0.5, shadow=0.5, rung="human")
    found = made(planted)
    assert found.qualities.systems == {} and found.qualities.difference is None
    assert "people saw only answers that differ" in missing(found)


def test_a_mode_of_the_cascade_with_few_labels_still_weighs_as_all_of_it(planted: Planted) -> None:
    planted.requests(300, "small", right=1.0)
    planted.requests(30, "escalated", right=0.0)
    planted.requests(270, "escalated", right=None)
    estimate = made(planted).qualities.systems["cascade"].estimate
    assert estimate == pytest.approx(0.5)


def test_costs_are_tokens_times_prices_and_the_machines_time(planted: Planted) -> None:
    planted.requests(100, shadow=0.9, small_seconds=2.0)
    costs = made(planted).costs
    assert costs.systems["hosted"].usd == pytest.approx((200 * 2 + 20 * 10) / 1e6)
    small = costs.systems["small"]
    assert small.busy_s == pytest.approx(2.0) and PRICES.hardware is not None
    assert small.usd == pytest.approx(2 * (PRICES.hardware.usd_per_busy_s + PRICES.hardware.usd_of_power_s))
    saving = (costs.systems["hosted"].usd or 0) - (small.power_usd or 0)
    assert costs.break_even[0].requests == pytest.approx(1000 / saving)


def test_answers_side_by_side_share_the_machine(tmp_path: Path) -> None:
    planted = Planted(tmp_path, every_s=0.25)
    planted.requests(400, shadow=0.9, small_seconds=1.0)
    assert made(planted).costs.systems["small"].busy_s == pytest.approx(0.25, rel=0.05)


def test_a_machine_that_never_pays_is_said_so(planted: Planted) -> None:
    planted.requests(100, shadow=0.9, small_seconds=5000.0)
    planted.proof("promote")
    found = made(planted)
    assert found.costs.break_even[0].requests is None and found.advice.choice == "stay"
    assert "never pays" in words(html.page(switch_document(found)))


def test_an_escalated_request_and_an_audit_cost_the_hosted_price(planted: Planted) -> None:
    planted.requests(50, "escalated")
    planted.requests(50, "small", audit=1.0)
    planted.requests(100, "small")
    hosted = made(planted).costs.systems["cascade"].hosted_usd
    assert hosted == pytest.approx(0.5 * (200 * 2 + 20 * 10) / 1e6)


def test_a_cost_that_is_known_of_a_part_says_so(planted: Planted) -> None:
    planted.requests(93)
    planted.store.add([replace(planted._exchange(f"x{number}", "hosted", 200, 1.0, TASK), usage=usage)
                       for number, usage in enumerate([None, Usage(200, None), Usage(200, 20, 0, 50)] + [None] * 4)])
    found = made(planted)
    hosted, usd = found.costs.systems["hosted"], (200 * 2 + 20 * 10) / 1e6
    assert (hosted.usd, hosted.known, hosted.requests) == (pytest.approx(usd), 93, 100)
    assert hosted.at_least_usd == pytest.approx(0.93 * usd) and found.costs.without_tokens == 6
    assert found.costs.half_priced == ("big-1",) and "a part of their tokens" in missing(found)
    assert "What 6 hosted answers cost (6 %)" in missing(found)
    text = words(html.page(switch_document(found)))
    assert "known for 93 % of the requests (93 of 100)" in text and "at least $0.00056" in text
    assert json.loads(json.dumps(report.to_json(found)))["cost"]["systems"]["hosted"]["known"] == 93


def test_a_cascade_with_an_unknown_answer_costs_at_least_the_rest(planted: Planted) -> None:
    planted.requests(50, "escalated")
    planted.requests(49, "small")
    planted.store.add([replace(planted._exchange("x", "escalated", 200, 1.0, TASK), usage=None)])
    cascade = made(planted).costs.systems["cascade"]
    assert cascade.usd is None and (cascade.known, cascade.requests) == (99, 100)
    assert cascade.at_least_usd is not None and cascade.at_least_usd >= 0.5 * (200 * 2 + 20 * 10) / 1e6
    assert "at least $" in words(html.page(switch_document(made(planted))))


def test_audits_have_a_cost_line_of_their_own(planted: Planted) -> None:
    planted.requests(50, "small", audit=1.0)
    found = made(planted)
    assert found.costs.besides == {"audit": KnownSum(pytest.approx(50 * (200 * 2 + 20 * 10) / 1e6), 50, 50)}
    assert "Audits: $0.030 for 50 answers of the large model" in words(html.page(switch_document(found)))


def test_latency_needs_answers_beyond_the_quantile(planted: Planted) -> None:
    planted.requests(400, seconds=2.0)
    found = made(planted).waits["hosted"]
    assert found.p50 == pytest.approx(2.0, abs=0.2) and found.p95 == pytest.approx(2.9, abs=0.1)
    assert found.p99 is None and "too few for p99" in missing(made(planted))


def test_an_outage_that_was_survived(planted: Planted) -> None:
    planted.requests(900)
    planted.requests(90, "degraded")
    planted.requests(6, "failed", status=502, right=None)
    planted.requests(4, "failed", status=200, right=None)
    found = made(planted).availability
    assert (found.answered, found.degraded, found.hosted_alone) == pytest.approx((0.99, 0.09, 0.9))
    (outage,) = found.outages
    assert (outage.requests, outage.answered) == (100, 90)
    assert pytest.approx(0.9985, abs=1e-4) == REFERENCE


def test_clients_that_left_are_no_failures_and_too_many_requests_are(planted: Planted) -> None:
    planted.requests(98)
    planted.requests(1, status=499)
    planted.requests(1, status=429)
    planted.requests(1, status=400)
    found = made(planted).availability
    assert (found.requests, found.failed, found.left) == (100, 1, 1)


def test_where_data_went(planted: Planted) -> None:
    planted.requests(50)
    planted.requests(50, "small")
    found = made(planted)
    assert [(one.name, one.requests) for one in found.control.destinations] == [("big-1", 50)]
    assert found.control.stayed == 0.5 and "contract &lt;1&gt;" in html.page(switch_document(found))


def test_what_is_missing_is_named(planted: Planted) -> None:
    planted.requests(10, right=None)
    gaps = missing(made(planted, Prices(), None))
    for gap in ("Any interval: 10 conversations", "nothing has a label", "would have answered to this traffic",
                "may take over", "big-1 costs", "What a local answer costs", "had none in this time", "licence"):
        assert gap in gaps


def test_a_switch_that_was_taken_back_is_over_once_something_newer_is_proven(planted: Planted) -> None:
    planted.requests(100, shadow=0.9)
    planted.proof("promote")
    planted.switch(audits=40, back="alarm: worse")
    assert made(planted).advice.choice == "stay" and made(planted).history.alarms == 1
    planted.proof("promote")
    assert made(planted).advice.choice == "switch"


def test_a_cascade_that_was_certified_but_did_not_run_is_weighed(planted: Planted) -> None:
    planted.requests(100, shadow=0.8)
    planted.proof("not good enough", -0.15)
    planted.rule(0.7)
    found = made(planted)
    assert found.advice.choice == "cascade" and "70 %" in " ".join(found.advice.reasons)


def test_the_page_and_json_have_every_part(planted: Planted) -> None:
    planted.requests(200, shadow=0.9)
    planted.proof("promote", expires_s=START_S + 1e9, baselines=[
        {"name": "TF-IDF + linear", "what": "accuracy", "estimate": 0.7, "low": 0.6, "high": 0.8, "rows": 200,
         "verdict": "not good enough", "evidence": 0.1}])
    planted.rule(0.8)
    planted.switch(audits=30)
    planted.requests(100, "small", audit=0.3)
    found = made(planted)
    text = words(html.page(switch_document(found)))
    for part in ("Quality", "Cost", "Latency", "Reliability", "Control", "What this report does not know",
                 "TF-IDF + linear", "proof at 20", "30 answers were audited", "99.85 %", "apache-2.0"):
        assert part in text
    document = json.loads(json.dumps(report.to_json(found), allow_nan=False))
    assert document["task"] == TASK and document["quality"]["classical"]["estimate"] == 0.7
    assert {"advice", "quality", "proof", "switch", "cascade", "cost", "latency", "reliability", "control",
            "unknown"} <= document.keys()


def test_several_tasks_are_not_thrown_together(planted: Planted) -> None:
    planted.requests(3)
    planted.requests(2, task="other")
    with pytest.raises(EvidenceError, match=r"2 tasks: car \(3\), other \(2\)"):
        traffic.read(planted.store, None)
    with pytest.raises(EvidenceError, match=r"'nothing'\nhint: tasks are: car \(3\)"):
        traffic.read(planted.store, "nothing")
    assert len(traffic.read(planted.store, "other").exchanges) == 2
