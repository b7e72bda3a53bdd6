"""Reads a tokenizer.model, SentencePiece's own file: a protobuf message, with a bound on every length.

    ModelProto       1 pieces (SentencePiece), 2 TrainerSpec, 3 NormalizerSpec
    SentencePiece    1 piece, 2 score (float), 3 type (1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte)
    TrainerSpec      3 model_type (1 Unigram, 2 BPE), 24 treat_whitespace_as_suffix, 45 to 47 unk_, bos_, eos_piece
    NormalizerSpec   2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces, 5 escape_whitespaces

From sentencepiece's src/sentencepiece_model.proto. The other fields concern the training of the vocabulary.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from brise.errors import CheckpointError, UnsupportedError, bad_value
from brise.text.gguf_vocabulary import BYTE, MAX_TOKENS, NORMAL, UNKNOWN

MAX_FILE_BYTES = 1 << 26  # Gemma's 262,144 pieces have 4.7 MB
MAX_PIECES = MAX_TOKENS
UNIGRAM, BPE = 1, 2

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_Value = int | bytes


@dataclass(frozen=True)
class SentencePieceFile:
    """What a tokenizer.model says. `pieces`, `scores` and `types` are by id."""

    pieces: list[str]
    scores: list[float]
    types: list[int]
    is_unigram: bool
    charsmap: bytes
    adds_prefix: bool
    removes_spaces: bool
    is_suffix: bool  # the space that stands for the border of the text comes last
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None


def read(path: Path) -> SentencePieceFile:
    """The file; CheckpointError says what is broken in it."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise bad_value(f"size of {path.name}", path.stat().st_size, f"at most {MAX_FILE_BYTES} bytes")
    try:
        return _model(path.read_bytes(), path.name)
    except (ValueError, struct.error, IndexError, TypeError) as error:
        raise CheckpointError(f"{path.name} is no SentencePiece model: {error}", field=path.name,
                              hint="a tokenizer.model of another kind (tiktoken's is text) is not read") from error


def _model(data: bytes, name: str) -> SentencePieceFile:
    pieces: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, _Value] = {}
    normalizer: dict[int, _Value] = {}
    for number, value in _fields(data):
        match number, value:
            case 1, bytes():
                if len(pieces) == MAX_PIECES:
                    raise bad_value(f"number of pieces of {name}", "more", f"at most {MAX_PIECES}")
                piece, score, kind = _piece(value)
                pieces.append(piece)
                scores.append(score)
                types.append(kind)
            case 2, bytes():
                trainer = dict(_fields(value))
            case 3, bytes():
                normalizer = dict(_fields(value))
    if not pieces:
        raise ValueError("it has no pieces")
    model_type = trainer.get(3, UNIGRAM)
    if model_type not in (UNIGRAM, BPE):
        raise UnsupportedError(f"{name} is a SentencePiece model of type {model_type!r}; brise reads 1 (Unigram) "
                               "and 2 (BPE)")
    if not normalizer.get(5, 1):
        raise UnsupportedError(f"{name} has escape_whitespaces = false; brise reads models whose space is '\u2581'")
    charsmap = normalizer.get(2, b"")
    assert isinstance(charsmap, bytes) or not charsmap, "checked by its wire type"
    names = {key: _name(trainer, number, default) for key, number, default in
             (("unk", 45, "<unk>"), ("bos", 46, "<s>"), ("eos", 47, "</s>"))}
    ids = {key: pieces.index(text) if text in pieces else None for key, text in names.items()}
    return SentencePieceFile(pieces, scores, types, model_type == UNIGRAM, bytes(charsmap or b""),
                             bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1)), bool(trainer.get(24, 0)),
                             ids["bos"], ids["eos"], types.index(UNKNOWN) if UNKNOWN in types else ids["unk"])


def _name(trainer: dict[int, _Value], number: int, default: str) -> str:
    value = trainer.get(number)
    return value.decode() if isinstance(value, bytes) else default


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = b"", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value
        elif number == 2 and isinstance(value, bytes):
            score = float(struct.unpack("<f", value)[0])
        elif number == 3 and isinstance(value, int):
            kind = value
    if not text or not NORMAL <= kind <= BYTE or score != score:
        raise ValueError(f"the piece {text[:80]!r} has the type {kind} and the score {score}")
    return text.decode(), score, kind


def _fields(data: bytes) -> Iterator[tuple[int, _Value]]:
    """The fields of a message: its number, and a varint as a number, anything else as bytes."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"a field has the wire type {wire}")
        if size > end - at:
            raise ValueError(f"a field of {size} bytes begins {end - at} bytes before the end")
        yield number, data[at:at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = data[at]
    if value < 0x80:  # nearly all of them
        return value, at + 1
    value, shift = value & 0x7F, 7
    while shift < 64:
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
        shift += 7
    raise ValueError("a number has more than 64 bits")
