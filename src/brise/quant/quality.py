"""What quantising did to a model: perplexity of both, and how far their predictions lie apart, token by token."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from brise.models.weights import Array


@dataclass(frozen=True)
class Quality:
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
    """Gathers both models' logits over the full vocabulary, a few tokens at a time."""

    _windows: list[Array] = field(default_factory=list)  # (T,) of each piece, as all below
    _nll: list[Array] = field(default_factory=list)  # (2, T): original, quantised
    _divergences: list[Array] = field(default_factory=list)
    _agreements: list[Array] = field(default_factory=list)

    def add(self, window: int, original: Array, quantised: Array, targets: Array) -> None:
        """Logits (T, V) of both models for the same tokens of one window, and the tokens (T,) that came next."""
        log_p, log_q = log_softmax(original), log_softmax(quantised)
        at = np.arange(len(targets))
        self._windows.append(np.full(len(targets), window))
        self._nll.append(-np.stack([log_p[at, targets], log_q[at, targets]]).astype(np.float64))
        divergence = np.einsum("tv,tv->t", np.exp(log_p), log_p - log_q, dtype=np.float64)
        self._divergences.append(np.maximum(divergence, 0.0))  # rounding can make it a hair negative
        self._agreements.append(log_p.argmax(axis=1) == log_q.argmax(axis=1))

    def finish(self) -> Quality:
        divergences, windows = np.concatenate(self._divergences), np.concatenate(self._windows)
        counts = np.bincount(windows)
        means = np.bincount(windows, divergences)[counts > 0] / counts[counts > 0]
        error = float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None
        original, quantised = np.exp(np.concatenate(self._nll, axis=1).mean(axis=1))
        return Quality(len(divergences), len(means), float(original), float(quantised), float(divergences.mean()),
                       error, float(divergences.max()), float(np.concatenate(self._agreements).mean()))


def log_softmax(logits: Array) -> NDArray[np.float32]:
    """Over the last axis; the sum in float64, so that large vocabularies lose nothing."""
    shifted = np.asarray(logits, np.float32) - logits.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    return np.asarray(shifted - np.log(total).astype(np.float32), np.float32)
