"""However often somebody certifies on the same data, all promises together are broken as seldom as one may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from brise.prove import cascade
from brise.prove.cascade import InterimAnalysis, analysis_number
from brise.stats import thresholds
from brise.stats.thresholds import RiskClaim
from brise.traffic import ledger
from brise.traffic.records import LedgerEntry
from tests.stats.planted import three_standard_errors, three_standard_errors_below

PROMISE = RiskClaim(0.05, 0.05)


def seen(test: str, since_s: float, until_s: float) -> InterimAnalysis:
    return InterimAnalysis("calls", "small", test, PROMISE, since_s, until_s)


def lines(*bodies: tuple[str, dict[str, Any]]) -> list[LedgerEntry]:
    return [ledger.next_entry((at, ""), float(at), kind, {"task": "calls", **body})
            for at, (kind, body) in enumerate(bodies)]


def line(found: InterimAnalysis, result: str = "impossible", rule: str | None = None) -> tuple[str, dict[str, Any]]:
    return cascade.ANALYSIS, {"test": found.test, "until_s": found.until_s, "result": result, "rule": rule}


def test_looks_count_by_what_they_test_and_when_their_data_ended() -> None:
    first, second, fresh = seen("a", 0, 10), seen("b", 5, 10), seen("c", 11, 20)
    entries = lines(line(first), line(first), line(seen("r", 0, 10), "refused"), line(second, rule="r2"),
                    (cascade.RULE, {"digest": "r2", "until_s": 10.0}), line(fresh))
    assert [analysis_number(entries, one) for one in (first, second, fresh)] == [1, 2, 1]
    assert analysis_number(entries, seen("d", 0, 20)) == 4 and analysis_number(entries, seen("e", 15, 20)) == 2
    assert analysis_number(entries, seen("f", 21, 30)) == 1


def test_a_rule_from_before_looks_were_written_counts() -> None:
    entries = lines((cascade.RULE, {"digest": "old", "until_s": 10.0}), (cascade.RULE, {"digest": "old",
                                                                                        "until_s": 10.0}))
    assert analysis_number(entries, seen("a", 10, 20)) == 2 and analysis_number(entries, seen("a", 11, 20)) == 1


def broken(runs: int, candidates: int, *, shared: bool) -> float:
    """How often one of so many candidates, all of a true risk of 5.01 %, is certified on the same answers."""
    rng, found = np.random.default_rng(3), 0
    for _ in range(runs):
        entries = list[LedgerEntry]()
        for candidate in range(candidates):
            this = seen(str(candidate), 0, 10)
            promise = thresholds.of_analysis(PROMISE, analysis_number(entries, this)) if shared else PROMISE
            wrong = rng.random(400) < 0.0501
            if thresholds.learn_then_test(np.ones(400), wrong, [0.5], promise) is not None:
                found += 1
                break
            entries += lines(line(this))
    return found / runs


def test_all_looks_together_break_the_promise_at_most_delta_of_the_time(repetitions: Callable[[int], int]) -> None:
    runs = repetitions(500)
    alone = broken(runs, 10, shared=False)  # 0.29 in 500 runs
    assert alone > three_standard_errors_below(0.29, runs), "the test can fail: each with the whole delta"
    assert broken(runs, 10, shared=True) <= three_standard_errors(0.05, runs)
