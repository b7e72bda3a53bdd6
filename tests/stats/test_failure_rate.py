"""The sequential test of a failure rate: its guarantees, also while outcomes are missing, and its power."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from brise.errors import EvidenceError
from brise.stats import failure_rate
from brise.stats.failure_rate import FAILURE, PENDING, SUCCESS, FailureTest

TEST = FailureTest()


def drawn(seed: int, runs: int, devices: int, rate: float) -> np.ndarray:
    return (np.random.default_rng(seed).random((runs, devices)) < rate).astype(np.int8)


def share_over(paths: np.ndarray, level: float) -> float:
    return float((paths >= level).any(axis=-1).mean())


def most(alpha: float, runs: int) -> float:
    """Alpha and three standard errors."""
    return alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)


def test_harm_is_the_mean_of_likelihood_ratios() -> None:
    outcomes, expected = [SUCCESS, FAILURE, PENDING, FAILURE, SUCCESS], 0.0
    for rate in (0.02, 0.02, 0.03, 0.03, 0.1):
        expected += (rate / 0.01) ** 2 * ((1 - rate) / 0.99) ** 3 / 5
    assert failure_rate.harm(outcomes, TEST)[-1] == pytest.approx(expected, rel=1e-12)


def test_safety_is_the_mean_of_likelihood_ratios() -> None:
    outcomes, expected = [SUCCESS, PENDING, SUCCESS], 0.0
    for rate in (0.0, 0.005, 0.01):
        expected += (rate / 0.02) * ((1 - rate) / 0.98) ** 2 / 3
    assert failure_rate.safety(outcomes, TEST)[-1] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rate", [0.01, 0.005])
def test_a_tolerated_rate_halts_alpha_of_runs_at_most(rate: float, repetitions: Callable[[int], int]) -> None:
    runs = repetitions(2000)
    paths = failure_rate.harm(drawn(1, runs, 4000, rate), TEST)
    assert share_over(paths, TEST.level) <= most(TEST.alpha, runs)


@pytest.mark.parametrize("rate", [0.02, 0.03])
def test_a_refuted_rate_advances_alpha_of_runs_at_most(rate: float, repetitions: Callable[[int], int]) -> None:
    runs = repetitions(2000)
    paths = failure_rate.safety(drawn(2, runs, 4000, rate), TEST)
    assert share_over(paths, TEST.level) <= most(TEST.alpha, runs)


def test_the_guarantees_hold_where_failures_are_known_first(repetitions: Callable[[int], int]) -> None:
    """Each interim analysis sees 20 more devices, all their failures at once, and successes 60 devices later."""
    runs, halted, advanced = repetitions(500), 0, 0
    for number, (tolerated, refuted) in enumerate(zip(drawn(3, runs, 600, 0.01), drawn(4, runs, 600, 0.02),
                                                      strict=True)):
        order = np.random.default_rng(number).permutation(600)  # when the others end
        halted += any(failure_rate.harm(seen(tolerated, order, at), TEST).max() >= TEST.level
                      for at in range(20, 600, 20))
        advanced += any(failure_rate.safety(seen(refuted, order, at), TEST).max() >= TEST.level
                        for at in range(20, 600, 20))
    assert max(halted, advanced) / runs <= most(TEST.alpha, runs)


def seen(truth: np.ndarray, order: np.ndarray, began: int) -> np.ndarray:
    """What is known when `began` devices have begun: their failures, and those successes that have ended."""
    found = truth[:began].copy()
    found[(found == SUCCESS) & (order[:began] >= began - 60)] = PENDING
    return found


def test_evidence_grows_only_when_outcomes_arrive() -> None:
    """What is missing counts against either verdict, so a verdict that was given stays."""
    rng, truth = np.random.default_rng(5), drawn(6, 1, 400, 0.05)[0]
    found = np.full(400, PENDING, np.int8)
    before = failure_rate.judge(found, TEST)
    for device in rng.permutation(400):
        found[device] = truth[device]
        now = failure_rate.judge(found, TEST)
        assert now.harm >= before.harm
        assert now.safety >= before.safety
        before = now


@pytest.mark.parametrize(("rate", "median", "p95"), [(0.03, 281, 934), (0.1, 26, 83)])
def test_harm_is_found_as_soon_as_by_bettors_that_expect_anything(rate: float, median: int, p95: int) -> None:
    """The numbers are those of a mean of seven stakes from 1 to 80 over 400 runs; p95 varies by 8 of 83."""
    paths = failure_rate.harm(drawn(7, 1000, 1200, rate), TEST) >= TEST.level
    first = np.where(paths.any(axis=-1), paths.argmax(axis=-1) + 1, 10**9)
    assert np.percentile(first, 50) <= median + 2
    assert np.percentile(first, 95) <= p95 + 8


def test_the_number_of_devices_that_a_proof_needs() -> None:
    least = failure_rate.least_devices(TEST)
    assert failure_rate.judge([SUCCESS] * least, TEST).verdict == "advance"
    assert failure_rate.judge([SUCCESS] * (least - 1), TEST).verdict == "undecided"
    assert failure_rate.more_devices([SUCCESS] * 100, TEST) == least - 100 == failure_rate.more_devices(
        [SUCCESS] * 100 + [PENDING] * 7, TEST)


def test_more_devices_decide_if_they_fail_as_before() -> None:
    outcomes = [SUCCESS] * 30 + [FAILURE] * 2
    more = failure_rate.more_devices(outcomes, TEST)
    assert more < failure_rate.more_devices([SUCCESS] * 32, TEST)
    failures = math.ceil(more * 2 / 32)
    later = [FAILURE] * failures + [SUCCESS] * (more - failures)
    assert failure_rate.judge([*outcomes, *later], TEST).verdict == "halt"


def test_proven_harm_halts_whatever_was_shown_before() -> None:
    found = failure_rate.judge([SUCCESS] * 300 + [FAILURE] * 20, TEST)
    assert (found.verdict, found.safety >= TEST.level) == ("halt", True)
    assert found.decided_at is not None
    assert 300 < found.decided_at < 320


def test_no_devices_show_nothing() -> None:
    assert failure_rate.judge([], TEST).verdict == "undecided"


@pytest.mark.parametrize("wrong", [{"tolerated": 0.0}, {"tolerated": 0.02}, {"refuted": 0.6}, {"alpha": 0.0},
                                   {"alpha": math.nan}, {"tolerated": math.nan}])
def test_a_test_that_states_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(EvidenceError):
        FailureTest(**wrong)


def test_other_outcomes_are_refused() -> None:
    with pytest.raises(EvidenceError, match="outcomes are"):
        failure_rate.judge([0, 1, 2], TEST)
