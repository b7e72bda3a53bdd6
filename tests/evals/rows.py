"""Examples and answers for the tests of brise.evals."""

from __future__ import annotations

import json
from pathlib import Path

from brise.evals.example import AnsweredCall, EvalAnswer, EvalExample


def example(reference: str | EvalAnswer, question: str = "?", number: int = 0, *, conversation: str | None = None,
            task: str | None = None) -> EvalExample:
    """One question with its answer; `number` makes it differ from others."""
    answer = EvalAnswer(reference) if isinstance(reference, str) else reference
    return EvalExample(({"role": "user", "content": question},), answer, f"data.jsonl:{number + 1}",
                       conversation or f"conversation {number}", f"digest {number}",
                       meta={} if task is None else {"task": task})


def examples(*references: str) -> list[EvalExample]:
    """One conversation each."""
    return [example(reference, number=number) for number, reference in enumerate(references)]


def called(name: str, arguments: str) -> EvalAnswer:
    """An answer that is a tool call."""
    return EvalAnswer(calls=(AnsweredCall(name, arguments),))


def write(path: Path, *pairs: tuple[str, str], task: str | None = None, system: str | None = None) -> Path:
    """A data file of (question, answer)."""
    first = [] if system is None else [{"role": "system", "content": system}]
    rows = [{"messages": [*first, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
            | ({} if task is None else {"meta": {"task": task}}) for question, answer in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
