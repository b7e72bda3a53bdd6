"""Reads a Hugging Face tokenizer.json: a byte-level BPE, or the vocabulary of a SentencePiece model.

`model` has `vocab` (token: id, in GPT-2's byte alphabet where the BPE is byte-level; [piece, score] in a Unigram) and
`merges` ("left right", or pairs); `added_tokens` are the control tokens (`special`) and others that are never cut. The
`pre_tokenizer` and `normalizer` of a byte-level BPE are built by the library that wrote them; those of SentencePiece
are read in text/read_sentencepiece.py. Other kinds are refused by name.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer as BpeTokenizer
from tokenizers.models import BPE

from brise.errors import CheckpointError, UnsupportedError
from brise.text import tokenizer_steps

MAX_FILE_BYTES = 1 << 28  # the largest in use has 34 MB
MAX_MERGES = 1 << 20  # the largest vocabulary in use has 2^19
_MAX_TOKENS = 1 << 21
_MAX_SCORE = 1e30
_GAPS_A_TOKEN, _FREE_GAPS = 4, 1 << 16  # each id without a token takes memory that the file does not
PASSED_ON = (KeyboardInterrupt, SystemExit, GeneratorExit)  # of the BaseExceptions, what is no error


@dataclass(frozen=True)
class HfTokenizer:
    """What a tokenizer.json says."""

    tokens: Sequence[str]
    added: Mapping[int, bool]  # id to whether it is a control token
    gaps: Sequence[int]  # ids without a token
    build: Callable[[dict[str, int]], BpeTokenizer]
    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    text_end_id: int | None
    scores: Sequence[float] | None = None  # of a Unigram, by id
    left: frozenset[str] = frozenset()  # special tokens that take the white space before them,
    right: frozenset[str] = frozenset()  # and those that take what is behind them


def read(path: Path, settings: Mapping[str, object], document: Mapping[str, object] | None = None) -> HfTokenizer:
    """The file, with the names of bos and eos from tokenizer_config.json; `document` is its content, if it is read."""
    document = read_json(path) if document is None else document
    model = _mapping(document, "model", path)
    _refuse_other_kinds(model, path)
    scores = _scores(model, path) if model.get("type") == "Unigram" else None
    vocab = _vocab(model, path) if scores is None else {text: index for index, (text, _) in enumerate(scores)}
    added = dict(_added(document, path))
    texts = {index: text for text, index in vocab.items()} | {index: text for index, (text, _) in added.items()}
    size = max(texts, default=-1) + 1
    if not 0 < size <= _MAX_TOKENS or min(texts) < 0:
        raise CheckpointError(f"{path.name} has ids up to {size - 1}; 0 to {_MAX_TOKENS - 1} are allowed",
                              field="model.vocab", value=size, limit=_MAX_TOKENS)
    if size > _GAPS_A_TOKEN * len(texts) + _FREE_GAPS:
        raise CheckpointError(f"{path.name} has {len(texts)} tokens with ids up to {size - 1}", field="model.vocab",
                              value=size, limit=_GAPS_A_TOKEN * len(texts) + _FREE_GAPS)
    gaps = [index for index in range(size) if index not in texts]
    tokens = [texts.get(index, f"<|gap {index}|>") for index in range(size)]
    ids = {text: index for index, text in texts.items()}
    bos_id, eos_id = (ids.get(_name(settings.get(f"{name}_token")) or "") for name in ("bos", "eos"))
    first, last = _around(document)
    add_bos, add_eos = settings.get("add_bos_token"), settings.get("add_eos_token")
    text_end_id = eos_id if add_eos is True else last if add_eos is None else None
    return HfTokenizer(tokens, {index: special for index, (_, special) in added.items()}, gaps,
                       lambda words: _build(words, model, document, path), bos_id, eos_id,
                       bos_id is not None and (add_bos is True or (add_bos is None and first == bos_id)), text_end_id,
                       None if scores is None else [score for _, score in scores] + [0.0] * (size - len(scores)),
                       _that("lstrip", document), _that("rstrip", document))


def is_sentencepiece(document: Mapping[str, object]) -> bool:
    """Whether the file has SentencePiece's pieces, with a space in them as '\u2581', and not GPT-2's byte alphabet."""
    model = document.get("model")
    if not isinstance(model, Mapping) or model.get("type", "BPE") != "BPE":
        return isinstance(model, Mapping) and model.get("type") == "Unigram"
    return bool(model.get("byte_fallback")) or '"ByteLevel"' not in json.dumps(document.get("decoder"))


def base64_bytes(text: str, what: str) -> bytes:
    """The bytes of a text in base64."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise CheckpointError(f"the {what} is no base64: {error}", field=what) from error


def read_json(path: Path) -> dict[str, object]:
    """A JSON file that holds an object, with a bound on its size."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise CheckpointError(f"{path.name} has {path.stat().st_size} bytes; at most {MAX_FILE_BYTES}",
                              field=path.name, value=path.stat().st_size, limit=MAX_FILE_BYTES)
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is no JSON: {error}", field=path.name) from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path.name} holds no JSON object", field=path.name, value=type(document).__name__)
    return document


def _refuse_other_kinds(model: Mapping[str, object], path: Path) -> None:
    kind = model.get("type", "BPE")
    if kind not in ("BPE", "Unigram"):
        raise UnsupportedError(f"{path.name} is a {kind!r} tokenizer; brise reads 'BPE' and 'Unigram'")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UnsupportedError(f"{path.name} has model.{name} = {model[name]!r}; only an empty one is supported")


def _vocab(model: Mapping[str, object], path: Path) -> dict[str, int]:
    vocab = _mapping(model, "vocab", path)
    if len(vocab) > _MAX_TOKENS or not all(type(index) is int for index in vocab.values()):
        raise CheckpointError(f"model.vocab of {path.name} must map at most {_MAX_TOKENS} tokens to their ids",
                              field="model.vocab", value=len(vocab), limit=_MAX_TOKENS)
    return {text: index for text, index in vocab.items() if isinstance(index, int)}


def _scores(model: Mapping[str, object], path: Path) -> list[tuple[str, float]]:
    vocab = model.get("vocab")
    if not isinstance(vocab, list) or len(vocab) > _MAX_TOKENS:
        raise CheckpointError(f"model.vocab of {path.name} is no list of at most {_MAX_TOKENS} pieces",
                              field="model.vocab", limit=_MAX_TOKENS)
    pieces: dict[str, float] = {}
    for entry in vocab:
        match entry:
            case [str(text), int() | float() as score] if text not in pieces and -_MAX_SCORE < score < _MAX_SCORE:
                pieces[text] = float(score)
            case _:
                raise CheckpointError(f"model.vocab of {path.name} has an entry that is no new piece with its score",
                                      field="model.vocab", value=str(entry)[:80])
    return list(pieces.items())


def _that(flag: str, document: Mapping[str, object]) -> frozenset[str]:
    """The added tokens with this flag."""
    added = document.get("added_tokens")
    return frozenset(str(entry["content"]) for entry in (added if isinstance(added, list) else []) if entry.get(flag))


def _added(document: Mapping[str, object], path: Path) -> Iterator[tuple[int, tuple[str, bool]]]:
    added = document.get("added_tokens") or []
    for entry in added if isinstance(added, list) else [added]:
        match entry:
            case {"id": int(index), "content": str(text), **rest} if text and not isinstance(index, bool):
                yield index, (text, bool(rest.get("special")))
            case _:
                raise CheckpointError(f"added_tokens of {path.name} has an entry without id and content",
                                      field="added_tokens", value=str(entry)[:80])


def _build(vocab: dict[str, int], model: Mapping[str, object], document: Mapping[str, object],
           path: Path) -> BpeTokenizer:
    steps = read_steps(document, path)
    with library_errors(f"{path.name} cannot be used", "model.merges"):
        bpe = BpeTokenizer(BPE(vocab=vocab, merges=_merges(model), ignore_merges=bool(model.get("ignore_merges"))))
        bpe.pre_tokenizer, bpe.normalizer = steps.pre_tokenizer, steps.normalizer
    return bpe


def read_steps(document: Mapping[str, object], path: Path) -> BpeTokenizer:
    """The file's normalizer and pre-tokenizer, in a tokenizer without a vocabulary; UnsupportedError names a step that
    brise does not know."""
    normalizer, pre_tokenizer = document.get("normalizer"), document.get("pre_tokenizer")
    for part, steps in (("normalizer", normalizer), ("pre_tokenizer", pre_tokenizer)):
        tokenizer_steps.check(steps, part, path.name)
    with library_errors(f"{path.name} has steps that cannot be used", "pre_tokenizer"):
        return BpeTokenizer.from_str(json.dumps({
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "post_processor": None,
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": None,
            "model": {"type": "BPE", "vocab": {}, "merges": []}}))


@contextmanager
def library_errors(what: str, field: str) -> Iterator[None]:
    """Makes a CheckpointError of what the tokenizer library raises: Exception itself, and panics, which are none."""
    try:
        yield
    except PASSED_ON:
        raise
    except BaseException as error:
        raise CheckpointError(f"{what}: {error}", field=field) from None


def _merges(model: Mapping[str, object]) -> list[tuple[str, str]]:
    merges = model.get("merges") or []
    if not isinstance(merges, list) or len(merges) > MAX_MERGES:
        raise ValueError(f"model.merges is no list of at most {MAX_MERGES} pairs")
    pairs = []
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        pairs.append((str(left), str(right)))
    return pairs


def _around(document: Mapping[str, object]) -> tuple[int | None, int | None]:
    """The tokens that the file's post-processor puts before a text, as Llama 3's does, and after it, as Qwen3
    Embedding's does."""
    processor = document.get("post_processor")
    steps = [processor, *processor.get("processors", [])] if isinstance(processor, dict) else []
    for step in steps:
        match step:
            case {"type": "TemplateProcessing", "single": list(pieces), "special_tokens": dict(known)} if pieces:
                return _special_id(pieces[0], known), _special_id(pieces[-1], known)
    return None, None


def _special_id(piece: object, known: Mapping[str, object]) -> int | None:
    match piece:
        case {"SpecialToken": {"id": str(name)}}:
            match known.get(name):
                case {"ids": [int(token)]}:
                    return token
    return None


def _name(token: object) -> str | None:
    """A token's text: tokenizer_config.json has a string, or an object with one."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _mapping(document: Mapping[str, object], name: str, path: Path) -> dict[str, object]:
    value = document.get(name)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} has no {name!r}", field=name, value=type(value).__name__)
    return value
