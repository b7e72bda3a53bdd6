"""A claim about answers weighs a conversation by its rows, one about conversations does not: both keep their word."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from brise.errors import EvidenceError
from brise.stats import sequential_test
from brise.stats.clusters import Bets, Weighting, bounds, lay_out
from brise.stats.sequential_test import NonInferiorityTest
from tests.stats.planted import conversations, three_standard_errors

SIZES, SHARES = (1, 2, 3, 8), (0.5, 0.25, 0.15, 0.1)
ROWS = np.array(SIZES) * np.array(SHARES) / np.dot(SIZES, SHARES)  # a row's share of each length
DELTA, LEVEL = 0.05, 20.0


def at_the_boundary(weights: np.ndarray[tuple[int], np.dtype[np.float64]], gap: float) -> list[float]:
    """Effects by length, the longest one `gap` worse than the others, whose weighted mean is -DELTA."""
    return [gap * weights[-1] - DELTA - (gap if at == len(SIZES) - 1 else 0.0) for at in range(len(SIZES))]


@pytest.mark.parametrize("gap", [0.0, 0.2, -0.2])
@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_at_the_boundary_of_answers_at_most_alpha_are_promoted(gap: float, rho: float,
                                                               repetitions: Callable[[int], int]) -> None:
    runs = repetitions(2000)
    found = conversations(np.random.default_rng(1), runs, 1500, sizes=SIZES, shares=SHARES, rho=rho,
                          effects=at_the_boundary(ROWS, gap))
    for most_rows in (8, 16):
        promoted = (sequential_test.wealth(found.bets(most_rows), DELTA).max(axis=1) >= LEVEL).mean()
        assert promoted <= three_standard_errors(0.05, runs)
    if gap > 0 and rho == 0.8:
        by_means = (sequential_test.wealth(found.means(), DELTA).max(axis=1) >= LEVEL).mean()
        assert by_means > 0.5, "the claim about conversations is another one"


@pytest.mark.parametrize("gap", [0.0, 0.2, -0.2])
def test_at_the_boundary_of_conversations_at_most_alpha_are_promoted(gap: float,
                                                                     repetitions: Callable[[int], int]) -> None:
    runs = repetitions(2000)
    found = conversations(np.random.default_rng(2), runs, 1500, sizes=SIZES, shares=SHARES,
                          effects=at_the_boundary(np.array(SHARES), gap))
    promoted = (sequential_test.wealth(found.means(), DELTA).max(axis=1) >= LEVEL).mean()
    assert promoted <= three_standard_errors(0.05, runs)


def test_the_first_answers_are_what_is_claimed_where_longer_ones_are_cut(repetitions: Callable[[int], int]) -> None:
    runs, cut = repetitions(2000), np.minimum(SIZES, 3) * np.array(SHARES)
    found = conversations(np.random.default_rng(3), runs, 1500, sizes=SIZES, shares=SHARES,
                          effects=at_the_boundary(cut / cut.sum(), 0.2))
    promoted = (sequential_test.wealth(found.bets(3), DELTA).max(axis=1) >= LEVEL).mean()
    assert promoted <= three_standard_errors(0.05, runs)


@pytest.mark.parametrize(("sizes", "shares"), [(SIZES, SHARES), ((1, 20), (0.96, 0.04)), ((1, 4), (0.97, 0.03))])
def test_a_learned_bound_keeps_the_promise_about_the_answers_that_count(
        sizes: tuple[int, ...], shares: tuple[float, ...], repetitions: Callable[[int], int]) -> None:
    """Long conversations all wrong, the others so that the first M answers, for the largest M, lie at the boundary."""
    runs, broken = repetitions(2000), 0
    rows = np.array(sizes) * np.array(shares) / np.dot(sizes, shares)
    gap = 0.3
    effects = [gap * rows[-1] - DELTA - (gap if at == len(sizes) - 1 else 0.0) for at in range(len(sizes))]
    found = conversations(np.random.default_rng(4), runs, 600, sizes=sizes, shares=shares, effects=effects)
    for run in range(runs):
        limits, most = bounds(found.lengths[run])
        taken = np.minimum(found.lengths[run], limits)
        bets = Bets(found.sums[run, np.arange(600), taken] / limits, taken / limits, limits, most)
        counted = np.minimum(sizes, most) * np.array(shares)
        if np.dot(counted, effects) / counted.sum() <= -DELTA + 1e-9:
            broken += sequential_test.decide(bets, NonInferiorityTest(DELTA)).verdict == "promote"
    assert broken / runs <= three_standard_errors(0.05, runs)


def test_where_conversations_have_one_answer_both_claims_are_one_test() -> None:
    d = np.random.default_rng(5).choice([-1.0, 0.0, 1.0], 200, p=[0.1, 0.8, 0.1])
    answers, alike = (lay_out(range(200), Weighting(per)).bets(d) for per in ("answer", "conversation"))
    for side in (sequential_test.wealth, sequential_test.wealth_against):
        assert (side(answers, 0.02) == side(alike, 0.02)).all() and (side(alike, 0.02) == side(d, 0.02)).all()


def test_the_bound_is_learned_from_the_first_thirty_and_longer_ones_are_cut() -> None:
    names = [f"{at}" for at, size in enumerate([1] * 10 + [3] + [1] * 30 + [9]) for _ in range(size)]
    layout = lay_out(names, Weighting())
    assert layout.limits.tolist() == [1] * 11 + [4] * 31 and layout.most_rows == 4
    assert layout.counts.sum() == len(names) - 5, "five of nine are cut"
    bets = layout.bets(np.ones(len(names)))
    assert bets.values[[0, 10, 11, 41]].tolist() == [1, 1, 0.25, 1] and (bets.weights == bets.values).all()
    path = sequential_test.wealth(bets, 0.05)
    assert path[:11].max() <= 1 < path[11], "what was won while the bound was smaller is given up"
    assert lay_out(names, Weighting("answer", 2)).limits.tolist() == [2] * 42


def test_what_was_lost_with_a_smaller_bound_stays_lost() -> None:
    names = [f"{at}" for at, size in enumerate([1] * 9 + [2] + [1] * 30) for _ in range(size)]
    bets = lay_out(names, Weighting()).bets([-1.0] * 9 + [1.0] * (len(names) - 9))
    path = sequential_test.wealth(bets, 0.05)
    assert path[8] < 0.6 and path[10] < path[9] * 2


def test_a_weighting_that_is_none_is_refused() -> None:
    with pytest.raises(EvidenceError, match="is 'row', allowed is answer or conversation"):
        Weighting("row")  # type: ignore[arg-type]
    with pytest.raises(EvidenceError, match="is 0, allowed is 1"):
        Weighting("answer", 0)


def test_more_is_claimed_of_bets_than_they_can_hold_is_refused() -> None:
    with pytest.raises(EvidenceError, match="weights"):
        sequential_test.decide(Bets(np.zeros(40), np.full(40, 2.0), np.full(40, 8), 8), NonInferiorityTest())
    with pytest.raises(EvidenceError, match="differences"):
        sequential_test.decide(Bets(np.full(40, 0.5), np.full(40, 0.1), np.full(40, 8), 8), NonInferiorityTest())
