"""The report of an evaluation: every figure with its interval, and what is needed to interpret it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from brise.errors import EvidenceError
from brise.evals import classify, compare, scorers
from brise.evals.answering import Answered
from brise.evals.answers_file import SavedAnswers
from brise.evals.example import EvalAnswer, EvalExample
from brise.evals.measure import Bounded, bounded, difference
from brise.evals.scorers import Scorer


@dataclass(frozen=True)
class Judged:
    """A scorer, and why it was chosen."""

    scorer: Scorer
    why: str
    seed: int = 0


def document(system: str, examples: Sequence[EvalExample], answered: Answered, judged: Judged) -> dict[str, object]:
    """The report as JSON; docs/guides/eval.md says what the fields are."""
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
                   for field in by_name(judged.scorer.name, examples, answers)],
        "completion_tokens": asked, "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "seconds": answered.seconds, "asked": answered.num_asked, "kept": answered.num_kept}


def compared(examples: Sequence[EvalExample], answers: Sequence[EvalAnswer], other: SavedAnswers,
             judged: Judged) -> dict[str, object]:
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


def label_source(examples: Sequence[EvalExample]) -> str:
    """The source of the labels, as far as the rows tell."""
    providers = sorted({example.provider for example in examples if example.provider is not None})
    if not providers:
        return "reference answers of the data, compared by program"
    return f"answers of {', '.join(providers)}: agreement with a teacher, not correctness"


def _errors(answers: Sequence[EvalAnswer]) -> dict[str, object]:
    reasons = Counter(answer.error for answer in answers if answer.error is not None)
    return {"number": reasons.total(), "reasons": [{"reason": reason, "times": times}
                                                 for reason, times in reasons.most_common(5)]}


def _bounds(figure: Bounded) -> Mapping[str, object]:
    return {"estimate": _number(figure.estimate), "low": figure.low, "high": figure.high, "interval": figure.how}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


@dataclass(frozen=True)
class Field:
    """How often a field occurs in references, in answers, and in both with the same value."""

    name: str
    wanted: int
    given: int
    right: int

    @property
    def precision(self) -> float | None:
        return self.right / self.given if self.given else None

    @property
    def recall(self) -> float | None:
        return self.right / self.wanted if self.wanted else None

    @property
    def f1(self) -> float:
        return 2 * self.right / (self.wanted + self.given)


def by_name(score: str, examples: Sequence[EvalExample], answers: Sequence[EvalAnswer]) -> list[Field]:
    """The fields of references and answers, the most frequent in references first; empty for scores without fields.

    A field is an argument for `call`, a type for `spans`, and a path for `json`.
    """
    wanted, given, right = Counter[str](), Counter[str](), Counter[str]()
    for example, answer in zip(examples, answers, strict=True):
        of_reference, of_answer = _leaves(score, example.reference), _leaves(score, answer)
        for total, leaves in ((wanted, of_reference), (given, of_answer), (right, of_reference & of_answer)):
            for (name, _), count in leaves.items():
                total[name] += count
    names = sorted(wanted.keys() | given.keys(), key=lambda name: (-wanted[name], name))
    return [Field(name, wanted[name], given[name], right[name]) for name in names]


def _leaves(score: str, answer: EvalAnswer) -> Counter[compare.Leaf]:
    match score:
        case "call":
            return scorers.slots_of(answer)
        case "json":
            value = compare.parse(answer.text)
            return Counter() if value is compare.INVALID else compare.leaves(value)
        case "spans":
            return scorers.spans_of(compare.parse(answer.text)) or Counter()
        case _:
            return Counter()
