"""Kept answers of conversations are wrong as seldom as promised, also where errors go with length."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from brise.stats import thresholds
from brise.stats.clusters import ClusterLayout, Floats, Weighting, lay_out
from brise.stats.thresholds import RiskClaim, Try
from tests.stats.planted import three_standard_errors

PROMISE = RiskClaim(0.05, 0.05)
SIZES, SHARES = np.array([1, 2, 3, 8]), np.array([0.5, 0.25, 0.15, 0.1])
APART = 1.8
Drawn = tuple[Floats, Floats, ClusterLayout]


def draw(rng: np.random.Generator, number: int, short: float, long: float, rho: float = 0.3,
         most_rows: int = 8) -> Drawn:
    """Conversations whose answers are wrong with the chance `short`, the longest with `long`; confidences rank them."""
    sizes = rng.choice(SIZES, number, p=SHARES)
    names = np.repeat(np.arange(number), sizes)
    chance = np.where(sizes == SIZES[-1], long, short)[names]
    draws = np.where(rng.random(len(names)) < rho, rng.random(number)[names], rng.random(len(names)))
    wrong = (draws < chance).astype(np.float64)
    layout = lay_out(names.tolist(), Weighting("answer", most_rows))
    return rng.normal(size=len(names)) - APART * wrong, wrong, layout


def test_at_the_boundary_a_threshold_passes_at_most_delta_of_the_time(repetitions: Callable[[int], int]) -> None:
    """5 % of all answers are wrong, 12 % of those in long conversations: by conversations it is 2.2 %."""
    rng, runs, passed, by_means = np.random.default_rng(1), repetitions(2000), 0, 0
    long, share = 0.12, SIZES[-1] * SHARES[-1] / np.dot(SIZES, SHARES)
    for _ in range(runs):
        _, wrong, layout = draw(rng, 900, (0.05 - long * share) / (1 - share), long)
        keep = np.zeros(len(wrong))
        passed += thresholds.certify_answers(keep, wrong, layout, [Try(0.0, 0.8, 0.0, 1.0)], PROMISE)[0] is not None
        by_means += thresholds.learn_then_test_clusters(keep, wrong, layout.of_row.tolist(), [0.0],
                                                        PROMISE) is not None
    assert passed / runs <= three_standard_errors(PROMISE.delta, runs)
    assert by_means / runs > 0.5, "the claim about conversations is another one"


def test_a_sequence_from_other_data_keeps_the_promise_about_answers(repetitions: Callable[[int], int]) -> None:
    runs, broken, kept = repetitions(2000), 0, []
    confidences, wrong, _ = draw(np.random.default_rng(2), 60_000, 0.06, 0.2)
    order = np.argsort(-confidences)
    risks, levels = np.cumsum(wrong[order]) / np.arange(1, len(wrong) + 1), confidences[order]
    rng = np.random.default_rng(3)
    for _ in range(runs):
        found, method = thresholds.certify_answers(*(later := draw(rng, 600, 0.06, 0.2)), thresholds.tries(
            *draw(rng, 300, 0.06, 0.2), PROMISE), PROMISE)
        kept.append(0.0 if found is None else found.kept)
        broken += found is not None and risks[np.searchsorted(-levels, -found.confidence, side="right") - 1] > 0.05
        assert len(later[0])
    assert method.endswith("sums over conversations of up to 8 answers")
    assert broken / runs <= three_standard_errors(PROMISE.delta, runs)
    assert np.mean(kept) > 0.3


def test_errors_in_answers_that_are_cut_forbid_a_threshold() -> None:
    names = [f"{at}" for at in range(400)] + [f"{at}" for at in range(60) for _ in range(8)]
    wrong = np.array([0.0] * 400 + [1.0] * 480)
    layout = lay_out(names, Weighting("answer", 1))
    assert thresholds.certify_answers(np.zeros(880), wrong, layout, [Try(0.0, 0.5, 0.0, 1.0)], PROMISE)[0] is None
    assert thresholds.certify_answers(np.zeros(880), np.zeros(880), layout, [Try(0.0, 0.5, 0.0, 1.0)],
                                      PROMISE)[0] is not None


def test_the_fewest_answers_that_show_anything_grow_with_the_longest_conversation() -> None:
    assert [thresholds.least_units(PROMISE, most) for most in (1, 2, 8)] == [59, 116, 457]
