"""The measures of quality against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from brise.quant.quality import Comparison, log_softmax


def logits(*probabilities: tuple[float, ...]) -> np.ndarray:
    return np.log(np.array(probabilities)).astype(np.float32) + 3  # a shift changes nothing


def test_a_model_is_at_no_distance_from_itself() -> None:
    comparison, own = Comparison(), np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    comparison.add(0, own, own, np.zeros(5, np.int32))
    quality = comparison.finish()
    assert quality.kl_mean == 0 and quality.kl_max == 0 and quality.top1_agreement == 1
    assert quality.perplexity_original == quality.perplexity_quantised and quality.kl_error is None


def test_numbers_worked_out_by_hand() -> None:
    comparison = Comparison()
    comparison.add(0, logits((0.5, 0.5), (0.9, 0.1)), logits((0.25, 0.75), (0.9, 0.1)), np.array([0, 0]))
    comparison.add(1, logits((0.5, 0.5)), logits((0.75, 0.25)), np.array([1]))
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
    comparison.add(0, logits((0.6, 0.4), (0.6, 0.4)), logits((0.7, 0.3), (0.3, 0.7)), np.array([0, 0]))
    assert comparison.finish().top1_agreement == 0.5


def test_log_softmax_of_large_logits_is_finite() -> None:
    found = log_softmax(np.array([[1e4, 0, -1e4]], np.float32))
    assert found[0, 0] == 0 and np.isfinite(found).all()
