"""Who answers: a model on this machine, an endpoint, or a baseline; and what they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from brise.evals.example import EvalAnswer, EvalExample


@dataclass(frozen=True)
class AnswerSettings:
    """How all of them are asked. `schema` (JSON text) constrains answers; `scores` wants the references' likelihood.

    `absorb_system` is what was done to the prompts (data.Reading).
    """

    max_tokens: int = 256
    schema: str | None = None
    scores: bool = False
    absorb_system: bool | str = False

    def identity(self) -> Mapping[str, object]:
        """All of it, for the settings of a file of answers."""
        return asdict(self)


class Answerer(Protocol):
    """Answers one example at a time, from `parallel` threads at once. Temperature is 0 throughout."""

    name: str
    parallel: int

    def identity(self) -> Mapping[str, object]:
        """What answers depend on; a file of answers is only continued under the same one."""
    def prepare(self, examples: Sequence[EvalExample]) -> None:
        """Hears of all examples that will be asked, once and before the first."""
    def answer(self, example: EvalExample) -> EvalAnswer:
        """The answer; one that cannot be given has its `error`. Raises if no other example could be answered either."""
    def close(self) -> None:
        """Stops what runs. Answers that are still waited for raise."""
