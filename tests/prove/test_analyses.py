"""Whoever may choose the label source afterwards still promotes a worse model at most alpha of the time."""

from __future__ import annotations

import numpy as np

from brise.prove import analyses
from brise.prove.analyses import Analysis
from brise.stats import sequential_test
from brise.traffic import ledger
from brise.traffic.records import LedgerEntry
from tests.stats.planted import differences, three_standard_errors

ALPHA, RUNS = 0.05, 2000


def analysis(definition: str, since_s: float, until_s: float) -> Analysis:
    return Analysis("tickets", "mini", None, definition, since_s, until_s)


def with_analysis(entries: list[LedgerEntry], this: Analysis) -> int:
    """The number that it gets, and its line behind the others."""
    number = analyses.candidate_number(entries, this)
    entries.append(ledger.next_entry((len(entries), ""), 0.0, analyses.ANALYSIS, {
        "task": this.task, "student": this.student, "fingerprint": this.fingerprint, "definition": this.definition,
        "since_s": this.since_s, "until_s": this.until_s, "candidate": number}))
    return number


def test_a_test_keeps_its_number_as_its_data_grow() -> None:
    entries = list[LedgerEntry]()
    assert [with_analysis(entries, analysis(name, 0, until)) for name, until in (
        ("human", 9), ("outcome", 9), ("human", 20), ("outcome", 30))] == [1, 2, 1, 2]
    assert with_analysis(entries, analysis("human", 31, 40)) == 1, "fresh data"
    again = [with_analysis(entries, analysis("human", 0, 40)) for _ in range(2)]
    assert again == [3, 3], "grown into fresh data of another"
    assert with_analysis(entries, analysis("human", 31, 50)) == 1


def test_two_label_sources_of_which_the_luckier_may_be_taken_promote_at_most_alpha() -> None:
    rng, entries = np.random.default_rng(11), list[LedgerEntry]()
    most = [sequential_test.wealth(differences(rng, RUNS, 1500, 0.1, -0.02), 0.02).max(axis=1) for _ in range(2)]
    alphas = [sequential_test.candidate_alpha(ALPHA, with_analysis(entries, analysis(name, 0, 9))) for name in ("human",
                                                                                                        "outcome")]
    whole = np.mean([(one >= 1 / ALPHA) | (other >= 1 / ALPHA) for one, other in zip(*most, strict=True)])
    shared = np.mean((most[0] >= 1 / alphas[0]) | (most[1] >= 1 / alphas[1]))
    assert shared <= three_standard_errors(ALPHA, RUNS) and shared < 0.7 * whole
