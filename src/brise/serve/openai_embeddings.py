"""`POST /v1/embeddings`: the request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from brise.serve.openai_completions import Prompt, parse_prompts
from brise.text.fields import Fields
from brise.text.json_text import Json

MAX_INPUTS = 2048  # OpenAI's limit


@dataclass(frozen=True)
class EmbeddingRequest:
    """Texts (or token lists) to be embedded."""

    model: str
    inputs: tuple[Prompt, ...]
    encoding: Literal["float", "base64"]
    dimensions: int | None


def parse_embedding(body: Json) -> EmbeddingRequest:
    """The typed request, or a RequestError that names the field."""
    fields = Fields(body)
    fields.text("user")
    is_base64 = fields.choice("encoding_format", ("float", "base64")) == "base64"
    request = EmbeddingRequest(fields.required_text("model"), parse_prompts(fields, "input", MAX_INPUTS),
                               "base64" if is_base64 else "float", fields.whole("dimensions", 1, 2**20))
    fields.done()
    return request
