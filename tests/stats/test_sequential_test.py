"""The gate keeps its promise on data whose truth was planted."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brise.errors import EvidenceError
from brise.stats import sequential_test
from brise.stats.clusters import cluster_means
from brise.stats.sequential_test import NonInferiorityTest
from tests.profiles import examples
from tests.stats.planted import differences, three_standard_errors, three_standard_errors_below

RUNS = 2000
DIFFERENCES = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=30, max_size=80)


@pytest.mark.parametrize("discordance", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("delta", [0.02, 0.05])
def test_false_promotion_stays_under_alpha_whenever_one_looks(discordance: float, delta: float,
                                                                    repetitions: Callable[[int], int]) -> None:
    rng, runs = np.random.default_rng(int(1000 * discordance + 100 * delta)), repetitions(RUNS)
    paths = sequential_test.wealth(differences(rng, runs, 3000, discordance, -delta), delta)
    promoted = float((paths.max(axis=1) >= 1 / 0.05).mean())
    assert promoted <= three_standard_errors(0.05, runs)


@pytest.mark.parametrize("discordance", [0.05, 0.1])
def test_an_equal_model_is_promoted_about_as_often_as_planned(
        discordance: float, repetitions: Callable[[int], int]) -> None:
    promise = NonInferiorityTest(delta=0.02)
    units = sequential_test.plan(discordance, promise, power=0.9).units
    rng, runs = np.random.default_rng(7), repetitions(1000)
    # Looking at any time costs about a second helping.
    paths = sequential_test.wealth(differences(rng, runs, 2 * units, discordance, 0.0), promise.delta)
    assert float((paths.max(axis=1) >= 20).mean()) > three_standard_errors_below(0.9, runs)


def test_a_z_test_looked_at_every_day_would_break_the_promise() -> None:
    rng = np.random.default_rng(3)
    units = differences(rng, RUNS, 3000, 0.1, -0.02)
    counts = np.arange(50, 3001, 50)
    sums, squares = np.cumsum(units, axis=1)[:, counts - 1], np.cumsum(units**2, axis=1)[:, counts - 1]
    means = sums / counts
    z = (means + 0.02) / np.sqrt((squares / counts - means**2) / counts + 1e-12)
    assert 0.2 < float((z.max(axis=1) > 1.645).mean()) < 0.4


def test_rows_of_one_session_must_be_fed_as_one_unit(repetitions: Callable[[int], int]) -> None:
    rng, runs = np.random.default_rng(11), repetitions(300)
    wrong_by_row = wrong_by_session = 0
    for _ in range(runs):
        sessions, rows = 400, 6
        shared = differences(rng, sessions, 1, 0.1, -0.02)[:, 0]
        own = differences(rng, sessions, rows, 0.1, -0.02)
        values = np.where(rng.random((sessions, rows)) < 0.84, shared[:, None], own).ravel()  # 0.84^2 = rho 0.7
        names = [str(session) for session in range(sessions) for _ in range(rows)]
        wrong_by_row += sequential_test.wealth(values, 0.02).max() >= 20
        wrong_by_session += sequential_test.wealth(cluster_means(values, names), 0.02).max() >= 20
    assert wrong_by_row / runs > 0.15  # 0.48 in 300 runs; 50 runs stay above 0.27 (three standard errors)
    assert wrong_by_session / runs <= three_standard_errors(0.05, runs)


@given(DIFFERENCES, st.floats(0, 0.5))
def test_wealth_is_the_product_written_out(units: list[float], delta: float) -> None:
    expected = [math.fsum(math.prod(1 + min(stake, 1 / (1 - delta)) * (d + delta) for d in units[:n])
                          for stake in sequential_test.STAKES) / len(sequential_test.STAKES)
                for n in range(1, len(units) + 1)]
    np.testing.assert_allclose(sequential_test.wealth(np.array(units), delta), expected, rtol=1e-13, atol=1e-300)


@given(DIFFERENCES, st.floats(0.001, 0.5))
def test_a_concordant_pair_never_lowers_the_wealth(units: list[float], delta: float) -> None:
    before, after = sequential_test.wealth(np.array([*units, 0.0]), delta)[-2:]
    assert after >= before * (1 - 1e-12)


@given(DIFFERENCES, st.integers(0, 79), st.floats(0, 0.5))
def test_a_better_answer_never_lowers_the_wealth(units: list[float], at: int, delta: float) -> None:
    better = [min(d + 0.5, 1.0) if index == at else d for index, d in enumerate(units)]
    assert (sequential_test.wealth(np.array(better), delta) >= sequential_test.wealth(np.array(units),
                                                                                      delta) * (1 - 1e-12)).all()


@given(DIFFERENCES, DIFFERENCES)
def test_a_promotion_stands_whatever_comes_later(units: list[float], more: list[float]) -> None:
    promise = NonInferiorityTest(delta=0.3)
    early, late = sequential_test.decide(units, promise), sequential_test.decide([*units, *more], promise)
    if early.decided_at is not None:
        assert (late.verdict, late.decided_at) == (early.verdict, early.decided_at)


def test_a_much_worse_model_is_called_not_good_enough() -> None:
    units = differences(np.random.default_rng(5), 1, 2000, 0.2, -0.15)[0]
    assert sequential_test.decide(units, NonInferiorityTest()).verdict == "not good enough"


def test_the_plan_is_the_published_one() -> None:
    planned = sequential_test.plan(0.1, NonInferiorityTest(delta=0.02, alpha=0.05), power=0.9)
    assert (planned.units, planned.labels) == (2141, 214)


def test_candidates_share_one_alpha() -> None:
    assert sum(sequential_test.candidate_alpha(0.05, k) for k in range(1, 100_000)) == pytest.approx(0.05, rel=1e-4)
    assert sequential_test.candidate_alpha(0.05, 1) < 0.05


def test_slices_pass_by_e_bh() -> None:
    assert sequential_test.proven_slices({"a": 100.0, "b": 31.0, "c": 19.0, "d": 0.1}) == {"a"}
    assert sequential_test.proven_slices({"a": 100.0, "b": 45.0, "c": 19.0, "d": 0.1}) == {"a", "b"}
    assert sequential_test.proven_slices({}) == frozenset()


@settings(max_examples=examples(50))
@given(st.dictionaries(st.text(max_size=2), st.floats(0, 1e6), max_size=6), st.floats(1, 10))
def test_more_evidence_never_unproves_a_slice(evidence: dict[str, float], factor: float) -> None:
    assert sequential_test.proven_slices(evidence) <= sequential_test.proven_slices({name: factor * e for name,
                                                                                     e in evidence.items()})


def test_of_the_proven_slices_at_most_alpha_are_wrong(repetitions: Callable[[int], int]) -> None:
    rng, shares = np.random.default_rng(9), list[float]()
    for _ in range(repetitions(200)):
        effects = {f"{at}": -0.05 if at < 10 else 0.03 for at in range(20)}
        evidence = {name: float(sequential_test.wealth(differences(rng, 1, 400, 0.15, effect)[0], 0.05)[-1])
                    for name, effect in effects.items()}
        proven = sequential_test.proven_slices(evidence)
        shares.append(sum(effects[name] < 0 for name in proven) / max(len(proven), 1))
    assert np.mean(shares) <= 0.05 + 3 * float(np.std(shares)) / math.sqrt(len(shares))


def test_a_rate_under_its_least_is_not_proven(repetitions: Callable[[int], int]) -> None:
    rng, runs = np.random.default_rng(2), repetitions(1000)
    wrong = np.mean([sequential_test.rate_wealth((rng.random(1500) < 0.95).astype(float),
                                                 0.95).max() >= 20 for _ in range(runs)])
    assert wrong <= three_standard_errors(0.05, runs)
    assert sequential_test.rate_wealth(np.ones(200), 0.95)[-1] > 20


@pytest.mark.parametrize(("arguments", "named"), [
    ({"delta": -0.1}, "delta is -0.1"), ({"delta": 1.0}, "delta is 1.0"), ({"alpha": 0.0}, "alpha is 0.0"),
    ({"futility": 1.0}, "futility is 1.0")])
def test_a_promise_that_is_none_is_refused(arguments: dict[str, float], named: str) -> None:
    with pytest.raises(EvidenceError, match=named):
        NonInferiorityTest(**arguments)


def test_too_few_units_and_wrong_scores_are_refused_by_name() -> None:
    with pytest.raises(EvidenceError, match="29 independent clusters, at least 30"):
        sequential_test.decide([0.0] * 29, NonInferiorityTest())
    with pytest.raises(EvidenceError, match=r"differences\[1\] is 1.5"):
        sequential_test.decide([0.0, 1.5], NonInferiorityTest())
    with pytest.raises(EvidenceError, match=r"differences\[0\] is nan"):
        sequential_test.decide([math.nan] * 40, NonInferiorityTest())
    with pytest.raises(EvidenceError, match="delta is 0"):
        sequential_test.plan(0.1, NonInferiorityTest(delta=0.0))
