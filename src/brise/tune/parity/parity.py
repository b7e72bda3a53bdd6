"""Parity: whether the served model predicts what the trained model predicts, on the same rows.

Prompts and answers are replayed token by token, so that both sides see the same; the predictions of every learned token
are compared over the full vocabulary. The same comparison without the adapter shows how much of the difference comes
from the backends: rounding, and integers in place of floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import numpy as np

from brise.data.example import EncodedRow
from brise.errors import BriseError, EvidenceError
from brise.quant.quality import Comparison, Predictions, QuantQuality
from brise.tune.packing import FeaturesOf, Pack, pack
from brise.tune.parity.activation_diff import Parting, part
from brise.tune.parity.served import GuidedSide, ParitySide, groups, pieces
from brise.tune.parity.templates import TemplateFault

Progress = Callable[[int], None]  # rows done

LEAST_KL = 1e-3  # nats a token: a quarter of what the kernels' rounding alone causes in SmolLM2


class Report(Protocol):
    """What a comparison of any kind says."""

    @property
    def failures(self) -> list[str]:
        """What exceeds the tolerance, with the numbers."""
    @property
    def where(self) -> str | None:
        """Where to look."""


class ParityError(BriseError):
    """The served model differs from the trained one; `report` has the numbers."""

    def __init__(self, report: Report) -> None:
        super().__init__(f"the served model is not the trained one: {'; '.join(report.failures)}", hint=report.where)
        self.report = report


@dataclass(frozen=True)
class Tolerance:
    """Limits of the mean KL (nats a token) and of agreement.

    Agreement is the share of tokens whose most likely token is the same in both; two standard errors of a share of so
    many tokens are allowed below its limit.

    The native kernels multiply 8-bit integers where the trainer has floats. SmolLM2-135M as Q4_1, not tuned, on 869
    answer tokens of function calls: mean KL 0.0037, agreement 96.8 %. The limits allow five times the KL and twice the
    disagreement; a tuned model is surer of its answers and stays well within. An adapter that changes little could be
    wrong and stay within: so the mean KL may not exceed `max_times_base` times that of the base alone either, or
    LEAST_KL where that is more.
    """

    max_mean_kl: float = 0.02
    min_agreement: float = 0.93  # 0 to 1
    max_times_base: float | None = 3.0  # None: no such limit, as for a merged model, whose weights are rounded again

    def exceeded(self, quality: QuantQuality, base: QuantQuality | None = None) -> list[str]:
        """The limits that are exceeded, with the numbers."""
        exceeded = []
        if not quality.kl_mean <= self.max_mean_kl:  # NaN exceeds it, too
            exceeded.append(f"mean KL is {quality.kl_mean:.3g}, allowed is {self.max_mean_kl:g}")
        elif base is not None and self.max_times_base is not None:
            limit = max(LEAST_KL, self.max_times_base * base.kl_mean)
            if quality.kl_mean > limit:
                exceeded.append(f"mean KL is {quality.kl_mean:.3g}, without the adapter {base.kl_mean:.3g}: allowed is "
                             f"{limit:.3g}")
        # Two standard errors: among a dozen tokens, one near tie means nothing.
        chance = 2 * math.sqrt(self.min_agreement * (1 - self.min_agreement) / quality.num_tokens)
        if not quality.top1_agreement >= self.min_agreement - chance:
            exceeded.append(f"they agree on {quality.top1_agreement:.2%} of the tokens, allowed is "
                         f"{self.min_agreement:.2%} at least (less {chance:.2%} for chance)")
        return exceeded


@dataclass(frozen=True)
class ParityPair:
    """Both sides of a comparison."""

    trained: GuidedSide
    served: ParitySide


@dataclass(frozen=True)
class ParityReport:
    """`quality` is of the adapted model (original: trained, quantised: served), `base` the same without the adapter."""

    num_rows: int
    quality: QuantQuality
    base: QuantQuality | None
    tolerance: Tolerance
    template_faults: tuple[TemplateFault, ...]
    num_templates: int  # conversations whose tokens were compared
    parting: Parting | None

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> list[str]:
        """What exceeds the tolerance, with the numbers."""
        if not self.template_faults:
            return self.tolerance.exceeded(self.quality, self.base)
        return [f"{len(self.template_faults)} of {self.num_templates} conversations are encoded to other tokens than "
                "were trained on", *self.tolerance.exceeded(self.quality, self.base)]

    @property
    def where(self) -> str | None:
        """Where to look, if something exceeds the tolerance or a layer stands out."""
        if self.template_faults:
            return f"the chat template: {self.template_faults[0]}"
        if self.parting is None:
            return None
        first = self.parting.first
        if self.passed:
            return None if first is None else f"{first} stands out, within the tolerance: {self._errors(first)}"
        if self.base is not None and self.tolerance.exceeded(self.base):
            return f"the base by itself is over the tolerance; " \
                   f"{'no layer stands out' if first is None else f'they part in {first}'}"
        if first is None:
            return f"no layer stands out, they part bit by bit (the most in {self.parting.worst}): the served " \
                   "weights have too few bits, or the tolerance is too narrow for them"
        layers = {name.split(".")[1] for name in self.parting.names if name.startswith("layers.")}
        return f"they part in {first} ({self._errors(first)}); layers that part: {len(layers)}"

    def _errors(self, name: str) -> str:
        assert self.parting is not None
        usual = self.parting.base_errors
        beside = "" if usual is None else f", without the adapter {usual[name]:.3g}"
        return f"error {self.parting.errors[name]:.3g}{beside}"

    def as_json(self) -> dict[str, object]:
        """The whole report, as --json prints it."""
        return {"passed": self.passed, "failures": self.failures, "where": self.where, "num_rows": self.num_rows,
                "num_templates": self.num_templates, "tolerance": asdict(self.tolerance),
                "adapted": numbers(self.quality), "base": None if self.base is None else numbers(self.base),
                "template_faults": [asdict(fault) for fault in self.template_faults],
                "parting": None if self.parting is None else {
                    "names": list(self.parting.names), "errors": _finite_all(self.parting.errors),
                    "base_errors": _finite_all(self.parting.base_errors)}}

    def check(self) -> ParityReport:
        """Returns the report, or raises ParityError if it did not pass."""
        if not self.passed:
            raise ParityError(self)
        return self


def run(adapted: ParityPair, base: ParityPair | None, rows: Sequence[EncodedRow], *,
        template_faults: Sequence[TemplateFault] = (),
        num_templates: int = 0, tolerance: Tolerance = Tolerance(), features_of: FeaturesOf | None = None,
        progress: Progress = lambda count: None) -> ParityReport:
    """Compares both sides on rows, and finds where they diverge. A difference raises nothing."""
    if not any(row.num_targets for row in rows):
        raise EvidenceError("there is no held-out row with an answer to compare the models on")
    quality = compare(adapted, rows, features_of, progress)
    of_base = None if base is None else compare(base, rows, features_of, progress)
    report = ParityReport(len(rows), quality, of_base, tolerance, tuple(template_faults), num_templates, None)
    shortest = pack([min((row for row in rows if row.num_targets), key=lambda row: len(row.tokens))], shares=False,
                    features_of=features_of)
    # A base that diverges by itself is no measure of the usual error.
    is_sound = of_base is not None and not tolerance.exceeded(of_base)
    parting = part(adapted.trained, adapted.served, shortest.batch,
                   (base.trained, base.served) if base is not None and is_sound else None)
    return replace(report, parting=parting)


def compare(pair: ParityPair, rows: Sequence[EncodedRow], features_of: FeaturesOf | None = None,
            progress: Progress = lambda count: None) -> QuantQuality:
    """How the predictions of the served side differ from the trained side's; each row is a window."""
    comparison, number = Comparison(), 0
    for group in groups([row for row in rows if row.num_targets]):
        packed = pack(group, shares=False, features_of=features_of)
        comparison.add_predictions(number + packed.owners, _predictions(pair, packed))
        number += len(group)
        progress(len(group))
    return comparison.finish()


def _predictions(pair: ParityPair, packed: Pack) -> Predictions:
    predictions = Predictions(packed.targets)
    trained_RD, served_RD = pair.trained.hidden(packed.batch), pair.served.hidden(packed.batch)
    for tokens in pieces(len(packed.targets), pair.trained.config.vocab_size):
        trained_TV, served_TV = pair.trained.logits(trained_RD[tokens]), pair.served.logits(served_RD[tokens])
        predictions.add_logits(tokens, 0, trained_TV, served_TV)
    return predictions


def numbers(quality: QuantQuality) -> dict[str, object]:
    """The numbers under names of parity: trained and served in place of original and quantised."""
    return {"num_tokens": quality.num_tokens, "kl_mean": _finite(quality.kl_mean),
            "kl_error": None if quality.kl_error is None else _finite(quality.kl_error),
            "kl_max": _finite(quality.kl_max), "agreement": quality.top1_agreement,
            "perplexity_trained": _finite(quality.perplexity_original),
            "perplexity_served": _finite(quality.perplexity_quantised)}


def _finite_all(values: Mapping[str, float] | None) -> dict[str, float | None] | None:
    return None if values is None else {name: _finite(value) for name, value in values.items()}


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if np.isfinite(value) else None
