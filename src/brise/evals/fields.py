"""Which fields, arguments or types of span go wrong: precision, recall and F1 of each by its name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from brise.evals import compare, scorers
from brise.evals.example import Answer, Example


@dataclass(frozen=True)
class Field:
    """How often a field is in references, in answers, and in both with the same value."""

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


def by_name(score: str, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Field]:
    """All fields that references or answers have, the most frequent ones of the references first; else none.

    For `call` a field is an argument, for `spans` a type, for `json` a path.
    """
    wanted, given, right = Counter[str](), Counter[str](), Counter[str]()
    for example, answer in zip(examples, answers, strict=True):
        of_reference, of_answer = _leaves(score, example.reference), _leaves(score, answer)
        for total, leaves in ((wanted, of_reference), (given, of_answer), (right, of_reference & of_answer)):
            for (name, _), count in leaves.items():
                total[name] += count
    names = sorted(wanted.keys() | given.keys(), key=lambda name: (-wanted[name], name))
    return [Field(name, wanted[name], given[name], right[name]) for name in names]


def _leaves(score: str, answer: Answer) -> Counter[compare.Leaf]:
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
