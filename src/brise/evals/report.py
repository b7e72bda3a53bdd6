"""What came out: every figure with its interval, and what one must know to read it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from brise.errors import EvidenceError
from brise.evals import classify, fields
from brise.evals.answers_file import Saved
from brise.evals.example import Answer, Example
from brise.evals.measure import Bounded, bounded, difference
from brise.evals.run import Answered
from brise.evals.scorers import Scorer


@dataclass(frozen=True)
class Judged:
    """A scorer, and why it was taken."""

    scorer: Scorer
    why: str
    seed: int = 0


def document(system: str, examples: Sequence[Example], answered: Answered, judged: Judged) -> dict[str, object]:
    """The report as JSON; docs/eval.md says what the fields are."""
    answers, conversations = answered.answers, [example.conversation for example in examples]
    measures = judged.scorer.measures(examples, answers)
    asked = sum(answer.completion_tokens for answer in answers)
    return {
        "version": 1, "system": system, "score": judged.scorer.name, "chosen": judged.why,
        "definition": judged.scorer.definition, "examples": len(examples), "conversations": len(set(conversations)),
        "labels": label_source(examples),
        "figures": {measure.name: _bounds(bounded(measure, conversations, judged.seed)) for measure in measures},
        "errors": _errors(answers), "cut": sum(answer.finish == "length" for answer in answers),
        "confusions": [{"reference": wanted, "answer": given, "times": times}
                       for wanted, given, times in classify.confusions(examples, answers)]
        if judged.scorer.name == "class" else None,
        "fields": [asdict(field) | {"precision": field.precision, "recall": field.recall, "f1": field.f1}
                   for field in fields.by_name(judged.scorer.name, examples, answers)],
        "completion_tokens": asked, "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "seconds": answered.seconds, "asked": answered.num_asked, "kept": answered.num_kept}


def compared(examples: Sequence[Example], answers: Sequence[Answer], other: Saved, judged: Judged) -> dict[str, object]:
    """The same figures of another run's answers, and the paired differences, on the rows that both have."""
    both = [number for number, example in enumerate(examples) if example.digest in other.answers]
    if not both:
        raise EvidenceError(f"the answers of {other.system} are to other examples: none is the same",
                            hint="run both on the same DATA with the same --turns and --sample")
    rows = [examples[number] for number in both]
    own = judged.scorer.measures(rows, [answers[number] for number in both])
    others = judged.scorer.measures(rows, [other.answers[example.digest] for example in rows])
    theirs = {measure.name: measure for measure in others}
    conversations = [example.conversation for example in rows]
    return {"system": other.system, "examples": len(rows), "figures": {
        measure.name: {"other": _number(theirs[measure.name].estimate),
                       "difference": _bounds(difference(measure, theirs[measure.name], conversations, judged.seed))}
        for measure in own if measure.name in theirs}}


def label_source(examples: Sequence[Example]) -> str:
    """Where the truth comes from, as far as the rows say."""
    providers = sorted({example.provider for example in examples if example.provider is not None})
    if not providers:
        return "reference answers of the data, compared by program"
    return f"answers of {', '.join(providers)}: agreement with a teacher, not correctness"


def _errors(answers: Sequence[Answer]) -> dict[str, object]:
    found = Counter(answer.error for answer in answers if answer.error is not None)
    return {"number": found.total(), "reasons": [{"reason": reason, "times": times}
                                                 for reason, times in found.most_common(5)]}


def _bounds(found: Bounded) -> Mapping[str, object]:
    return {"estimate": _number(found.estimate), "low": found.low, "high": found.high, "interval": found.how}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
