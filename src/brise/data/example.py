"""What is trained on: a conversation as it was read, and as the model sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from brise.models.weights import Array
from brise.text.inputs import ImageInput
from brise.text.protocols import Message


@dataclass(frozen=True)
class TrainingExample:
    """One conversation of a data file. `place` is file:line; rows of one `conversation` stay in one split.

    `provider` is who wrote the answers, if a hosted model did (rights.toml); None: people, outcomes, open models.
    """

    messages: tuple[Message, ...]
    place: str
    conversation: str
    tools: tuple[Mapping[str, object], ...] = ()
    provider: str | None = None
    meta: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Teacher:
    """What an open teacher predicts where the student is trained: for N targets its K likeliest tokens.

    The rest of its probability is 1 - sum(exp(logprobs)), which is lumped into one outcome.
    """

    tokens: Array  # (N, K) int32
    logprobs: Array  # (N, K) float32


@dataclass(frozen=True)
class EncodedRow:
    """An example as tokens. `is_target[t]`: token t is learned, from those before it; never the first.

    `teacher` has a line for each target, in order.
    """

    tokens: Array  # (T,) int32
    is_target: Array  # (T,) bool
    place: str
    images: tuple[ImageInput, ...] = ()
    teacher: Teacher | None = None

    @property
    def num_targets(self) -> int:
        return int(self.is_target.sum())
