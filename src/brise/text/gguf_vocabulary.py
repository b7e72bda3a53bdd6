"""Reads the vocabulary keys of a GGUF file, `tokenizer.ggml.*`, with bounds.

`model` says the kind: gpt2 (byte-level BPE), llama (SentencePiece BPE) or t5 (SentencePiece Unigram). For all of them:
tokens, token_type (1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte), bos_token_id, eos_token_id,
eot_token_id, eom_token_id, add_bos_token, add_eos_token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from brise.errors import CheckpointError, UnsupportedError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
MODELS = ("gpt2", "llama", "t5")
MAX_TOKENS = 1 << 21  # the largest vocabularies in use have 2^18; a false header must not fill the memory


@dataclass(frozen=True)
class Ends:
    """The tokens at the ends of texts and answers."""

    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    text_end_id: int | None
    end_ids: tuple[int, ...]


def read_ends(metadata: Mapping[str, object], count: int, *, add_bos: bool) -> Ends:
    """The file's ends; `add_bos` holds where it says nothing."""
    bos_id, eos_id = token_id(metadata, "bos", count), token_id(metadata, "eos", count)
    text_end_id = eos_id if metadata.get(key("add_eos_token")) else None
    if text_end_id is not None and not metadata.get(f"{metadata.get('general.architecture')}.pooling_type"):
        raise UnsupportedError("tokenizer.ggml.add_eos_token is true, and the model makes no embeddings; brise "
                               "never ends a prompt so that is to be continued")
    ends = (eos_id, token_id(metadata, "eot", count), token_id(metadata, "eom", count))
    return Ends(bos_id, eos_id, bool(metadata.get(key("add_bos_token"), add_bos)) and bos_id is not None, text_end_id,
                tuple(end for end in ends if end is not None))


def key(name: str) -> str:
    """The key of this name."""
    return f"tokenizer.ggml.{name}"


def strings(metadata: Mapping[str, object], name: str) -> Sequence[str]:
    """A list of strings."""
    value = metadata.get(key(name))
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise CheckpointError(f"{key(name)} is missing or no list", field=key(name),
                              value=type(value).__name__, limit="a list of strings")
    if len(value) > MAX_TOKENS:
        raise CheckpointError(f"{key(name)} has {len(value)} entries; at most {MAX_TOKENS}",
                              field=key(name), value=len(value), limit=MAX_TOKENS)
    if isinstance(value, list | tuple) and not set(map(type, value)) <= {str}:  # arrays of strings hold nothing else
        raise CheckpointError(f"{key(name)} holds something that is no string", field=key(name))
    return value


def token_types(metadata: Mapping[str, object], count: int) -> list[int]:
    """The type of each token."""
    value = metadata.get(key("token_type"))
    if value is None:
        raise CheckpointError("tokenizer.ggml.token_type is missing", field=key("token_type"))
    if not isinstance(value, Iterable):
        raise CheckpointError("tokenizer.ggml.token_type is no list", field=key("token_type"), value=value)
    try:
        types = [int(kind) for kind in (value.tolist() if isinstance(value, np.ndarray) else value)]
    except (TypeError, ValueError) as error:
        raise CheckpointError("tokenizer.ggml.token_type holds something that is no number",
                              field=key("token_type")) from error
    if len(types) != count:
        raise CheckpointError(f"tokenizer.ggml.token_type has {len(types)} entries for {count} tokens",
                              field=key("token_type"), value=len(types), limit=count)
    return types


def token_id(metadata: Mapping[str, object], name: str, count: int) -> int | None:
    """The id of a token by its use; None if there is none."""
    path = key(f"{name}_token_id")
    value = metadata.get(path)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or (name != "eos" and isinstance(value, int) and not 0 <= value < count):
        return None  # as llama.cpp takes it, which only warns; without an eos answers would not end
    if not isinstance(value, int) or not 0 <= value < count:
        raise CheckpointError(f"{path} is {value!r}; there are {count} tokens", field=path, value=value,
                              limit=count)
    return value
