"""Labels for a proof: `session` is for people who say which of two answers is good, `ask_judge` for a model that does.

Only answers that differ are asked about, and nobody is told which model wrote which.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from brise import settings
from brise.errors import EvidenceError
from brise.evals.answering import AnswerSettings
from brise.evals.endpoint import Endpoint, EndpointAnswerer
from brise.prove import judge as judges
from brise.prove import label_queue, scoring, sources
from brise.prove.label_book import Book, FileBook, StoreBook, Verdict
from brise.prove.label_queue import Choice, Question, Steadiness
from brise.prove.options import PairOptions, check_named
from brise.prove.pairs import Pair
from brise.prove.proof import Terms, plan
from brise.prove.scoring import PairScores
from brise.watch import SILENT, Watcher

PARALLEL = 4


@dataclass(frozen=True)
class JudgeOptions:
    """A model at an OpenAI-compatible `endpoint`, and the file of the rubric that it judges by (None: RUBRIC).

    `send_traffic` allows an endpoint that is not on this machine. `parallel` pairs are asked about at one time.
    """

    endpoint: str | None = None
    model: str | None = None
    key_env: str | None = None
    rubric: Path | None = None
    send_traffic: bool = False
    parallel: int = PARALLEL


@dataclass(frozen=True)
class LabelOptions:
    """Which pairs, who labels, and how many at most. With `draw` people see only a random share, to correct a judge.

    Verdicts on a log are kept in the file `pairs.judgements`, those on captured traffic in its store.
    """

    pairs: PairOptions = field(default_factory=PairOptions)
    draw: float | None = None
    who: str = "person"
    number: int | None = None
    judge: JudgeOptions = field(default_factory=JudgeOptions)


@dataclass(frozen=True)
class LabelSummary:
    """Of `differing` pairs `judged` have a verdict; the plan for 2 points needs `needed`. `steady`: how far two
    verdicts on the same pair agree.
    """

    judged: int
    differing: int
    needed: int
    steady: Steadiness | None


@dataclass(frozen=True)
class JudgedPairs:
    """The number of a judge's verdicts, and of pairs without a clear answer."""

    who: str
    verdicts: int
    still_open: int


class LabelSession:
    """The questions that are still to be asked, and the book in which verdicts are kept."""

    def __init__(self, options: LabelOptions, pairs: Sequence[Pair], scored: PairScores, book: Book) -> None:
        self._options, self._pairs, self._scored, self._book = options, pairs, scored, book
        self.questions: Sequence[Question] = [
            question for question in label_queue.queue(pairs, scored, book.verdicts())
            if options.draw is None or scoring.is_drawn(question.pair, options.draw)]

    def answer(self, question: Question, choice: Choice) -> None:
        """Keeps a verdict; it is there after a crash."""
        give(self._book, question, choice, self._options.who)

    def summary(self) -> LabelSummary:
        """How far the labels go."""
        verdicts = self._book.verdicts()
        first = {verdict.pair for verdict in verdicts if not verdict.is_second}
        differing = [pair.id for pair, differs in zip(self._pairs, self._scored.differs, strict=True) if differs]
        return LabelSummary(sum(id in first for id in differing), len(differing),
                            plan(self._pairs, self._scored, Terms()).labels, label_queue.steadiness(verdicts))


def give(book: Book, question: Question, choice: Choice, who: str) -> None:
    """Writes a person's verdict down, wherever it was given."""
    small, large = question.scores(choice)
    book.write(question.pair, Verdict(question.pair.id, small, large, who, time.time(), question.is_second))


@contextmanager
def session(options: LabelOptions) -> Iterator[LabelSession]:
    """The questions for people. EvidenceError if the options name a judge, or contradict each other."""
    assert check(options) is None, "a judge is asked by ask_judge"
    with _labelled(options) as (pairs, scored, book):
        yield LabelSession(options, pairs, scored, book)


def ask_judge(options: LabelOptions, watcher: Watcher = SILENT) -> JudgedPairs:
    """Asks the judge about every pair that it has not judged yet; each verdict is kept as it comes."""
    endpoint, asked = check(options), options.judge
    if endpoint is None:
        raise EvidenceError("no judge is named", hint="--judge-endpoint URL")
    answerer = EndpointAnswerer(endpoint, AnswerSettings(judges.MOST_TOKENS), parallel=asked.parallel)
    judge = judges.Judge(answerer) if asked.rubric is None else judges.Judge(answerer, _text(asked.rubric))
    with _labelled(options) as (pairs, scored, book):
        waiting = judges.open_pairs(pairs, scored, book.verdicts("judge"), judge.who)[:options.number]
        watcher.note(f"{len(waiting)} pairs, each twice; requests and answers go to {endpoint.url}")
        given = 0
        try:
            for pair, verdict in judges.ask_all(judge, waiting):
                if verdict is not None:
                    book.write(pair, verdict)
                    given += 1
        finally:
            answerer.close()
    return JudgedPairs(judge.who, given, len(waiting) - given)


def check(options: LabelOptions) -> Endpoint | None:
    """The judge's endpoint, None where people are asked; EvidenceError for options that contradict each other."""
    check_named(options.pairs)
    endpoint = _endpoint(options)
    if options.pairs.log is not None and options.pairs.judgements is None:
        raise EvidenceError("--pairs needs --judgements FILE, in which the verdicts are kept")
    return endpoint


def _endpoint(options: LabelOptions) -> Endpoint | None:
    judge = options.judge
    if judge.endpoint is None:
        for option, value in (("judge-model", judge.model), ("judge-key-env", judge.key_env), ("rubric", judge.rubric),
                              ("send-traffic", judge.send_traffic)):
            if value:
                raise EvidenceError(f"--{option} is for a judge", hint="--judge-endpoint URL")
        return None
    if judge.model is None:
        raise EvidenceError("--judge-endpoint needs --judge-model NAME")
    if options.draw is not None:
        raise EvidenceError("--draw is for people, a judge looks at every pair that differs")
    endpoint = Endpoint(judge.endpoint, judge.model, None if judge.key_env is None else settings.secret(judge.key_env))
    if not endpoint.is_here and not judge.send_traffic:
        raise EvidenceError(f"the judge at {judge.endpoint} is not on this machine, and would see requests and "
                            "answers", hint="--send-traffic allows it; brise serve MODEL is one on this machine")
    return endpoint


@contextmanager
def _labelled(options: LabelOptions) -> Iterator[tuple[Sequence[Pair], PairScores, Book]]:
    """The pairs, which of them differ, and where verdicts on them are kept."""
    asked = replace(options.pairs, settle_s=0.0)
    with sources.opened(asked) as store:
        pairs = sources.select(asked, store).chosen.pairs
        if store is None or asked.log is not None:
            assert asked.judgements is not None, "checked before"
            book: Book = FileBook(asked.judgements)
        else:
            book = StoreBook(store, pairs)
        yield pairs, scoring.score(pairs, "human", None), book


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvidenceError(f"cannot read the rubric {str(path)!r}: {error}") from None
