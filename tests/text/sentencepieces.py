"""SentencePiece vocabularies that tests train, the ways in which others convert them, and mixed texts."""

from __future__ import annotations

import io
import random
from functools import cache
from pathlib import Path
from typing import Literal

import mistral_common
import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library
from tokenizers.models import BPE, Unigram
from transformers.convert_slow_tokenizer import generate_merges

MISTRAL = Path(mistral_common.__file__).parent / "data"
V1, V2, V3, V7 = (MISTRAL / name for name in (
    "tokenizer.model.v1", "mistral_instruct_tokenizer_240216.model.v2", "mistral_instruct_tokenizer_240323.model.v3",
    "mistral_instruct_tokenizer_241114.model.v7"))
Kind = Literal["bpe", "unigram"]

PROSE = (Path(__file__).parents[2] / "ARCHITECTURE.md").read_text(encoding="utf-8")
_RANGES = [*[(0x20, 0x7E)] * 8, (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF),
           (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1E00, 0x1EFF), (0x2000, 0x206F),
           (0x2100, 0x214F), (0x2460, 0x24FF), (0x3040, 0x30FF), (0x3200, 0x33FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
           (0xF900, 0xFAFF), (0xFB00, 0xFB4F), (0xFF00, 0xFFEF), (0x1D400, 0x1D7FF), (0x1F300, 0x1F64F), (0x1, 0x1F),
           (0x7F, 0x9F), (0xE000, 0xE0FF), (0xFFF0, 0xFFFF), (0xE0100, 0xE01EF)]
_LOOK_ALIKE = ("<s>", "</s>", "<unk>", "[INST]", "[/INST]", "<0x41>", "<0x00>", "\u2581", "\u2581\u2581the", "<pad>")
_SPACES = (" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\u00a0", "\u3000", " " * 17, " " * 40)
# Joined emoji, decomposed letters, and what NFKC takes apart or puts together.
_CLUSTERS = ("👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "🙂", "e\u0301", "ﬁ", "①", "Å", "\u1112\u1161\u11ab", "각", "ｶﾞ", "ﷺ")


def mixed_texts(count: int, seed: int = 7) -> list[str]:
    """Texts of many scripts, emoji, runs of white space and of one character, control characters and look-alikes."""
    rng = random.Random(seed)
    return [_mixed(rng) for _ in range(count)]


def _mixed(rng: random.Random) -> str:
    words = PROSE.split()
    if rng.random() < 0.1:
        start = rng.randrange(len(PROSE) - 300)
        return PROSE[start:start + rng.randint(1, 300)]
    pieces = []
    for _ in range(rng.randint(0, 14)):
        match rng.randrange(20):
            case 0 | 1 | 2 | 3 | 4 | 5 | 6:
                pieces.append(rng.choice(words))
            case 7 | 8 | 9:
                pieces.append(rng.choice(_SPACES))
            case 10 | 11:
                pieces.append(rng.choice(_LOOK_ALIKE))
            case 12:
                pieces.append(rng.choice(_CLUSTERS))
            case 13:
                pieces.append(rng.choice("=-!.aA0ha#_/\\") * rng.randint(1, 40))
            case _:
                first, last = rng.choice(_RANGES)
                pieces.append("".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 8))))
        pieces.append(" " * rng.randint(0, 1))
    return "".join(pieces)


@cache
def trained(kind: Kind, *, prefix: bool = True, removes: bool = False, norm: str = "identity", has_bytes: bool = True,
            words: tuple[str, ...] = (), control: tuple[str, ...] = ()) -> bytes:
    """A tokenizer.model of 2,500 pieces or fewer."""
    lines = [line for line in PROSE.splitlines() if line]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*lines * 3, *("    " + line for line in lines),
                                *(text[:80] for text in mixed_texts(200))]),
        model_writer=model, vocab_size=2500, model_type=kind, byte_fallback=has_bytes, add_dummy_prefix=prefix,
        remove_extra_whitespaces=removes, normalization_rule_name=norm, character_coverage=0.98, split_digits=True,
        allow_whitespace_only_pieces=True, user_defined_symbols=list(words), control_symbols=list(control),
        hard_vocab_limit=False, max_sentence_length=8000, minloglevel=2)
    return model.getvalue()


def processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def gguf_metadata(model: bytes, **more: object) -> dict[str, object]:
    """The keys that llama.cpp's converter writes for a tokenizer.model; `more` are further ones."""
    spm = processor(model)
    ids = range(spm.vocab_size())
    types = [2 if spm.is_unknown(i) else 3 if spm.is_control(i) else 5 if spm.is_unused(i) else 6 if spm.is_byte(i)
             else 1 for i in ids]
    keys = {"model": "llama", "tokens": [spm.id_to_piece(i) for i in ids], "scores": [spm.get_score(i) for i in ids],
            "token_type": types, "bos_token_id": spm.bos_id(), "eos_token_id": spm.eos_id(),
            "unknown_token_id": spm.unk_id(), **more}
    return {f"tokenizer.ggml.{name}": value for name, value in keys.items()}


def tokenizer_json(model: bytes, how: Literal["legacy", "first", "gemma", "plain"]) -> Library:
    """The tokenizer.json that transformers makes of a tokenizer.model: of Llama's in two ways, Gemma's, and others."""
    spm = processor(model)
    ids = range(spm.vocab_size())
    pieces = [(spm.id_to_piece(i), spm.get_score(i)) for i in ids]
    vocab = {text: index for index, (text, _) in enumerate(pieces)}
    if how == "plain":
        made = Library(Unigram(pieces, unk_id=spm.unk_id(), byte_fallback=True))
    else:
        merges = generate_merges(vocab, pieces, [spm.id_to_piece(i) for i in ids if spm.is_control(i)])
        made = Library(BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if how in ("legacy", "first") else [])])
    match how:
        case "legacy":
            made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        case "first":
            made.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", "first", split=False)
        case "gemma":
            made.normalizer = normalizers.Replace(" ", "\u2581")
            made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        case "plain":
            charsmap = ModelProto.FromString(model).normalizer_spec.precompiled_charsmap
            made.normalizer = normalizers.Sequence([
                *([normalizers.Precompiled(charsmap)] if charsmap else []), normalizers.Strip(left=False, right=True),
                normalizers.Replace(Regex(" {2,}"), "\u2581")])
            made.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", "always")
            made.decoder = decoders.Metaspace("\u2581", "always")
    types = {i: piece.type for i, piece in enumerate(ModelProto.FromString(model).pieces)}
    for index, kind in types.items():
        if kind in (2, 3, 4):
            made.add_tokens([AddedToken(spm.id_to_piece(index), normalized=False, special=kind != 4)])
    return made
