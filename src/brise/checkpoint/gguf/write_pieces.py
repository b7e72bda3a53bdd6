"""Writes a SentencePiece vocabulary as the tokenizer.ggml.* keys of a GGUF file, as llama.cpp's converter does.

What these keys cannot say, the steps of a tokenizer.json and its merges, stands in keys of its own beside them
(text/read_sentencepiece.py), so that our reader gives the ids of the source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from brise.errors import CheckpointError, UnsupportedError
from brise.text.gguf_vocabulary import UNUSED, USER_DEFINED
from brise.text.read_sentencepiece import STEPS_KEY
from brise.text.sentencepiece import SPACE, Pieces, SentencePieceTokenizer

_PADDING_SCORE = -10000.0  # llama.cpp's converter: no text becomes a token that fills up the vocabulary


def piece_keys(tokenizer: SentencePieceTokenizer, vocab_size: int, padding_id: int | None) -> dict[str, object]:
    """The keys of a vocabulary that is filled up to `vocab_size` tokens."""
    pieces, rules = tokenizer.pieces, tokenizer.rules
    if rules.is_suffix:
        raise UnsupportedError("the tokenizer puts the space behind a text (treat_whitespace_as_suffix), for which "
                               "GGUF has no key")
    count = len(pieces.texts)
    if count > vocab_size:
        raise CheckpointError(f"the tokenizer has {count} tokens, the model {vocab_size} embeddings", field="tokens",
                              value=count, limit=vocab_size)
    padding = range(count, vocab_size)
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unknown": pieces.unk_id, "padding": padding_id}
    keys: dict[str, object] = {
        "model": "t5" if pieces.is_unigram else "llama", "pre": "default",
        "tokens": [*_texts(tokenizer), *(f"[PAD{index}]" for index in padding)],
        "scores": np.array([*_scores(pieces), *[_PADDING_SCORE] * len(padding)], np.float32),
        "token_type": np.array([*pieces.types, *[UNUSED] * len(padding)], np.int32),
        **{f"{name}_token_id": index for name, index in ids.items() if index is not None},
        "add_bos_token": tokenizer.add_bos, "add_space_prefix": bool(rules.prefixed)}
    if rules.charsmap:
        keys["precompiled_charsmap"] = np.frombuffer(rules.charsmap, np.uint8)
    if pieces.is_unigram or rules.removes_spaces:
        keys["remove_extra_whitespaces"] = rules.removes_spaces
    if pieces.merges is not None:
        keys["merges"] = [f"{left} {right}" for left, right in pieces.merges]
    if tokenizer.text_end_id is not None:
        keys |= {"add_eos_token": True, "eos_token_id": tokenizer.text_end_id}
    named = {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
    return named if not rules.source else named | {STEPS_KEY: _steps(tokenizer)}


def _texts(tokenizer: SentencePieceTokenizer) -> list[str]:
    """The pieces; the spaces of user-defined ones are spaces, since readers of GGUF show them as they are."""
    pieces = tokenizer.pieces
    return [text.replace(SPACE, " ") if kind == USER_DEFINED else text
            for text, kind in zip(pieces.texts, pieces.types, strict=True)]


def _scores(pieces: Pieces) -> list[float]:
    """The scores; of a BPE by merges those that put its pieces into the order of the merges."""
    if pieces.scores is not None:
        return list(pieces.scores)
    order: dict[str, float] = {}
    for left, right in pieces.merges or ():
        order.setdefault(left + right, -float(len(order)))
    return [order.get(text, 0.0) for text in pieces.texts]


def _steps(tokenizer: SentencePieceTokenizer) -> str:
    source: Mapping[str, object] = tokenizer.rules.source
    escaped = [index for index, kind in enumerate(tokenizer.pieces.types)
               if kind == USER_DEFINED and SPACE in tokenizer.pieces.texts[index]]
    return json.dumps({**source, "escaped": escaped, "lstrip": sorted(tokenizer.pieces.left),
                       "rstrip": sorted(tokenizer.pieces.right)}, ensure_ascii=False)
