"""Audits are unbiased, the alarm rings for cause, labels are what they say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from brise.errors import EvidenceError
from brise.stats import labels, monitor, sequential_test
from brise.stats.monitor import Alarm
from tests.stats.planted import differences, three_standard_errors


def test_audit_weights_are_unbiased_and_the_interval_covers() -> None:
    rng, estimates, covered = np.random.default_rng(1), [], 0
    for _ in range(500):
        values = differences(rng, 1, 8000, 0.1, -0.03)[0]
        chances = np.where(np.arange(8000) < 4000, 0.03, 0.3)  # q was raised halfway
        values[4000:] = differences(rng, 1, 4000, 0.2, -0.08)[0]
        taken = rng.random(8000) < chances
        interval = monitor.audited_mean(values[taken], chances[taken], 8000)
        estimates.append(interval.estimate)
        covered += interval.low <= -0.055 <= interval.high
    assert np.mean(estimates) == pytest.approx(-0.055, abs=0.003)
    assert covered / 500 > 0.92


def test_the_alarm_is_quiet_over_20_000_steps_where_all_is_well(repetitions: Callable[[int], int]) -> None:
    rng, rang = np.random.default_rng(2), 0
    for units in differences(rng, 20, repetitions(20_000), 0.1, -0.02):
        alarm = Alarm.start(0.02)
        for d in units:
            alarm = alarm.updated(float(d))
            if alarm.rings:
                rang += 1
                break
    # One alarm in 10,000 steps or more: 2,000 steps ring with a probability of at most 0.2. Of 20,000 as many rang.
    assert rang <= 20 * three_standard_errors(0.2, 20)


def test_the_alarm_rings_soon_after_a_fall() -> None:
    rng = np.random.default_rng(3)
    alarm = Alarm.start(0.02)
    for d in differences(rng, 1, 3000, 0.1, 0.0)[0]:
        alarm = alarm.updated(float(d))
    assert not alarm.rings
    steps = 0
    for d in differences(rng, 1, 3000, 0.3, -0.2)[0]:
        alarm, steps = alarm.updated(float(d)), steps + 1
        if alarm.rings:
            break
    assert alarm.rings and steps < 400  # a good past does not delay it


def test_a_biased_judge_is_corrected_by_few_humans() -> None:
    rng, errors = np.random.default_rng(4), []
    for _ in range(300):
        truth = differences(rng, 1, 3000, 0.2, -0.04)[0]
        judge = np.where((truth < 0) & (rng.random(3000) < 0.4), 0.0, truth)  # kind to the small model
        found = labels.corrected(judge[300:], judge[:300], truth[:300])
        errors.append((found.estimate + 0.04, found.low <= -0.04 <= found.high, float(judge.mean()) + 0.04))
    bias, covered, naive = np.mean(errors, axis=0)
    assert abs(bias) < 0.004 and covered > 0.92 and naive > 0.03


def test_a_test_on_corrected_opinions_keeps_its_promise_and_has_power(repetitions: Callable[[int], int]) -> None:
    rng, runs, share = np.random.default_rng(5), repetitions(200), 0.3
    bound, promoted = labels.corrected_bound(share), {-0.05: 0, 0.05: 0}
    for effect in promoted:
        for _ in range(runs):
            truth = differences(rng, 1, 2500, 0.2, effect)[0]
            judge = np.where((truth < 0) & (rng.random(2500) < 0.6), 1.0, truth)  # it loves the small model
            units = labels.corrected_units(judge, truth, rng.random(2500) < share, share)
            assert np.abs(units).max() <= bound + 1e-12
            promoted[effect] += sequential_test.wealth(units, 0.05, bound).max() >= 20
    assert promoted[-0.05] / runs <= three_standard_errors(0.05, runs)
    assert promoted[0.05] / runs > 0.9  # 0.995


def test_kappa_and_fidelity() -> None:
    assert labels.kappa("aabb", "aabb") == 1
    assert labels.kappa("aabb", "abab") == 0
    assert labels.kappa(["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15,
                        ["yes"] * 20 + ["yes"] * 5 + ["no"] * 10 + ["no"] * 15) == pytest.approx(0.4)
    assert labels.fidelity([1, 0, 1], [1, 1, 0]).tolist() == [0, -1, 1]


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(EvidenceError, match=r"probabilities\[1\] is 0"):
        monitor.audited_mean([0, 0], [0.5, 0], 10)
    with pytest.raises(EvidenceError, match="the difference is 2"):
        Alarm.start(0.02).updated(2)
    with pytest.raises(EvidenceError, match="probability is 0"):
        labels.corrected_units([0.0], [0.0], [True], 0)
    with pytest.raises(EvidenceError, match="1 labels"):
        labels.kappa("ab", "a")
