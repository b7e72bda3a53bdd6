"""The effect of quantisation on a model: the perplexity of both, and the distance of their predictions by token."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from brise.models.weights import Array

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class QuantQuality:
    """Of `num_tokens` predictions in `num_windows` pieces of text. KL is KL(original || quantised) in nats.

    `kl_error` is the standard error of the mean over windows, which depend on each other less than tokens do.
    """

    num_tokens: int
    num_windows: int
    perplexity_original: float
    perplexity_quantised: float
    kl_mean: float
    kl_error: float | None
    kl_max: float
    top1_agreement: float


@dataclass
class Comparison:
    """Collects both models' predictions, a few tokens at a time."""

    _windows: list[Array] = field(default_factory=list)  # (T,) of each piece, as all below
    _nll: list[Array] = field(default_factory=list)  # (2, T): original, quantised
    _divergences: list[Array] = field(default_factory=list)
    _agreements: list[Array] = field(default_factory=list)

    def add_logits(self, window: int, original: Array, quantised: Array, targets: Array) -> None:
        """Logits (T, V) of both models for the same tokens of one window, and the tokens (T,) that came next."""
        predictions = Predictions(targets)
        predictions.add_logits(slice(0, len(targets)), 0, original, quantised)
        self.add_predictions(np.full(len(targets), window), predictions)

    def add_predictions(self, windows: Array, predictions: Predictions) -> None:
        """Predictions that have seen the full vocabulary, and the window (T,) of each."""
        self._windows.append(windows)
        self._nll.append(predictions.nll)
        self._divergences.append(predictions.divergences)
        self._agreements.append(predictions.agreements)

    def finish(self) -> QuantQuality:
        divergences, windows = np.concatenate(self._divergences), np.concatenate(self._windows)
        counts = np.bincount(windows)
        means = np.bincount(windows, divergences)[counts > 0] / counts[counts > 0]
        error = float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None
        original, quantised = np.exp(np.concatenate(self._nll, axis=1).mean(axis=1))
        return QuantQuality(len(divergences), len(means), float(original), float(quantised), float(divergences.mean()),
                            error, float(divergences.max()), float(np.concatenate(self._agreements).mean()))


class Predictions:
    """What both models predict for T tokens, exactly for the full vocabulary, which may come in blocks.

    Of logits a (original) and b (quantised), with the largest so far m, it keeps the sums of exp(a - m), of exp(b - m)
    and of exp(a - m) (a - b). The last over the first is the mean of a - b under the original; KL(original ||
    quantised) is that less the difference of the log-sum-exps. Sums are in float64: large vocabularies lose nothing.
    """

    def __init__(self, targets: Array) -> None:
        both = (2, len(targets))  # original, quantised
        self._targets = np.asarray(targets)
        self._largest: Numbers = np.full(both, -np.inf)
        self._best: NDArray[np.int64] = np.zeros(both, np.int64)
        self._sums: Numbers = np.zeros(both)
        self._differences: Numbers = np.zeros(len(targets))
        self._of_targets: Numbers = np.zeros(both)

    def add_logits(self, tokens: slice, first: int, original: Array, quantised: Array) -> None:
        """Logits (T, V) of some of the tokens for a block of the vocabulary that begins with `first`."""
        inside = self._targets[tokens] - first
        (hits,) = np.nonzero((inside >= 0) & (inside < original.shape[1]))
        for side, logits_TV in enumerate((original, quantised)):
            best = logits_TV.argmax(axis=1)
            top, before = logits_TV[np.arange(len(best)), best], self._largest[side, tokens]
            largest = np.maximum(before, top)
            weights_TV = logits_TV - largest[:, None].astype(np.float32)
            np.exp(weights_TV, out=weights_TV)
            shrink = np.exp(before - largest)
            self._sums[side, tokens] = shrink * self._sums[side, tokens] + weights_TV.sum(axis=1, dtype=np.float64)
            if side == 0:
                self._differences[tokens] = shrink * self._differences[tokens] + np.einsum(
                    "tv,tv->t", weights_TV, original - quantised, dtype=np.float64)
            self._best[side, tokens] = np.where(top > before, first + best, self._best[side, tokens])
            self._largest[side, tokens] = largest
            self._of_targets[side, tokens.start + hits] = logits_TV[hits, inside[hits]]

    @property
    def nll(self) -> Numbers:
        """(2, T): minus the log-probabilities of the targets, original and quantised."""
        nll: Numbers = self._log_sums - self._of_targets
        return nll

    @property
    def divergences(self) -> Numbers:
        """(T,): KL(original || quantised)."""
        original, quantised = self._log_sums
        divergences: Numbers = self._differences / self._sums[0] - (original - quantised)
        return np.asarray(np.maximum(divergences, 0.0))  # rounding can make it a hair negative

    @property
    def agreements(self) -> NDArray[np.bool_]:
        """(T,): whether the most likely token is the same in both."""
        return np.array(self._best[0] == self._best[1])

    @property
    def _log_sums(self) -> Numbers:
        log_sums: Numbers = self._largest + np.log(self._sums)
        return log_sums
