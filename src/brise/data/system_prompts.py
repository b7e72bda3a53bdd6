"""Prompt distillation: the student is trained and served without the long system prompt that its teacher needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from brise.data.example import TrainingExample
from brise.data.render import prompt_of
from brise.errors import EvidenceError
from brise.text.load import Tokens
from brise.text.protocols import Message

MAX_MEASURED = 2000  # encoding every prompt twice more would double the time of reading


@dataclass(frozen=True)
class PromptSavings:
    """What dropping the system prompt saves a request: mean prompt tokens before and after, over `num` rows."""

    before: float
    after: float
    num: int

    @property
    def tokens(self) -> float:
        return self.before - self.after

    @property
    def share(self) -> float:
        """Of a prompt's tokens."""
        return self.tokens / self.before


def absorbed(example: TrainingExample, replacement: str | None) -> TrainingExample:
    """The example as the student sees it: without system messages, or with this one instead."""
    rest = [message for message in example.messages if message["role"] != "system"]
    first: list[Message] = [] if replacement is None else [{"role": "system", "content": replacement}]
    return replace(example, messages=(*first, *rest))


def saved(examples: Sequence[TrainingExample], students: Sequence[TrainingExample], tokens: Tokens) -> PromptSavings:
    """Measures prompts of examples, evenly picked, as the server would read them."""
    if not any(message["role"] == "system" for example in examples for message in example.messages):
        raise EvidenceError("there is no system prompt to absorb: no row has one",
                            hint="leave out --absorb-system, or give the rows that the teacher answered")
    picked = range(0, len(examples), -(-len(examples) // MAX_MEASURED))
    before = sum(len(prompt_of(examples[index], tokens)) for index in picked)
    after = sum(len(prompt_of(students[index], tokens)) for index in picked)
    return PromptSavings(before / len(picked), after / len(picked), len(picked))
