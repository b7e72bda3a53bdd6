"""Whoever may choose the rung afterwards still promotes a worse model at most alpha of the time."""

from __future__ import annotations

import numpy as np

from brise.prove import candidates
from brise.prove.candidates import Shown
from brise.stats import sequential_test
from brise.traffic import ledger
from brise.traffic.records import LedgerEntry
from tests.stats.planted import differences, three_standard_errors

ALPHA, RUNS = 0.05, 2000


def look(definition: str, since_s: float, until_s: float) -> Shown:
    return Shown("tickets", "mini", None, definition, since_s, until_s)


def with_look(entries: list[LedgerEntry], this: Shown) -> int:
    """The number that it gets, and its line behind the others."""
    number = candidates.number(entries, this)
    entries.append(ledger.next_entry((len(entries), ""), 0.0, candidates.LOOK, {
        "task": this.task, "student": this.student, "fingerprint": this.fingerprint, "definition": this.definition,
        "since_s": this.since_s, "until_s": this.until_s, "candidate": number}))
    return number


def test_a_test_keeps_its_number_as_its_data_grow() -> None:
    entries = list[LedgerEntry]()
    assert [with_look(entries, look(name, 0, until)) for name, until in (("human", 9), ("outcome", 9), ("human", 20),
                                                                         ("outcome", 30))] == [1, 2, 1, 2]
    assert with_look(entries, look("human", 31, 40)) == 1, "fresh data"
    assert [with_look(entries, look("human", 0, 40)) for _ in range(2)] == [3, 3], "grown into fresh data of another"
    assert with_look(entries, look("human", 31, 50)) == 1


def test_two_rungs_of_which_the_luckier_may_be_taken_promote_at_most_alpha() -> None:
    rng, entries = np.random.default_rng(11), list[LedgerEntry]()
    most = [sequential_test.wealth(differences(rng, RUNS, 1500, 0.1, -0.02), 0.02).max(axis=1) for _ in range(2)]
    alphas = [sequential_test.candidate_alpha(ALPHA, with_look(entries, look(rung, 0, 9))) for rung in ("human",
                                                                                                        "outcome")]
    whole = np.mean([(one >= 1 / ALPHA) | (other >= 1 / ALPHA) for one, other in zip(*most, strict=True)])
    shared = np.mean((most[0] >= 1 / alphas[0]) | (most[1] >= 1 / alphas[1]))
    assert shared <= three_standard_errors(ALPHA, RUNS) and shared < 0.7 * whole
