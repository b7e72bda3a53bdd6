"""Declares what brise needs of a tokenizer, and what messages and encoded prompts are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from brise.text.inputs import AudioInput, ImageInput

# One message: `role`; `content`, a string or a list of parts; `name`, `reasoning_content`, `tool_calls`,
# `tool_call_id` where they apply. Parts are {"type": "text", "text": ...}, {"type": "thinking", "thinking": ...} and
# {"type": "image", "image": ImageInput}.
Message = Mapping[str, object]

# What stands before a text that is encoded: nothing, a special token, or text that it goes on from. SentencePiece puts
# a space before a text, where it begins.
Before = Literal["start", "special", "text"]

# Tokens that end an answer whatever the file says: many files name only one (llama.cpp does so too).
END_TEXTS = frozenset({"<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>",
                        "<|end|>", "<end_of_turn>", "</s>", "<EOT>"})


class TextSplitter(Protocol):
    """Cuts text at special tokens."""

    def split(self, text: str) -> list[str]:
        """Text and special tokens in turn."""


class TextTokenizer(Protocol):
    """Text to ids and back. Control tokens such as </s> never arise from plain text."""

    control: Mapping[str, int]
    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    text_end_id: int | None  # stands after a text that is embedded, never after a prompt that is continued
    end_ids: frozenset[int]
    vocab_size: int

    @property
    def splitter(self) -> TextSplitter:
        """Cuts text at special tokens."""
    def encode(self, text: str, *, parse_control: bool = False, before: Before = "start") -> list[int]:
        """Ids of the text, without bos. With parse_control, special tokens in it become control tokens."""
    def decode(self, ids: Iterable[int], *, show_control: bool = False) -> str:
        """Text of the ids; bytes that are no UTF-8 become U+FFFD."""
    def token_bytes(self, token: int, *, show_control: bool = False) -> bytes:
        """What a token adds to the text, maybe half a character. Nothing for a control token unless shown."""
    def token_text(self, token: int) -> str:
        """A token for display: control tokens by name, half characters as U+FFFD."""
    def is_control(self, token: int) -> bool:
        """Whether the token is no text."""
    def drops_space_after(self, token: int | None) -> bool:
        """Whether a space that begins the text behind this token (None: at the start) is the tokenizer's own."""


@dataclass(frozen=True)
class Encoded:
    """A conversation as the model reads it; `images` and `audios` in the order in which their tokens stand in it."""

    tokens: tuple[int, ...]
    images: tuple[ImageInput, ...] = ()
    audios: tuple[AudioInput, ...] = ()


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
