"""Writes a SentencePiece vocabulary as a tokenizer.json; gguf/write_pieces.py is the reverse."""

from __future__ import annotations

import base64

from brise.errors import UnsupportedError
from brise.text.gguf_vocabulary import BYTE, NORMAL, UNUSED, USER_DEFINED
from brise.text.read_sentencepiece import PARTS
from brise.text.sentencepiece import SPACE, SentencePieceTokenizer, TextRules, merges_of


def piece_document(tokenizer: SentencePieceTokenizer) -> dict[str, object]:
    """The document, as transformers converts a tokenizer.model, without its post-processor."""
    pieces, rules = tokenizer.pieces, tokenizer.rules
    if rules.is_suffix:
        raise UnsupportedError("the tokenizer puts the space behind a text (treat_whitespace_as_suffix), for which a "
                               "tokenizer.json has no step")
    steps = {part: rules.source.get(part) for part in PARTS} if rules.source else _steps(rules)
    special = [index for index, kind in enumerate(pieces.types) if kind not in (NORMAL, UNUSED, BYTE)]
    return {
        "version": "1.0", "truncation": None, "padding": None, "post_processor": None, **steps,
        "added_tokens": [{"id": index, "content": pieces.texts[index], "single_word": False,
                          "lstrip": pieces.texts[index] in pieces.left, "rstrip": pieces.texts[index] in pieces.right,
                          "normalized": False, "special": pieces.types[index] != USER_DEFINED} for index in special],
        "model": _unigram(tokenizer) if pieces.is_unigram else _bpe(tokenizer)}


def _bpe(tokenizer: SentencePieceTokenizer) -> dict[str, object]:
    pieces = tokenizer.pieces
    vocab = {text: index for index, text in enumerate(pieces.texts) if pieces.types[index] != UNUSED}
    merges = pieces.merges
    if merges is None:
        scores = pieces.scores or [0.0] * len(pieces.texts)
        merges = merges_of({text: scores[index] for text, index in vocab.items() if pieces.types[index] == NORMAL})
    return {"type": "BPE", "dropout": None, "unk_token": _unknown(tokenizer), "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": pieces.fuses_unknown, "byte_fallback": tokenizer.has_bytes,
            "ignore_merges": pieces.ignores_merges, "vocab": vocab, "merges": [list(pair) for pair in merges]}


def _unigram(tokenizer: SentencePieceTokenizer) -> dict[str, object]:
    pieces = tokenizer.pieces
    scores = pieces.scores or [0.0] * len(pieces.texts)
    return {"type": "Unigram", "unk_id": pieces.unk_id, "byte_fallback": tokenizer.has_bytes,
            "vocab": [[text, float(score)] for text, score in zip(pieces.texts, scores, strict=True)]}


def _unknown(tokenizer: SentencePieceTokenizer) -> str | None:
    unk = tokenizer.pieces.unk_id
    return None if unk is None else tokenizer.pieces.texts[unk]


def _steps(rules: TextRules) -> dict[str, object]:
    """The steps that do what the keys of a GGUF file or a tokenizer.model say."""
    normalizers: list[dict[str, object]] = []
    if rules.charsmap:
        normalizers.append({"type": "Precompiled",
                            "precompiled_charsmap": base64.b64encode(rules.charsmap).decode("ascii")})
    if rules.removes_spaces:
        normalizers += [{"type": "Strip", "strip_left": True, "strip_right": True},
                        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]
    if rules.prefixed:
        normalizers.append({"type": "Prepend", "prepend": SPACE})
    normalizers.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    decoders = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if rules.drops else [])]
    return {"normalizer": {"type": "Sequence", "normalizers": normalizers}, "pre_tokenizer": None,
            "decoder": {"type": "Sequence", "decoders": decoders}}
