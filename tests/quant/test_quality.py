"""The measures of quality against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from brise.quant.quality import Comparison, Predictions


def logits(*probabilities: tuple[float, ...]) -> np.ndarray:
    return np.log(np.array(probabilities)).astype(np.float32) + 3  # a shift changes nothing


def test_a_model_is_at_no_distance_from_itself() -> None:
    comparison, own = Comparison(), np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    comparison.add_logits(0, own, own, np.zeros(5, np.int32))
    quality = comparison.finish()
    assert quality.kl_mean == 0 and quality.kl_max == 0 and quality.top1_agreement == 1
    assert quality.perplexity_original == quality.perplexity_quantised and quality.kl_error is None


def test_numbers_worked_out_by_hand() -> None:
    comparison = Comparison()
    comparison.add_logits(0, logits((0.5, 0.5), (0.9, 0.1)), logits((0.25, 0.75), (0.9, 0.1)), np.array([0, 0]))
    comparison.add_logits(1, logits((0.5, 0.5)), logits((0.75, 0.25)), np.array([1]))
    quality = comparison.finish()
    one = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert quality.kl_max == pytest.approx(one, rel=1e-5) and quality.kl_mean == pytest.approx(2 * one / 3, rel=1e-5)
    assert quality.perplexity_original == pytest.approx((0.5 * 0.9 * 0.5)**(-1 / 3), rel=1e-5)
    assert quality.perplexity_quantised == pytest.approx((0.25 * 0.9 * 0.25)**(-1 / 3), rel=1e-5)
    assert (quality.num_tokens, quality.num_windows) == (3, 2)
    # Window means are one / 2 and one: their standard deviation is one / 2 / sqrt(2), the mean's error that / sqrt(2).
    assert quality.kl_error == pytest.approx(one / 4, rel=1e-5)


def test_agreement_counts_equal_best_tokens() -> None:
    comparison = Comparison()
    comparison.add_logits(0, logits((0.6, 0.4), (0.6, 0.4)), logits((0.7, 0.3), (0.3, 0.7)), np.array([0, 0]))
    assert comparison.finish().top1_agreement == 0.5


def test_large_logits_have_finite_measures() -> None:
    predictions, large = Predictions(np.array([0])), np.array([[1e4, 0, -1e4]], np.float32)
    predictions.add_logits(slice(0, 1), 0, large, large[:, ::-1])
    assert predictions.nll.tolist() == [[0], [2e4]] and predictions.divergences.tolist() == [2e4]
    assert not predictions.agreements.any()


@pytest.mark.parametrize("block", [1, 7, 64, 300])
def test_blocks_of_the_vocabulary_give_what_all_of_it_gives(block: int) -> None:
    """And both what float64 gives: exponentials and differences are rounded a few times, relative to themselves."""
    random = np.random.default_rng(1)
    p, q = (random.normal(0, 4, (20, 300)).astype(np.float32) + shift for shift in (5, -30))
    q = 0.9 * p + 0.1 * q
    targets = random.integers(0, 300, 20)
    predictions = Predictions(targets)
    for first in range(0, 300, block):
        for tokens in (slice(0, 13), slice(13, 20)):
            predictions.add_logits(tokens, first, p[tokens, first:first + block], q[tokens, first:first + block])
    log_p, log_q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (np.float64(p), np.float64(q)))
    at = np.arange(20)
    assert np.allclose(predictions.nll, -np.stack([log_p[at, targets], log_q[at, targets]]), rtol=0, atol=1e-6)
    assert np.allclose(predictions.divergences, (np.exp(log_p) * (log_p - log_q)).sum(axis=1), rtol=0, atol=1e-6)
    assert (predictions.agreements == (log_p.argmax(axis=1) == log_q.argmax(axis=1))).all()
