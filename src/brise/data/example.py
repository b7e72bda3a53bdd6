"""One training example: the conversation as it was read, and its tokens as the model sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from brise.models.weights import Array
from brise.text.inputs import ImageInput
from brise.text.protocols import Message


@dataclass(frozen=True)
class TrainingExample:
    """One conversation of a data file. `place` is file:line; rows of one `conversation` stay in one split.

    `provider` hosts the model that wrote the answers (rights.toml); None for people, outcomes and open models.
    """

    messages: tuple[Message, ...]
    place: str
    conversation: str
    tools: tuple[Mapping[str, object], ...] = ()
    provider: str | None = None
    meta: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Teacher:
    """The predictions of an open teacher for N targets: its K most likely tokens of each.

    The remaining probability, 1 - sum(exp(logprobs)), is lumped into one outcome.
    """

    tokens: Array  # (N, K) int32
    logprobs: Array  # (N, K) float32


@dataclass(frozen=True)
class EncodedRow:
    """An example as tokens. `is_target[t]`: token t is learned from the tokens before it; the first never is.

    `teacher` has one row for each target, in order.
    """

    tokens: Array  # (T,) int32
    is_target: Array  # (T,) bool
    place: str
    images: tuple[ImageInput, ...] = ()
    teacher: Teacher | None = None

    @property
    def num_targets(self) -> int:
        return int(self.is_target.sum())
