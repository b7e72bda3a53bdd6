"""Names what a request has beside text: images, audio, the grammar of its answer, and how it is sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from brise.models.weights import Array


@dataclass(frozen=True)
class Grammar:
    """A constraint on the answer: a JSON schema (as text), any JSON object, or a Lark grammar.

    `begun` is the part of the answer that is in the prompt already. `strict`: a schema that cannot be enforced whole is
    refused, and not widened. `takes_text`: an answer may be text, and not only calls. `has_space`: the answer may begin
    with a space, which SentencePiece puts before a text: models write "▁{" where they would write "{" otherwise.
    `free` is a Lark grammar of the same answers with any white space in their JSON, for what another model has begun.
    """

    kind: Literal["json_schema", "json_object", "lark"]
    text: str = ""
    begun: str = ""
    strict: bool = False
    takes_text: bool = True
    has_space: bool = False
    free: str = ""


@dataclass(frozen=True)
class ImageInput:
    """An image in a prompt: the tokens that stand for it, and its pixels, float32 (3, height, width).

    `pixels` makes them when the vision encoder is about to run. Equal digests mean equal pixels.
    """

    digest: bytes
    tokens: tuple[int, ...]
    pixels: Callable[[], Array]
    written: str = ""  # what the model's own chat template writes for an image, where it is known
    around: str = ""  # text before and after the tokens


@dataclass(frozen=True)
class ChunkInput:
    """A chunk of an audio in a prompt: the tokens that stand for it, and its spectrogram, float32 (frames, bands).

    `mels` makes it when the audio encoder is about to run. Equal digests mean equal spectrograms.
    """

    digest: bytes
    tokens: tuple[int, ...]
    mels: Callable[[], Array]


@dataclass(frozen=True)
class AudioInput:
    """An audio in a prompt: the token before it, and its chunks of equal length."""

    begin_token: int
    chunks: tuple[ChunkInput, ...]
    seconds: float

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens that stand for it."""
        return (self.begin_token, *(token for chunk in self.chunks for token in chunk.tokens))


@dataclass(frozen=True)
class PartialSampling:
    """How an answer is sampled, as far as a request or a model's files say it; None: they do not."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None

    @property
    def given(self) -> dict[str, object]:
        """The settings that are there."""
        return {name: value for name, value in vars(self).items() if value is not None}
