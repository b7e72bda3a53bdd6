"""A scorer of the user's own: FILE.py:FUNCTION is called with (example, answer) and returns a number or several.

    def score(example: dict, answer: dict) -> float | dict[str, float]

`example` has messages (the prompt), reference, tools, meta and place; `answer` has text, calls, finish and error.
References and answers have the same form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from brise.errors import EvidenceError
from brise.evals.data import as_json
from brise.evals.example import EvalAnswer, EvalExample
from brise.evals.measure import Measure, ratio
from brise.evals.scorers import Scorer
from brise.files.user_functions import load_function

Score = Callable[[Mapping[str, object], Mapping[str, object]], object]


def load(spec: str) -> Scorer:
    """The scorer that `spec` names. Its file is executed."""
    if not spec.rpartition(":")[0].endswith(".py"):
        raise EvidenceError(f"the scorer is {spec!r}, allowed is FILE.py:FUNCTION")
    score: Score = load_function(spec, "the scorer", EvidenceError)
    file, _, function = spec.rpartition(":")

    def whole(examples: Sequence[EvalExample], answers: Sequence[EvalAnswer]) -> list[Measure]:
        rows = [_numbers(score, example, answer) for example, answer in zip(examples, answers, strict=True)]
        names = list(dict.fromkeys(name for row in rows for name in row))
        return [_measure(name, rows) for name in names]

    return Scorer(function, f"{function} of {Path(file).name}, the mean over examples", (), lambda *_: {}, whole)


def _numbers(score: Score, example: EvalExample, answer: EvalAnswer) -> Mapping[str, float]:
    shown = {"messages": [dict(message) for message in example.prompt], "reference": as_json(example.reference),
             "tools": list(example.tools), "meta": dict(example.meta), "place": example.place}
    try:
        result = score(shown, as_json(answer))
    except Exception as error:  # whatever the user's own code raises
        raise EvidenceError(f"the scorer failed at {example.place}: {type(error).__name__}: {error}") from error
    values = result if isinstance(result, Mapping) else {"score": result}
    return {str(name): _number(name, value, example.place) for name, value in values.items()}


def _number(name: object, value: object, place: str) -> float:
    if not isinstance(name, str) or not isinstance(value, int | float) or not math.isfinite(value):
        raise EvidenceError(f"the scorer gave {name!r}: {value!r} at {place}; a finite number, or a dict of names and "
                            "such numbers is allowed")
    return float(value)


def _measure(name: str, rows: Sequence[Mapping[str, float]]) -> Measure:
    counts = np.array([(row[name], 1.0) if name in row else (0.0, 0.0) for row in rows], np.float64)
    return Measure(name, counts, ratio, is_share=bool(((counts[:, 0] >= 0) & (counts[:, 0] <= 1)).all()))
