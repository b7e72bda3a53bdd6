"""Scoring classification: accuracy, answers outside the labels, macro F1, and the most frequent confusions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from brise.evals.example import EvalAnswer, EvalExample
from brise.evals.measure import Counts, Measure
from brise.stats.clusters import Floats


def labels_of(examples: Sequence[EvalExample]) -> tuple[str, ...]:
    """The labels of the references."""
    return tuple(sorted({example.reference.text.strip() for example in examples}))


def row(labels: Sequence[str]) -> Callable[[EvalExample, EvalAnswer], Counts]:
    """The counts of one answer: whether it is right, and whether it is outside the labels."""
    known = frozenset(labels)

    def count(example: EvalExample, answer: EvalAnswer) -> Counts:
        given = answer.text.strip()
        return {"accuracy": (float(given == example.reference.text.strip()), 1.0),
                "outside": (float(given not in known), 1.0)}

    return count


def macro(examples: Sequence[EvalExample], answers: Sequence[EvalAnswer]) -> list[Measure]:
    """Macro F1: each label's F1 = 2 TP / (2 TP + FP + FN), and their mean over the labels that occur as references.

    An answer outside the labels is a false negative of the reference's label, and a false positive of none.
    """
    occurring = labels_of(examples)
    index = {label: number for number, label in enumerate(occurring)}
    counts = np.zeros((len(examples), 2, len(occurring)))  # true positives; references plus answers
    for number, (example, answer) in enumerate(zip(examples, answers, strict=True)):
        wanted, given = example.reference.text.strip(), answer.text.strip()
        counts[number, 1, index[wanted]] += 1
        if given in index:
            counts[number, 1, index[given]] += 1
            counts[number, 0, index[given]] += given == wanted
    return [Measure("macro_f1", counts.reshape(len(examples), -1), _macro_f1)]


def confusions(examples: Sequence[EvalExample], answers: Sequence[EvalAnswer], most: int = 10) -> list[tuple[str, str,
                                                                                                             int]]:
    """(reference, answer, count) of the most frequent mistakes; long answers are shortened."""
    pairs = Counter((example.reference.text.strip(), answer.text.strip()[:80])
                    for example, answer in zip(examples, answers, strict=True)
                    if example.reference.text.strip() != answer.text.strip())
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return [(wanted, given, count) for (wanted, given), count in ordered[:most]]


def _macro_f1(sums: Floats) -> Floats:
    """Mean over labels of 2 TP / (references + answers); labels without any are left out."""
    halves = sums.reshape(*sums.shape[:-1], 2, -1)
    right, all_of = halves[..., 0, :], halves[..., 1, :]
    has_any = all_of > 0
    each = np.divide(2 * right, all_of, out=np.zeros(np.shape(right)), where=has_any)
    out: Floats = each.sum(-1) / np.maximum(has_any.sum(-1), 1)
    return out
