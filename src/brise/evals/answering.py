"""Answering the examples: the protocol of a system that answers, and asking it for all of them, several at once.

A system is a model on this machine (local.py), an endpoint (endpoint.py) or a baseline (baseline.py). No answer is lost
if the work is interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Protocol

from brise.errors import EvidenceError
from brise.evals import answers_file
from brise.evals.example import EvalAnswer, EvalExample

MOST_FAILURES = 20
Progress = Callable[[int], None]  # examples done


@dataclass(frozen=True)
class AnswerSettings:
    """How systems are asked. `schema` (JSON text) constrains answers; `scores` asks for the likelihood of references.

    `absorb_system` is what was done to the prompts (data.Reading).
    """

    max_tokens: int = 256
    schema: str | None = None
    scores: bool = False
    absorb_system: bool | str = False

    def identity(self) -> Mapping[str, object]:
        """The settings, as a file of answers records them."""
        return asdict(self)


class Answerer(Protocol):
    """Answers one example at a time, called from `parallel` threads. The temperature is 0."""

    name: str
    parallel: int

    def identity(self) -> Mapping[str, object]:
        """Everything that answers depend on; a file of answers is only continued under the same identity."""
    def prepare(self, examples: Sequence[EvalExample]) -> None:
        """Called once with all examples, before the first of them is asked."""
    def answer(self, example: EvalExample) -> EvalAnswer:
        """The answer, with an `error` if there is none. Raises if no other example could be answered either."""
    def close(self) -> None:
        """Stops all work. Calls of `answer` that still wait raise."""


@dataclass(frozen=True)
class Answered:
    """The answers in the order of the examples. `num_kept` came from the file; the other `num_asked` took `seconds`."""

    answers: tuple[EvalAnswer, ...]
    num_kept: int
    num_asked: int
    seconds: float


def answer_all(answerer: Answerer, examples: Sequence[EvalExample], out: Path | None, progress: Progress) -> Answered:
    """One answer for each example. Each is appended to `out`, and examples that have an answer there are not asked.

    Equal examples are asked once, and those with an error in an earlier run are asked again. The answerer is closed at
    the end, also after an interruption. If none of the first MOST_FAILURES gets an answer, no others are asked.
    """
    with ExitStack() as stack:
        file = None if out is None else stack.enter_context(
            answers_file.continued(out, answerer.name, answerer.identity()))
        kept = {} if file is None else file.answers
        answers = {digest: answer for digest, answer in kept.items() if answer.error is None}
        wanted = {example.digest: example for example in examples}
        missing = [example for digest, example in wanted.items() if digest not in answers]
        num_kept = len(wanted) - len(missing)
        progress(num_kept)
        start, failures = perf_counter(), 0

        def take(example: EvalExample, answer: EvalAnswer) -> None:
            nonlocal failures
            answers[example.digest] = answer
            if file is not None:
                file.append(example, answer)
            progress(1)
            failures += answer.error is not None
            if failures == len(answers) >= MOST_FAILURES:
                raise EvidenceError(f"none of the first {failures} examples got an answer; the last: {answer.error}")

        if missing:
            _ask(answerer, missing, take)
        return Answered(tuple(answers[example.digest] for example in examples), num_kept, len(missing),
                        perf_counter() - start)


def _ask(answerer: Answerer, examples: Sequence[EvalExample], take: Callable[[EvalExample, EvalAnswer], None]) -> None:
    """At most twice as many examples wait as are answered at once, so that Ctrl-C ends quickly."""
    pool = ThreadPoolExecutor(answerer.parallel, "brise-eval")
    try:
        answerer.prepare(examples)
        pending: dict[Future[EvalAnswer], EvalExample] = {}
        rest = iter(examples)
        while True:
            while len(pending) < 2 * answerer.parallel and (example := next(rest, None)) is not None:
                pending[pool.submit(answerer.answer, example)] = example
            if not pending:
                return
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                take(pending.pop(future), future.result())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        answerer.close()
        pool.shutdown()
