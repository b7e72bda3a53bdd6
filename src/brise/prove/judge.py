"""The judge: a model that says which of two answers is good, blinded, in both orders, by a rubric.

Its opinion alone proves nothing; `brise prove --label-source judge` corrects it by people on a random part
(docs/guides/prove.md).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from brise.errors import EvidenceError
from brise.evals.answering import Answerer
from brise.evals.example import EvalAnswer, EvalExample
from brise.files.digests import text_digest
from brise.prove.label_book import Verdict
from brise.prove.label_queue import CHOICES, Choice, Question
from brise.prove.pairs import Pair
from brise.prove.scoring import PairScores
from brise.text.conversation import plain_text

RUBRIC = """You compare two answers, A and B, to the same request. An answer is good if it does what was asked, is \
correct, and holds what is needed; length and style alone make neither good nor bad. Both may be good, and both may \
be bad. You are not told who wrote which. Reply with JSON and nothing else: {"good": "a"}, {"good": "b"}, \
{"good": "both"} or {"good": "neither"}."""
MOST_TOKENS = 64
ATTEMPTS = 2  # for each order; then the pair stays open
MOST_RUBRIC = 20_000  # characters


@dataclass(frozen=True)
class Judge:
    """The model that is asked, and its rubric."""

    answerer: Answerer
    rubric: str = RUBRIC

    def __post_init__(self) -> None:
        if not self.rubric.strip() or len(self.rubric) > MOST_RUBRIC:
            raise EvidenceError(f"the rubric has {len(self.rubric)} characters, allowed are 1 to {MOST_RUBRIC}")

    @property
    def who(self) -> str:
        """The model and the digest of its rubric: another rubric is another judge."""
        return f"{self.answerer.name} {text_digest(self.rubric)[:12]}"

    def verdict(self, pair: Pair) -> Verdict | None:
        """The mean of both orders, so that a bias for the first answer cancels; None if it gave no clear answer."""
        asked = [self._ask(Question(pair, is_swapped, False)) for is_swapped in (False, True)]
        found = [scores for scores in asked if scores is not None]
        if len(found) < len(asked):
            return None
        small, large = (sum(side) / len(found) for side in zip(*found, strict=True))
        return Verdict(pair.id, small, large, self.who, time.time(), label_source="judge")

    def _ask(self, question: Question) -> tuple[float, float] | None:
        for _ in range(ATTEMPTS):
            choice = choice_of(self.answerer.answer(self.example(question)))
            if choice is not None:
                return question.scores(choice)
        return None

    def example(self, question: Question) -> EvalExample:
        """The judge's prompt: the conversation and both answers, and neither model's name."""
        shown = {"conversation": [{"role": message["role"], "content": plain_text(message.get("content"))}
                                  for message in question.pair.prompt],
                 "A": _shown(question.a), "B": _shown(question.b)}
        pair = question.pair
        return EvalExample(({"role": "system", "content": self.rubric},
                            {"role": "user", "content": json.dumps(shown, ensure_ascii=False, indent=1)}),
                           EvalAnswer(), pair.place, pair.cluster, pair.id)


def open_pairs(pairs: Sequence[Pair], scored: PairScores, verdicts: Sequence[Verdict], who: str) -> list[Pair]:
    """The pairs that differ and have neither an outcome nor an opinion of this judge."""
    judged = {verdict.pair for verdict in verdicts if verdict.who == who}
    return [pair for at, pair in enumerate(pairs) if scored.differs[at] and pair.id not in judged
            and not any(known.label_source == "outcome" for known in pair.judgements)]


def ask_all(judge: Judge, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Verdict | None]]:
    """The verdicts in the order of the pairs; several are asked at a time."""
    judge.answerer.prepare([judge.example(Question(pair, False, False)) for pair in pairs])
    with ThreadPoolExecutor(judge.answerer.parallel, "brise-judge") as pool:
        yield from zip(pairs, pool.map(judge.verdict, pairs), strict=True)


def choice_of(answer: EvalAnswer) -> Choice | None:
    """The choice in an answer: an object with the one field `good`, and nothing around it."""
    if answer.error is not None or answer.calls:
        return None
    try:
        found = json.loads(answer.text)
    except (ValueError, RecursionError):
        return None
    said = found.get("good") if isinstance(found, dict) and len(found) == 1 else None
    return next((choice for choice in CHOICES if choice == said), None)


def _shown(answer: EvalAnswer) -> object:
    if answer.error is not None:
        return None
    if not answer.calls:
        return answer.text
    return {"text": answer.text, "calls": [{"name": call.name, "arguments": call.arguments} for call in answer.calls]}
