"""What the rest of brise needs of a tokenizer and of a chat format, wherever they come from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from brise.text.inputs import ImageInput

if TYPE_CHECKING:  # its grammars are made of protocols' tokenizers
    from brise.text.answer_format import AnswerFormat

# One message: `role`; `content`, a string or a list of parts; `name`, `reasoning_content`, `tool_calls`,
# `tool_call_id` where they apply. Parts are {"type": "text", "text": ...}, {"type": "thinking", "thinking": ...} and
# {"type": "image", "image": ImageInput}.
Message = Mapping[str, object]


class TextTokenizer(Protocol):
    """Text to ids and back. Control strings such as </s> never arise from plain text."""

    control: Mapping[str, int]
    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    end_ids: frozenset[int]
    vocab_size: int

    def encode(self, text: str, *, parse_control: bool = False) -> list[int]:
        """Ids of the text, without bos. With parse_control, control strings in it become control tokens."""
    def decode(self, ids: Iterable[int], *, show_control: bool = False) -> str:
        """Text of the ids; bytes that are no UTF-8 become U+FFFD."""
    def token_bytes(self, token: int, *, show_control: bool = False) -> bytes:
        """What a token adds to the text, maybe half a character. Nothing for a control token unless shown."""
    def token_text(self, token: int) -> str:
        """A token to look at: control tokens by name, half characters as U+FFFD."""
    def is_control(self, token: int) -> bool:
        """Whether the token is no text."""


@dataclass(frozen=True)
class Encoded:
    """A conversation as the model reads it; `images` in the order in which their tokens stand in it."""

    tokens: tuple[int, ...]
    images: tuple[ImageInput, ...] = ()


class Chat(Protocol):
    """A model's chat format: messages to tokens, and what its answers look like."""

    knows_tools: bool
    format: AnswerFormat

    def prompt(self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, object]] | None = None,
               add_generation_prompt: bool = True, continue_final: bool = False) -> Encoded:
        """A conversation. With continue_final the last message, an assistant's, stays open."""


def texts_of(value: object) -> Iterable[str]:
    """Every string in a message or a tool, the keys of mappings too."""
    match value:
        case str():
            yield value
        case Mapping():
            for key, item in value.items():
                yield from texts_of(key)
                yield from texts_of(item)
        case list() | tuple():
            for item in value:
                yield from texts_of(item)


def parts_of(content: object) -> list[Mapping[str, object]]:
    """A message's content as parts."""
    match content:
        case None | "":
            return []
        case str():
            return [{"type": "text", "text": content}]
        case list() | tuple():
            return [part for part in content if isinstance(part, Mapping)]
        case _:
            raise TypeError(f"content is {type(content).__name__}")


def kinds_of(content: object) -> Collection[object]:
    """The types of a message's parts."""
    return {part["type"] for part in parts_of(content)}
