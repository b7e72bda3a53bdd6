"""The simulated figures that shared/STATISTICS.md and docs/guides/prove.md quote, simulated again."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from brise.stats import labels, sequential_test
from brise.stats.clusters import Floats
from brise.stats.sequential_test import NonInferiorityTest
from tests.stats.planted import differences, three_standard_errors

DELTA, LEVEL = 0.02, 20.0
NORMAL = NormalDist()


def sessions(rng: np.random.Generator, number: int, rows: int, rho: float, discordance: float = 0.1) -> Floats:
    """D of (session, row) at the boundary, its latent normals correlated by rho within a session."""
    latent = (np.sqrt(rho) * rng.standard_normal((number, 1))
              + np.sqrt(1 - rho) * rng.standard_normal((number, rows)))
    better, worse = (discordance - DELTA) / 2, (discordance + DELTA) / 2
    return (latent > NORMAL.inv_cdf(1 - better)).astype(np.float64) - (latent < NORMAL.inv_cdf(worse))


def test_rows_of_sessions_break_the_promise_and_session_means_keep_it() -> None:
    rng, runs = np.random.default_rng(1), 100
    by_row = by_session = 0
    for _ in range(runs):
        values = sessions(rng, 1000, 6, 0.7)
        by_row += sequential_test.wealth(values.ravel(), DELTA).max() >= LEVEL
        by_session += sequential_test.wealth(values.mean(axis=1), DELTA).max() >= LEVEL
    assert by_row / runs == pytest.approx(0.39, abs=0.15)  # 39 %; three standard errors of 100 runs
    assert by_session / runs <= three_standard_errors(0.036, runs)  # 2.5 %


@pytest.fixture(scope="module")
def boundary() -> Floats:
    return differences(np.random.default_rng(2), 2000, 2500, 0.1, -DELTA)


def test_at_the_boundary_the_gate_promotes_2_to_4_percent(boundary: Floats) -> None:
    promoted = float((sequential_test.wealth(boundary, DELTA).max(axis=1) >= LEVEL).mean())
    assert 0.015 < promoted < 0.045  # 2.5 to 3.6 %; three standard errors of 2,000 runs are 1.2 points


def test_a_z_test_looked_at_every_50_pairs_promotes_26_to_30_percent(boundary: Floats) -> None:
    counts = np.arange(50, boundary.shape[1] + 1, 50)
    sums, squares = np.cumsum(boundary, axis=1)[:, counts - 1], np.cumsum(boundary**2, axis=1)[:, counts - 1]
    means = sums / counts
    z = (means + DELTA) / np.sqrt((squares / counts - means**2) / counts + 1e-12)
    assert 0.24 < float((z.max(axis=1) > 1.645).mean()) < 0.33


def test_a_mean_of_30_passes_a_model_that_is_4_points_worse_in_37_percent() -> None:
    units = differences(np.random.default_rng(3), 20_000, 30, 0.15, -0.04)
    assert float((units.mean(axis=1) >= -DELTA).mean()) == pytest.approx(0.37, abs=0.015)


def test_the_plan_is_2141_units_and_214_labels() -> None:
    planned = sequential_test.plan(0.1, NonInferiorityTest(DELTA, 0.05), power=0.9)
    assert (planned.units, planned.labels) == (2141, 214)


def test_a_biased_judge_reads_minus_0_3_and_100_people_correct_it() -> None:
    rng, judged, corrected, half = np.random.default_rng(4), [], [], []
    for _ in range(150):
        truth = differences(rng, 1, 3000, 0.1, -0.04)[0]
        kind = rng.random(3000)  # of the answers that are worse it takes many for equal, and some for better
        judge = np.where((truth < 0) & (kind < 0.46), np.where(kind < 0.07, 1.0, 0.0), truth)
        differing = rng.permutation(np.flatnonzero(truth))
        share = len(differing) / 3000
        found = labels.corrected(judge[differing[100:]], judge[differing[:100]], truth[differing[:100]])
        judged.append(judge.mean())
        corrected.append(found.estimate * share)
        half.append((found.high - found.low) / 2 * share)
    assert np.mean(judged) == pytest.approx(-0.003, abs=0.002)
    assert np.mean(corrected) == pytest.approx(-0.04, abs=0.003)
    assert np.mean(half) == pytest.approx(0.014, abs=0.003)
