"""Reads SentencePiece vocabularies: from a tokenizer.model, from the keys of a GGUF file, or from a tokenizer.json.

GGUF keys beside those of text/gguf_vocabulary.py, all under `tokenizer.ggml.`: scores; add_space_prefix (llama: true
where it is missing); remove_extra_whitespaces and precompiled_charsmap (llama.cpp reads them for t5 alone); merges,
which llama.cpp does not read here, and which say more than scores where the vocabulary has come from a tokenizer.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from tokenizers import normalizers

from brise.errors import CheckpointError, UnsupportedError, bad_value
from brise.text import sentencepiece_file, tokenizer_steps
from brise.text.charsmap import CharsMap
from brise.text.gguf_vocabulary import (
    BYTE,
    CONTROL,
    MAX_TOKENS,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    key,
    read_ends,
    strings,
    token_types,
)
from brise.text.hf_tokenizer import MAX_MERGES, HfTokenizer, base64_bytes
from brise.text.protocols import Before
from brise.text.sentencepiece import SPACE, Pieces, SentencePieceTokenizer, TextRules, collapsed

# Of a file that is made from a tokenizer.json: its parts that say how text is cut, as JSON, with the special tokens
# that take the white space around them. GGUF has keys for the commonest of these only.
STEPS_KEY = "brise.tokenizer_steps"
PARTS = ("normalizer", "pre_tokenizer", "decoder")
_ANYWHERE: frozenset[Before] = frozenset({"start", "special"})
_BYTE = re.compile("<0x[0-9A-F]{2}>")
# Rust's white space, which is Unicode's: Python's split cuts at four control characters more.
_WHITE = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
# Phi-3's tokenizer.json says of its special tokens that they take the white space behind them; a GGUF file cannot.
_FORMS = MappingProxyType({"NFC": normalizers.NFC, "NFD": normalizers.NFD, "NFKC": normalizers.NFKC,
                           "NFKD": normalizers.NFKD})
_TAKES_NO_SPACE = frozenset({"<unk>", "<s>", "<|endoftext|>"})


def from_file(path: Path, settings: Mapping[str, object], end_ids: Iterable[int] = ()) -> SentencePieceTokenizer:
    """The tokenizer of a tokenizer.model, with the added tokens of a tokenizer_config.json."""
    read = sentencepiece_file.read(path)
    rules = TextRules(
        steps=_file_steps(read.charsmap, removes_spaces=read.removes_spaces),
        prefixed=_ANYWHERE if read.adds_prefix else frozenset(), is_suffix=read.is_suffix, restarts=False,
        drops=read.adds_prefix or read.removes_spaces, charsmap=read.charsmap, removes_spaces=read.removes_spaces)
    texts, scores, types = list(read.pieces), list(read.scores), list(read.types)
    added = settings.get("added_tokens_decoder")
    for index, text, is_special in _added(added if isinstance(added, dict) else {}, len(texts)):
        if index >= len(texts):
            count = index + 1 - len(texts)
            texts += [f"[PAD{len(texts) + number}]" for number in range(count)]
            scores += [0.0] * count
            types += [UNUSED] * count
        texts[index] = text
        if types[index] != UNKNOWN:
            types[index] = CONTROL if is_special else USER_DEFINED
    pieces = Pieces(texts, types, scores, is_unigram=read.is_unigram, unk_id=read.unk_id)
    add_bos = settings.get("add_bos_token", True) is True and read.bos_id is not None
    return SentencePieceTokenizer(pieces, rules, bos_id=read.bos_id, eos_id=read.eos_id, add_bos=add_bos,
                                  end_ids=[*end_ids, *([] if read.eos_id is None else [read.eos_id])])


def from_gguf(metadata: Mapping[str, object]) -> SentencePieceTokenizer:
    """The tokenizer of a GGUF file whose `tokenizer.ggml.model` is llama or t5."""
    texts = strings(metadata, "tokens")
    types, scores = token_types(metadata, len(texts)), _scores(metadata, len(texts))
    is_unigram = metadata.get(key("model")) == "t5"
    charsmap, removes = _charsmap(metadata), bool(metadata.get(key("remove_extra_whitespaces"), False))
    adds = bool(metadata.get(key("add_space_prefix"), not is_unigram))
    rules = TextRules(steps=_file_steps(charsmap, removes_spaces=removes), prefixed=_ANYWHERE if adds else frozenset(),
                      drops=adds, charsmap=charsmap, removes_spaces=removes)
    merges = _gguf_merges(metadata)
    control = {text for text, kind in zip(texts, types, strict=True) if kind in (CONTROL, USER_DEFINED)}
    right = control - _TAKES_NO_SPACE if metadata.get("general.architecture") == "phi3" else frozenset[str]()
    unk = metadata.get(key("unknown_token_id"), types.index(UNKNOWN) if UNKNOWN in types else None)
    if not isinstance(unk, int) or not 0 <= unk < len(texts):
        unk = None
    left = frozenset[str]()
    if isinstance(steps := metadata.get(STEPS_KEY), str):
        document = _steps(steps)
        rules, left, right = _rules(document, STEPS_KEY), _texts(document, "lstrip"), _texts(document, "rstrip")
        texts = _with_escaped(texts, document.get("escaped"))
    pieces = Pieces(texts, types, scores, merges, is_unigram=is_unigram, unk_id=unk, left=left, right=frozenset(right))
    ends = read_ends(metadata, len(texts), add_bos=not is_unigram)
    return SentencePieceTokenizer(pieces, rules, bos_id=ends.bos_id, eos_id=ends.eos_id, add_bos=ends.add_bos,
                                  text_end_id=ends.text_end_id, end_ids=ends.end_ids)


def from_hf(read: HfTokenizer, document: Mapping[str, object], name: str,
            end_ids: Iterable[int] = ()) -> SentencePieceTokenizer:
    """The tokenizer of a tokenizer.json that is a Unigram, or a BPE over characters."""
    model = document["model"]
    assert isinstance(model, Mapping), "checked by hf_tokenizer.read"
    has_bytes = bool(model.get("byte_fallback"))
    types = [BYTE if has_bytes and _BYTE.fullmatch(text) else NORMAL for text in read.tokens]
    for index, is_special in read.added.items():
        types[index] = CONTROL if is_special else USER_DEFINED
    for index in read.gaps:
        types[index] = UNUSED
    unk = model.get("unk_id") if read.scores is not None else _index(read.tokens, model.get("unk_token"))
    if isinstance(unk, int) and 0 <= unk < len(types) and types[unk] == NORMAL:
        types[unk] = UNKNOWN
    merges = None if read.scores is not None else _pairs(model.get("merges"), name)
    pieces = Pieces(read.tokens, types, read.scores, merges, is_unigram=read.scores is not None,
                    unk_id=unk if isinstance(unk, int) else None, ignores_merges=bool(model.get("ignore_merges")),
                    fuses_unknown=model.get("fuse_unk") is not False, left=read.left, right=read.right)
    ends = [end for end in (*end_ids, read.eos_id) if end is not None and 0 <= end < len(types)]
    return SentencePieceTokenizer(pieces, _rules(document, name), bos_id=read.bos_id, eos_id=read.eos_id,
                                  add_bos=read.add_bos, text_end_id=read.text_end_id, end_ids=ends)


def _file_steps(charsmap: bytes, *, removes_spaces: bool) -> tuple[Callable[[str], str], ...]:
    steps: list[Callable[[str], str]] = [CharsMap(charsmap).apply] if charsmap else []
    return (*steps, collapsed) if removes_spaces else tuple(steps)


def _added(decoder: Mapping[object, object], count: int) -> list[tuple[int, str, bool]]:
    """The added tokens of a tokenizer_config.json by id, which go on from the `count` pieces of the file."""
    tokens = []
    for index, entry in decoder.items():
        match entry:
            case {"content": str(text), **rest} if text and str(index).isdecimal() and int(str(index)) < MAX_TOKENS:
                tokens.append((int(str(index)), text, bool(rest.get("special"))))
            case _:
                raise CheckpointError("added_tokens_decoder of tokenizer_config.json has an entry without id and "
                                      "content", field="added_tokens_decoder", value=str(entry)[:80])
    last = max((index for index, _, _ in tokens), default=0)
    if last >= count + len(tokens) + 4096:
        raise bad_value("id of an added token of tokenizer_config.json", last, f"at most {count + len(tokens) + 4095}")
    return sorted(tokens)


def _scores(metadata: Mapping[str, object], count: int) -> list[float]:
    value = metadata.get(key("scores"))
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        raise CheckpointError("tokenizer.ggml.scores is missing or no list", field=key("scores"))
    try:
        scores = [float(score) for score in value]
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError("tokenizer.ggml.scores holds something that is no number", field=key("scores")) from error
    if len(scores) != count or not np.isfinite(scores).all():
        raise CheckpointError(f"tokenizer.ggml.scores has {len(scores)} entries for {count} tokens, or one that is no "
                              "number", field=key("scores"), value=len(scores), limit=count)
    return scores


def _steps(text: str) -> dict[str, object]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{STEPS_KEY} is no JSON: {error}", field=STEPS_KEY) from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{STEPS_KEY} holds no JSON object", field=STEPS_KEY, value=type(document).__name__)
    return document


def _with_escaped(texts: Sequence[str], ids: object) -> list[str]:
    """The pieces, with '\u2581' for the spaces of these."""
    out = list(texts)
    for index in ids if isinstance(ids, list) else []:
        if isinstance(index, int) and 0 <= index < len(out):
            out[index] = out[index].replace(" ", SPACE)
    return out


def _texts(document: Mapping[str, object], name: str) -> frozenset[str]:
    value = document.get(name)
    return frozenset(str(text) for text in (value if isinstance(value, list) else []))


def _charsmap(metadata: Mapping[str, object]) -> bytes:
    value = metadata.get(key("precompiled_charsmap"))
    return b"" if value is None else bytes(np.asarray(value).astype(np.uint8))


def _gguf_merges(metadata: Mapping[str, object]) -> list[tuple[str, str]] | None:
    if key("merges") not in metadata:
        return None
    return _pairs(list(strings(metadata, "merges")), key("merges"))


def _pairs(merges: object, name: str) -> list[tuple[str, str]]:
    if not isinstance(merges, list) or len(merges) > MAX_MERGES:
        raise CheckpointError(f"the merges of {name} are no list of at most {MAX_MERGES}", field="model.merges")
    pairs = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(half, str) for half in pair):
            raise CheckpointError(f"the merges of {name} have {str(merge)[:80]!r}, which is no pair",
                                  field="model.merges", value=str(merge)[:80])
        pairs.append((pair[0], pair[1]))
    return pairs


def _index(tokens: Sequence[str], text: object) -> int | None:
    return tokens.index(text) if isinstance(text, str) and text in tokens else None


def _rules(document: Mapping[str, object], name: str) -> TextRules:
    """What the normalizer, the pre-tokenizer and the decoder of a tokenizer.json say, step by step."""
    rules = TextRules(prefixed=frozenset(), drops=_drops(document, name), precision="d",
                      source={part: document.get(part) for part in PARTS})
    for part, read in (("normalizer", _with_normalizer), ("pre_tokenizer", _with_pre_tokenizer)):
        for step in tokenizer_steps.flat(document.get(part), part, name):
            known = read(rules, step, name)
            if known is None:
                raise UnsupportedError(f"the {part} of {name} has the step {str(dict(step))[:200]}, which brise does "
                                       "not run beside SentencePiece's pieces")
            rules = known
    return rules


def _with_normalizer(rules: TextRules, step: Mapping[str, object], name: str) -> TextRules | None:
    """The rules with one more step. No Replace may make a text longer."""
    match step:
        case {"type": "Prepend", "prepend": "\u2581" | " "}:
            return replace(rules, prefixed=_ANYWHERE)
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if (
                0 < len(old) <= tokenizer_steps.MAX_TEXT and len(new) <= len(old)):
            return _with(rules, lambda text: text.replace(old, new))
        case {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581" | " "}:
            return replace(_with(rules, lambda text: re.sub(" {2,}", " ", text)), removes_spaces=True)
        case {"type": "Strip", "strip_left": bool(left), "strip_right": bool(right)}:
            return _with(rules, lambda text: _stripped(text, left=left, right=right))
        case {"type": "Precompiled", "precompiled_charsmap": str() | None as blob} if not rules.charsmap:
            charsmap = base64_bytes(blob or "", f"precompiled_charsmap of {name}")
            return replace(_with(rules, CharsMap(charsmap).apply), charsmap=charsmap) if charsmap else rules
        case {"type": str(form)} if form in _FORMS:
            return _with(rules, _FORMS[form]().normalize_str)
    return None


def _with_pre_tokenizer(rules: TextRules, step: Mapping[str, object], name: str) -> TextRules | None:
    match step:
        case {"type": "WhitespaceSplit"}:
            return _with(rules, lambda text: " ".join(filter(None, _WHITE.split(text))))
        case {"type": "Metaspace", "replacement": "\u2581"}:
            return replace(rules, prefixed=_metaspace(step, name), doubles=False, splits=step.get("split") is not False)
        case {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}:
            return rules  # Gemma's: no space is left to cut at
    return None


def _with(rules: TextRules, step: Callable[[str], str]) -> TextRules:
    return replace(rules, steps=(*rules.steps, step))


def _metaspace(step: Mapping[str, object], name: str) -> frozenset[Before]:
    """Where a Metaspace puts a space; `add_prefix_space` is what older files say."""
    scheme = step.get("prepend_scheme")
    if scheme is None:
        scheme = "never" if step.get("add_prefix_space") is False else "always"
    match scheme:
        case "always":
            return _ANYWHERE
        case "first":
            return frozenset({"start"})
        case "never":
            return frozenset()
    raise CheckpointError(f"the Metaspace of {name} has prepend_scheme {str(scheme)[:80]!r}", field="pre_tokenizer",
                          value=str(scheme)[:80], limit="always, first or never")


def _drops(document: Mapping[str, object], name: str) -> bool:
    """Whether the decoder takes the first space of a text away."""
    drops = False
    for step in tokenizer_steps.flat(document.get("decoder"), "decoder", name):
        match step:
            case {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}:
                pass
            case {"type": "ByteFallback" | "Fuse"}:
                pass
            case {"type": "Strip", "content": " ", "start": 0 | 1 as start, "stop": 0}:
                drops = start == 1
            case {"type": "Metaspace"}:
                drops = bool(_metaspace(step, name))
            case _:
                raise UnsupportedError(f"the decoder of {name} has the step {str(dict(step))[:200]}, which brise does "
                                       "not run")
    return drops


def _stripped(text: str, *, left: bool, right: bool) -> str:
    white = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
    text = text.lstrip(white) if left else text
    return text.rstrip(white) if right else text
