"""The protocol of a system that answers: a model on this machine, an endpoint, or a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from brise.evals.example import EvalAnswer, EvalExample


@dataclass(frozen=True)
class AnswerSettings:
    """What every system is asked for. `schema` (JSON text) constrains answers; `scores` asks for the references' score.

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
