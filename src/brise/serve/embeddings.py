"""`POST /v1/embeddings` turns texts into vectors."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from brise.dialects.sse import json_text
from brise.engine.embedding import shortened, vector_size
from brise.engine.model import LoadedModel
from brise.engine.validate import check_tokens
from brise.errors import ContextLengthError, RequestError
from brise.models.weights import Array
from brise.serve.body import read_parsed
from brise.serve.ignored import ignored_header
from brise.serve.openai_completions import Prompt, parse_prompts
from brise.serve.prompts import text_to_embed
from brise.serve.request_fields import EMBEDDING_ACTS, read_classes
from brise.serve.serving import ModelHandle, ServerState
from brise.serve.sse import unless_gone
from brise.text.fields import Ignored, RequestFields
from brise.text.json_text import Json


async def embed(serving: ServerState, request: Request) -> Response:
    """The response: one vector for each input. A model without pooling is refused, because it makes no embeddings."""
    settings = serving.settings
    ignored = None if settings.strict else Ignored()
    embedding = await read_parsed(request, settings.max_body_bytes, settings.body_timeout_s,
                                  lambda body: parse_embedding(body, ignored))
    served = serving.find(embedding.model)
    stats = request.scope["brise.stats"]
    stats.model = embedding.model
    vectors = await embedded(served, embedding, request)
    head = {"object": "list", "model": embedding.model,
            "usage": {"prompt_tokens": stats.prompt_tokens, "total_tokens": stats.prompt_tokens}}
    data = ({"object": "embedding", "index": index, "embedding": _encode(vector, embedding)}
            for index, vector in enumerate(vectors))
    return await with_list(head, "data", data, ignored_header(ignored))


async def with_list(head: Mapping[str, object], name: str, items: Iterable[object], headers: Mapping[str, str]
                    ) -> Response:
    """A response of JSON with a long list, written beside the event loop, an item at a time."""
    def written() -> bytes:
        return (json_text(head)[:-1] + f',"{name}":[' + ",".join(map(json_text, items)) + "]}").encode()

    return Response(await asyncio.to_thread(written), media_type="application/json", headers=dict(headers))


async def embedded(served: ModelHandle, embedding: EmbeddingRequest, request: Request) -> list[Array]:
    """The vectors of the inputs."""
    _check(embedding, served)
    worker = served.worker
    size = vector_size(worker.model, embedding.dimensions)
    prompts = await asyncio.to_thread(_tokens, embedding, worker.model, worker.max_context)
    request.scope["brise.stats"].prompt_tokens = sum(map(len, prompts))
    return shortened(await unless_gone(request.receive, worker.aembed(prompts)), size)


def _check(embedding: EmbeddingRequest, served: ModelHandle) -> None:
    model = served.worker.model
    if served.adapter is not None:
        raise RequestError(f"{embedding.model!r} is an adapter, and embeddings come from a model itself", param="model",
                           code="model_not_embedding", hint=f"ask {model.name!r}")
    if model.pooling is None:
        raise RequestError(f"the model {embedding.model!r} makes no embeddings: its file names no pooling",
                           param="model", code="model_not_embedding", hint="serve an embedding model")


def _tokens(embedding: EmbeddingRequest, model: LoadedModel, max_context: int) -> list[list[int]]:
    """The tokens of each input, checked here, where its place in the request is known."""
    prompts = [text_to_embed(text, model.tokenizer) for text in embedding.inputs]
    is_list = len(prompts) > 1 or embedding.is_list
    for index, (prompt, text) in enumerate(zip(prompts, embedding.inputs, strict=True)):
        place = f"{embedding.field}[{index}]" if is_list else embedding.field
        if not prompt or not text:
            raise RequestError(f"{place!r} is empty", param=place)
        try:
            check_tokens(prompt, model.config.vocab_size)
            if len(prompt) > max_context:
                raise ContextLengthError(len(prompt), 0, max_context)
        except RequestError as error:
            raise RequestError(f"{place!r}: {error.args[0]}", param=place, code=error.code) from None
    return prompts


def _encode(vector: Array, embedding: EmbeddingRequest) -> str | list[float]:
    """The vector as JSON; base64, the official client's default, holds little-endian float32."""
    if embedding.encoding == "base64":
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
    values: list[float] = np.asarray(vector, np.float32).tolist()
    return values


MAX_INPUTS = 2048  # OpenAI's limit


@dataclass(frozen=True)
class EmbeddingRequest:
    """Texts or token lists to embed."""

    model: str
    inputs: tuple[Prompt, ...]
    is_list: bool  # of texts: errors name the index
    encoding: Literal["float", "base64"]
    dimensions: int | None
    field: str = "input"  # what the request calls them


def parse_embedding(body: Json, ignored: Ignored | None = None) -> EmbeddingRequest:
    """The typed request, or a RequestError that names the field."""
    fields = RequestFields(body, ignored=ignored)
    read_classes(fields, EMBEDDING_ACTS)
    is_base64 = fields.choice("encoding_format", ("float", "base64")) == "base64"
    request = EmbeddingRequest(fields.required_text("model"), parse_prompts(fields, "input", MAX_INPUTS),
                               isinstance(first := fields.raw("input"), list) and not isinstance(first[0], int),
                               "base64" if is_base64 else "float", fields.whole("dimensions", 1, 2**20))
    fields.done()
    return request
