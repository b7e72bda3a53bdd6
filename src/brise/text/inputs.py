"""Names what a request has beside text: images of the prompt, and the grammar of its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from brise.models.weights import Array


@dataclass(frozen=True)
class Grammar:
    """A constraint on the answer: a JSON schema (as text), any JSON object, or a Lark grammar.

    `begun` is the part of the answer that is in the prompt already. `strict`: a schema that cannot be enforced whole is
    refused, and not widened.
    """

    kind: Literal["json_schema", "json_object", "lark"]
    text: str = ""
    begun: str = ""
    strict: bool = False


@dataclass(frozen=True)
class ImageInput:
    """An image in a prompt: the tokens that stand for it, and its pixels, float32 (3, height, width).

    `pixels` makes them when the vision encoder is about to run. Equal digests mean equal pixels.
    """

    digest: bytes
    tokens: tuple[int, ...]
    pixels: Callable[[], Array]
