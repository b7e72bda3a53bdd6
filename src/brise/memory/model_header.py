"""What there is to plan: a model's header, without a byte of its weights."""

from __future__ import annotations

from pathlib import Path

from brise.checkpoint.gguf.file import StringArray
from brise.checkpoint.open import Checkpoint, open_checkpoint
from brise.checkpoint.requantize import requantized, requantized_vision
from brise.memory.process import MISTRAL_BYTES, Vocabulary
from brise.memory.serving_plan import ModelHeader

# A tokenizer.json has its merges and tokens as JSON text, with quotes, commas and numbers: bytes for one of either.
_JSON_TOKEN_BYTES, _JSON_MERGE_BYTES = 25, 30

_POOLING = "{}.pooling_type"


def describe(path: Path, name: str, weights: str | None = None) -> ModelHeader:
    """The model at `path`, with `weights` as `load` would quantise it."""
    checkpoint = open_checkpoint(path)
    tree, vision = checkpoint.weights(), checkpoint.vision
    if weights is not None:
        tree = requantized(tree, checkpoint.config, weights, checkpoint.forget)
        if vision is not None:
            vision = vision[0], requantized_vision(vision[1], weights, checkpoint.forget)
    return ModelHeader(name, checkpoint.config, tree, _vocabulary(checkpoint), vision,
                       makes_embeddings=bool(checkpoint.metadata.get(_POOLING.format(
                       checkpoint.metadata.get("general.architecture")), 0)))


def _vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    """The tokenizer's size: from the GGUF's lists, or from the size of its file."""
    size = checkpoint.config.vocab_size
    tekken, document = checkpoint.folder / "tekken.json", checkpoint.folder / "tokenizer.json"
    if tekken.is_file():
        return Vocabulary(size, 0, 0, library_bytes=MISTRAL_BYTES)
    texts = [value for key, value in checkpoint.metadata.items()
             if key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges") and isinstance(value, StringArray)]
    if texts:
        return Vocabulary(size, sum(map(len, texts)) - size, sum(text.nbytes for text in texts))
    nbytes = document.stat().st_size if document.is_file() else 0
    merges = max(nbytes - _JSON_TOKEN_BYTES * size, 0) // _JSON_MERGE_BYTES
    return Vocabulary(size, merges, nbytes)
