"""The queue of questions for people: only answers that differ are asked about, and nobody sees whose is which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from brise.evals.example import EvalAnswer
from brise.files.digests import hash_draw
from brise.prove.label_book import Verdict, first_and_second
from brise.prove.pairs import Pair
from brise.prove.scoring import PairScores
from brise.stats import labels

Choice = Literal["a", "b", "both", "neither"]
CHOICES: Sequence[Choice] = ("a", "b", "both", "neither")
TWICE = 0.1  # of the pairs come a second time, to see whether people agree with themselves
LATER = 8  # other questions between both verdicts, if there are so many


@dataclass(frozen=True)
class Question:
    """One pair to judge. `is_swapped`: A is the large model's answer."""

    pair: Pair
    is_swapped: bool
    is_second: bool

    @property
    def a(self) -> EvalAnswer:
        return (self.pair.large if self.is_swapped else self.pair.small).answer

    @property
    def b(self) -> EvalAnswer:
        return (self.pair.small if self.is_swapped else self.pair.large).answer

    def scores(self, choice: Choice) -> tuple[float, float]:
        """The scores of the small and of the large model's answer by this choice."""
        a, b = float(choice in ("a", "both")), float(choice in ("b", "both"))
        return (b, a) if self.is_swapped else (a, b)


@dataclass(frozen=True)
class Steadiness:
    """Of `pairs` that were judged twice, the share with the same verdict, and Cohen's kappa."""

    pairs: int
    same: float
    kappa: float


def queue(pairs: Sequence[Pair], scored: PairScores, verdicts: Sequence[Verdict]) -> list[Question]:
    """The questions still to be asked, the oldest first: the test proceeds in the order of time.

    One in ten pairs is asked a second time, some questions later. Which ones, and whose answer is A, depends on
    the pair's name only, so that an interrupted session goes on as it began.
    """
    first, second = first_and_second(verdicts)
    ranked = list[tuple[float, Question]]()
    asked = [pair for at, pair in enumerate(pairs)
             if scored.differs[at] and not any(known.label_source == "outcome" for known in pair.judgements)]
    for at, pair in enumerate(asked):
        if pair.id not in first:
            ranked.append((at, Question(pair, _draw(pair.id, "first") < 0.5, False)))
        if pair.id not in second and _draw(pair.id, "twice") < TWICE:
            ranked.append((at + LATER + 0.5, Question(pair, _draw(pair.id, "second") < 0.5, True)))
    return [question for _, question in sorted(ranked, key=lambda item: item[0])]


def steadiness(verdicts: Sequence[Verdict]) -> Steadiness | None:
    """How far two verdicts on the same pair agree; None while there are none."""
    first, second = first_and_second(verdicts)
    both = [(first[pair], second[pair]) for pair in second if pair in first]
    if not both:
        return None
    verdicts_of = [[(verdict.small, verdict.large) for verdict in side] for side in zip(*both, strict=True)]
    same = sum(one == other for one, other in zip(*verdicts_of, strict=True)) / len(both)
    return Steadiness(len(both), same, labels.kappa(*verdicts_of))


def _draw(*names: str) -> float:
    return hash_draw("\0".join(("brise label", *names)))
