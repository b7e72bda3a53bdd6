"""Digests that tell whether two conversations are the same: whole, up to the last answer, or in their opening."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from brise.data.example import TrainingExample
from brise.text.inputs import ImageInput
from brise.text.protocols import Message

_DERIVED = "opening:"


def whole(example: TrainingExample) -> bytes:
    """The digest of the whole example: rows with equal digests are duplicates."""
    return _digest(example.messages, example.tools)


def prompt(example: TrainingExample) -> bytes:
    """The digest of everything before the last answer: rows with equal digests ask the same."""
    return _digest(example.messages[:_last_answer(example.messages)], example.tools)


def opening(example: TrainingExample) -> bytes:
    """The digest of the beginning, up to and including the first answer."""
    first = next(index for index, message in enumerate(example.messages) if message["role"] == "assistant")
    return _digest(example.messages[:first + 1], example.tools)


def derived_conversation(messages: Sequence[Message], tools: Sequence[Mapping[str, object]]) -> str:
    """A name for a conversation without one: rows that begin with the same question count as one conversation."""
    first = next((index for index, message in enumerate(messages) if message["role"] == "user"), 0)
    return _DERIVED + _digest(messages[:first + 1], tools).hex()


def is_derived(conversation: str) -> bool:
    """Whether `derived_conversation` made the name."""
    return conversation.startswith(_DERIVED)


def canonical(value: object) -> str:
    """JSON text that is equal for equal values; an image is represented by its digest."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=_as_json)


def _last_answer(messages: Sequence[Message]) -> int:
    return max(index for index, message in enumerate(messages) if message["role"] == "assistant")


def _digest(messages: Sequence[Message], tools: Sequence[Mapping[str, object]]) -> bytes:
    return hashlib.sha256(canonical([messages, tools]).encode()).digest()[:16]


def _as_json(value: object) -> object:
    match value:
        case ImageInput():
            return value.digest.hex()
        case Mapping():
            return dict(value)
        case _:
            raise TypeError(f"{type(value).__name__} in a message")
