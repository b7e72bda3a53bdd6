"""Planted truth: roll-outs to simulated devices, as bench/fleet_rollouts.py runs them 200 times each."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield importlib.import_module("fleet_rollouts")


def test_bad_bundles_are_halted_before_many_devices_have_them(bench: ModuleType) -> None:
    bad = [bench.outcome(bench.SCENARIOS["bad"], 10_000, seed) for seed in range(8)]
    worse = [bench.outcome(bench.SCENARIOS["worse"], 10_000, seed) for seed in range(8)]
    assert all(run["state"] == "halted" for run in (*bad, *worse))
    # Of 600 runs 96.8 % and 98.5 % kept to these limits, so 8 runs miss more than once with a probability under 3 %.
    assert sum(run["began"] <= 1000 for run in bad) >= 7
    assert sum(run["began"] <= 100 for run in worse) >= 7


def test_a_good_bundle_reaches_all_and_silent_devices_never_count(bench: ModuleType) -> None:
    good = bench.outcome(bench.SCENARIOS["good"], 2000, 0)
    silent = bench.outcome(bench.SCENARIOS["silent"], 2000, 0)
    assert (good["state"], good["unknown"], good["committed"] + good["failed"]) == ("complete", 0, 2000)
    assert (silent["state"], silent["unknown"], silent["committed"] + silent["failed"]) == ("complete", 400, 1600)
    assert not silent["counts_silent"]
