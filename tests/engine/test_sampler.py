"""The sampler compared with a slow one that sorts everything, and its edge cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brise.engine import sampler
from brise.engine.request import Sampling
from tests.profiles import examples

NUM_DRAWS = 400


def slow_kept(logits: np.ndarray, sampling: Sampling) -> dict[int, float]:
    """Token to probability, by the definitions, in float64."""
    order = np.argsort(-logits, kind="stable")
    weights = np.exp((logits[order].astype(np.float64) - logits.max()) / sampling.temperature)
    if sampling.top_k:
        weights = weights[:sampling.top_k]
    kept = len(weights)
    if sampling.top_p < 1:
        kept = int(np.searchsorted(np.cumsum(weights) / weights.sum(), sampling.top_p)) + 1
    if sampling.min_p:
        kept = min(kept, int((weights >= sampling.min_p).sum()))
    weights = weights[:max(kept, 1)]
    return dict(zip(order[:len(weights)].tolist(), (weights / weights.sum()).tolist(), strict=True))


def drawn_share(logits: np.ndarray, sampling: Sampling) -> dict[int, float]:
    """What share of an even comb of draws each token gets."""
    picked = [sampler.pick(logits, sampling, (draw + 0.5) / NUM_DRAWS) for draw in range(NUM_DRAWS)]
    tokens, counts = np.unique(picked, return_counts=True)
    return dict(zip(tokens.tolist(), (counts / NUM_DRAWS).tolist(), strict=True))


samplings = st.builds(
    Sampling, temperature=st.sampled_from([0.3, 0.7, 1.0, 2.0]), top_k=st.sampled_from([0, 1, 3, 20, 500]),
    top_p=st.sampled_from([0.0, 0.3, 0.9, 0.999, 1.0]), min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]))


@settings(max_examples=examples(80))
@given(seed=st.integers(0, 1000), size=st.sampled_from([1, 5, 64, 257, 700]), sampling=samplings)
def test_shares_are_those_of_the_definition(seed: int, size: int, sampling: Sampling) -> None:
    logits = np.random.default_rng(seed).standard_normal(size).astype(np.float32) * 3
    expected = slow_kept(logits, sampling)
    share = drawn_share(logits, sampling)
    assert share.keys() <= expected.keys()
    for token, probability in expected.items():  # an even comb is off by two teeth at most
        assert abs(share.get(token, 0) - probability) <= 2 / NUM_DRAWS + 1e-5


def test_a_flat_distribution_keeps_its_whole_nucleus() -> None:
    logits = np.zeros(1000, np.float32)
    share = drawn_share(logits, Sampling(top_p=0.5))
    assert max(share) < 501 and len(share) == NUM_DRAWS


def test_equal_logits_are_cut_by_the_lower_token() -> None:
    logits = np.zeros(300, np.float32)
    assert set(drawn_share(logits, Sampling(top_k=3))) == {0, 1, 2}


def test_greedy_and_tiny_temperatures_take_the_best() -> None:
    logits = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    for temperature in (0.0, 1e-8, 5e-324):
        assert sampler.pick(logits, Sampling(temperature=temperature), 0.999) == logits.argmax()


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = np.full(600, -np.inf, np.float32)
    logits[[7, 400]] = 0
    for sampling in (Sampling(), Sampling(top_k=50), Sampling(top_p=0.9), Sampling(min_p=0.1)):
        assert set(drawn_share(logits, sampling)) == {7, 400}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_damaged_logits_are_an_error(bad: float) -> None:
    logits = np.zeros(10, np.float32)
    logits[3] = bad
    with pytest.raises(ArithmeticError):
        sampler.pick(logits, Sampling(), 0.5)


def test_no_allowed_token_is_an_error() -> None:
    with pytest.raises(ArithmeticError):
        sampler.pick(np.full(10, -np.inf, np.float32), Sampling(temperature=0), 0.5)


def test_uniform_is_fixed_and_even() -> None:
    assert sampler.uniform(1, 2, 3) == sampler.uniform(1, 2, 3)
    assert len({sampler.uniform(*key) for key in [(1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 0)]}) == 4
    draws = np.array([sampler.uniform(5, 0, position) for position in range(4000)])
    assert 0 <= draws.min() and draws.max() < 1
    assert np.abs(np.histogram(draws, 8, (0, 1))[0] - 500).max() < 5 * np.sqrt(500)


def test_penalties_follow_their_formulas() -> None:
    sampling = Sampling(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25,
                        logit_bias={5: -3.0})
    adjust = sampler.adjustments(sampling, np.array([0, 1], np.int32), 8)
    assert adjust is not None
    for token in (2, 2, 3):
        adjust.count(token)
    logits = np.array([4, -4, 4, -4, 4, 4, 0, 1], np.float32)
    assert adjust.apply(logits).tolist() == [2, -8, 2 - 1.0, -8 - 0.75, 4, 1, 0, 1]
    assert logits[0] == 4  # the backend's memory stays as it is


@pytest.mark.parametrize("penalty", [0.7, 1.1, 2.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    rng = np.random.default_rng(3)
    logits, tokens = rng.standard_normal(300).astype(np.float32) * 5, rng.integers(0, 300, 90)
    logits[tokens[:3]] = 0.0, -np.inf, -0.0
    adjust = sampler.adjustments(Sampling(repetition_penalty=penalty), tokens[:50], 300)
    assert adjust is not None
    for token in tokens[50:].tolist():
        adjust.count(token)
    expected = processors.RepetitionPenaltyLogitsProcessor(penalty)(
        torch.from_numpy(tokens)[None], torch.from_numpy(logits)[None])[0].numpy()
    assert adjust.apply(logits).tolist() == expected.tolist()


@pytest.mark.parametrize(("window", "penalized"), [(-1, {0, 1, 2, 3}), (0, set()), (2, {0, 3}), (4, {0, 2, 3}),
                                                   (100, {0, 1, 2, 3})])
def test_the_repetition_penalty_looks_at_the_last_tokens(window: int, penalized: set[int]) -> None:
    adjust = sampler.adjustments(Sampling(repetition_penalty=2.0, repeat_last_n=window, presence_penalty=1e-30),
                                 np.array([1, 1, 2], np.int32), 6)
    assert adjust is not None
    for token in (2, 3, 3, 0):
        adjust.count(token)
    assert set(np.flatnonzero(adjust.apply(np.ones(6, np.float32)) == 0.5).tolist()) == penalized


def test_many_distinct_tokens_are_counted() -> None:
    adjust = sampler.adjustments(Sampling(frequency_penalty=1.0), np.zeros(0, np.int32), 500)
    assert adjust is not None
    for token in [*range(200), *range(100)]:
        adjust.count(token)
    assert (-adjust.apply(np.zeros(500, np.float32))).tolist() == [2.0] * 100 + [1.0] * 100 + [0.0] * 300


def test_no_adjustment_is_made_where_none_is_asked_for() -> None:
    assert sampler.adjustments(Sampling(temperature=0.5, top_p=0.1), np.zeros(1, np.int32), 8) is None


@pytest.mark.parametrize("count", [1, 5, 70])
def test_score_gives_log_softmax_and_the_best(count: int) -> None:
    logits = np.random.default_rng(count).standard_normal(3000).astype(np.float32) * 4
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    logprob, top = sampler.score(logits, 17, count)
    assert logprob == pytest.approx(expected[17], abs=1e-5)
    assert [token for token, _ in top] == np.argsort(-logits, kind="stable")[:count].tolist()
    assert [value for _, value in top] == pytest.approx(np.sort(expected)[::-1][:count].tolist(), abs=1e-5)
