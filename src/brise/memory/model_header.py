"""A model's header, from which memory is planned: no byte of its weights is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from brise.checkpoint.generation import Generation
from brise.checkpoint.gguf.file import StringArray
from brise.checkpoint.open import Checkpoint, open_checkpoint
from brise.checkpoint.requantize import requantized, requantized_encoder
from brise.files.fields import IgnoredKey
from brise.memory.process import MISTRAL_BYTES, Vocabulary
from brise.models.config import Config
from brise.models.siglip import ImageConfig, ImageWeights
from brise.models.weights import Weights
from brise.models.whisper import AudioConfig, AudioWeights
from brise.text import load

# Merges for each piece of a SentencePiece BPE, which has only scores: 1.8 in Mistral's, 2.2 in Gemma's.
_PIECE_MERGES = 2.2
# Bytes of a token and of a merge in a tokenizer.json, with their quotes, commas and numbers.
_JSON_TOKEN_BYTES, _JSON_MERGE_BYTES = 25, 30


@dataclass(frozen=True)
class ModelHeader:
    """A model without its weights: configuration, shapes and formats, and the size of its vocabulary."""

    name: str
    config: Config
    weights: Weights
    vocabulary: Vocabulary
    vision: tuple[ImageConfig, ImageWeights] | None = None
    makes_embeddings: bool = False
    ignored: tuple[IgnoredKey, ...] = ()  # keys of its description that change nothing
    generation: Generation = Generation()
    audio: tuple[AudioConfig, AudioWeights] | None = None


def read_header(path: Path, name: str, weights: str | None = None) -> ModelHeader:
    """The header of the model at `path`, with its matrices in the formats that `load` would quantize them to."""
    checkpoint = open_checkpoint(path)
    tree, vision, audio, generation = (checkpoint.weights(), checkpoint.vision, checkpoint.audio,
                                       checkpoint.generation)
    if weights is not None:
        tree = requantized(tree, checkpoint.config, weights, checkpoint.forget)
        if vision is not None:
            vision = vision[0], requantized_encoder(vision[1], weights, checkpoint.forget)
        if audio is not None:
            audio = audio[0], requantized_encoder(audio[1], weights, checkpoint.forget)
    return ModelHeader(name, checkpoint.config, tree, _vocabulary(checkpoint), vision,
                       makes_embeddings=checkpoint.pooling is not None,
                       ignored=(*checkpoint.ignored, *generation.notes), generation=generation, audio=audio)


def _vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    """The size of the tokenizer, from the lists of a GGUF file or from the size of the tokenizer's file."""
    size = checkpoint.config.vocab_size
    tekken, document = checkpoint.folder / "tekken.json", checkpoint.folder / "tokenizer.json"
    if tekken.is_file():
        return Vocabulary(size, 0, 0, library_bytes=MISTRAL_BYTES)
    pieces, versioned = checkpoint.folder / "tokenizer.model", load.versioned(checkpoint.folder)
    if versioned is not None and checkpoint.metadata.get("tokenizer.ggml.model", "llama") == "llama":
        return Vocabulary(size, int(_PIECE_MERGES * size), versioned.stat().st_size, library_bytes=MISTRAL_BYTES)
    texts = [value for key, value in checkpoint.metadata.items()
             if key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges") and isinstance(value, StringArray)]
    if texts:
        merges = sum(map(len, texts)) - size
        if not merges and checkpoint.metadata.get("tokenizer.ggml.model") == "llama":
            merges = int(_PIECE_MERGES * size)
        return Vocabulary(size, merges, sum(text.nbytes for text in texts))
    if pieces.is_file() and not document.is_file():
        return Vocabulary(size, int(_PIECE_MERGES * size), pieces.stat().st_size)
    nbytes = document.stat().st_size if document.is_file() else 0
    merges = max(nbytes - _JSON_TOKEN_BYTES * size, 0) // _JSON_MERGE_BYTES
    return Vocabulary(size, merges, nbytes)
