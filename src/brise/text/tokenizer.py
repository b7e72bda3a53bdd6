"""Encodes and decodes text: byte-level BPE from the metadata of a GGUF file, or from a tokenizer.json.

GGUF keys read here, all under `tokenizer.ggml.`: model, pre, tokens (in GPT-2's byte alphabet), merges ("left
right", best first), token_type (1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte),
bos_token_id, eos_token_id, eot_token_id, eom_token_id, add_bos_token, add_eos_token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
from tokenizers import Tokenizer as BpeTokenizer
from tokenizers.models import BPE

from brise.errors import CheckpointError, RequestError, UnsupportedError, bad_value
from brise.text import hf_tokenizer, pretokenizers, special_tokens
from brise.text.gguf_vocabulary import (
    CONTROL,
    MODELS,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    key,
    read_ends,
    strings,
    token_types,
)
from brise.text.hf_tokenizer import MAX_MERGES, PASSED_ON, library_errors
from brise.text.pretokenizers import Pretokenization
from brise.text.protocols import END_TEXTS, Before
from brise.text.special_tokens import SpecialTokenSplitter


class Tokenizer:
    """Byte-level BPE. Control tokens such as <|im_end|> never arise from plain text."""

    def __init__(self, tokens: Sequence[str], types: Sequence[int],
                 build: Callable[[dict[str, int]], BpeTokenizer], *, bos_id: int | None = None,
                 eos_id: int | None = None, add_bos: bool = False, text_end_id: int | None = None,
                 end_ids: Iterable[int] = ()) -> None:
        # No pass in Python over the vocabulary: it would be a tenth of a cold start.
        try:
            kinds = np.array(types, np.int64)
        except OverflowError:
            raise bad_value("tokenizer.ggml.token_type", max(types, key=abs), "1 to 6") from None
        special = {index: int(kinds[index]) for index in np.flatnonzero(kinds != NORMAL).tolist()}
        control = {tokens[index]: index for index, kind in special.items()
                   if kind in (CONTROL, USER_DEFINED)}
        _refuse_blank_tokens(control)
        special_tokens.check(control)
        self.control: Mapping[str, int] = MappingProxyType(control)
        self._tokens = tokens
        self._shown = frozenset(index for index, kind in special.items() if kind == USER_DEFINED)
        self._hidden = frozenset(special) - self._shown
        self._bytes = _byte_alphabet()
        vocab = _text_vocabulary(tokens, special, self._bytes)
        self._missing = bytes(byte for char, byte in self._bytes.items() if char not in vocab)
        self._bpe = build(vocab)
        self.bos_id, self.eos_id, self.add_bos, self.text_end_id = bos_id, eos_id, add_bos, text_end_id
        self.end_ids = frozenset(end_ids) | {index for token, index in control.items() if token in END_TEXTS}
        self.vocab_size = len(tokens)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object]) -> Tokenizer:
        """The tokenizer a GGUF file describes; refuses kinds that this build does not know."""
        model = metadata.get(key("model"))
        if model != "gpt2":
            raise UnsupportedError(f"tokenizer.ggml.model is {model!r}; brise reads {', '.join(map(repr, MODELS))}")
        tokens, merges = strings(metadata, "tokens"), strings(metadata, "merges")
        types = token_types(metadata, len(tokens))
        pre = metadata.get(key("pre"))
        if not isinstance(pre, str):
            raise UnsupportedError("the file has no tokenizer.ggml.pre, so its pre-tokenizer is unknown",
                                   hint="convert the model again with a current llama.cpp")
        pretokenizer = pretokenizers.named(pre)
        ends = read_ends(metadata, len(tokens), add_bos=pretokenizer.add_bos)
        return cls(tokens, types, lambda vocab: _build(vocab, merges, pretokenizer), bos_id=ends.bos_id,
                   eos_id=ends.eos_id, add_bos=ends.add_bos, text_end_id=ends.text_end_id, end_ids=ends.end_ids)

    @classmethod
    def from_hf(cls, path: Path, settings: Mapping[str, object], end_ids: Iterable[int] = (),
                document: Mapping[str, object] | None = None) -> Tokenizer:
        """The tokenizer of a tokenizer.json; `settings` is tokenizer_config.json, `end_ids` end answers too.

        `document` is the content of the file, if it is read already.
        """
        document = hf_tokenizer.read_json(path) if document is None else document
        if hf_tokenizer.is_sentencepiece(document):
            raise UnsupportedError(f"{path.name} is a SentencePiece tokenizer, no byte-level BPE")
        read = hf_tokenizer.read(path, settings, document)
        types = [NORMAL] * len(read.tokens)
        for index, is_special in read.added.items():
            types[index] = CONTROL if is_special else USER_DEFINED
        for index in read.gaps:
            types[index] = UNUSED
        ends = {*end_ids, read.eos_id} - {None}
        return cls(read.tokens, types, read.build, bos_id=read.bos_id, eos_id=read.eos_id,
                   add_bos=read.add_bos, text_end_id=read.text_end_id,
                   end_ids=[end for end in ends if end is not None and end < len(types)])

    def encode(self, text: str, *, parse_control: bool = False, before: Before = "start") -> list[int]:
        """Ids of the text, without bos. With parse_control, special tokens in it become control tokens."""
        if not parse_control:
            return self._encode_plain(text, before)
        return special_tokens.encode(text, self.control, self.splitter, self._encode_plain, before)

    def decode(self, ids: Iterable[int], *, show_control: bool = False) -> str:
        """Text of the ids; bytes that are no UTF-8 become U+FFFD."""
        pieces = (self.token_bytes(token, show_control=show_control) for token in ids)
        return b"".join(pieces).decode(errors="replace")

    def token_bytes(self, token: int, *, show_control: bool = False) -> bytes:
        """What a token adds to the text, maybe half a character. Nothing for a control token unless shown."""
        text = self._token(token)
        if token in self._hidden:
            return text.encode() if show_control else b""
        return text.encode() if token in self._shown else bytes(map(self._bytes.__getitem__, text))

    def token_text(self, token: int) -> str:
        """A token for display: control tokens by name, half characters as U+FFFD."""
        return self.token_bytes(token, show_control=True).decode(errors="replace")

    def is_control(self, token: int) -> bool:
        """Whether the token is no text: control, unknown or unused. User-defined ones (<think>) are shown."""
        return token in self._hidden

    def drops_space_after(self, token: int | None) -> bool:
        """Whether a space that begins the text behind this token is the tokenizer's own: never of a byte-level BPE."""
        return False

    def is_control_text(self, text: str) -> bool:
        """Whether this string is a token that `decode` leaves out."""
        return self.control.get(text) in self._hidden

    @cached_property
    def splitter(self) -> SpecialTokenSplitter:
        """Cuts text at special tokens."""
        return SpecialTokenSplitter(self.control)

    def _encode_plain(self, text: str, before: Before) -> list[int]:
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise RequestError("the text holds half a surrogate pair, which is no Unicode character",
                               code="invalid_unicode") from error
        if len(data.translate(None, self._missing)) != len(data):  # the BPE would drop them silently
            byte = next(byte for byte in data if byte in self._missing)
            raise RequestError(f"the text holds the byte 0x{byte:02x}, for which this model has no token",
                               code="invalid_unicode",
                               hint="remove control characters and unassigned code points")
        try:
            return list(self._bpe.encode(text, add_special_tokens=False).ids)
        except PASSED_ON:
            raise
        except BaseException as error:  # the library's panics are no Exception
            raise RequestError(f"the model's tokenizer cannot encode this text: {error}") from None

    def _token(self, token: int) -> str:
        if not 0 <= token < self.vocab_size:
            raise RequestError(f"token {token} does not exist; the vocabulary has {self.vocab_size}")
        return self._tokens[token]


def _text_vocabulary(tokens: Sequence[str], special: Iterable[int],
                     alphabet: Mapping[str, int]) -> dict[str, int]:
    """The tokens that text can become; the BPE never gives others."""
    vocab = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(vocab) != len(tokens):
        raise CheckpointError("tokenizer.ggml.tokens has the same token twice", field="tokenizer.ggml.tokens")
    for index in special:
        del vocab[tokens[index]]
    text = "".join(vocab)
    known = np.zeros(1 << 16, np.bool_)
    known[[ord(char) for char in alphabet]] = True
    if not known[np.frombuffer(text.encode("utf-16-le", "surrogatepass"), np.uint16)].all():
        stray = set(text) - alphabet.keys()
        raise CheckpointError(f"tokenizer.ggml.tokens has {min(stray)!r} in a token: it is not byte-level",
                              field="tokenizer.ggml.tokens", value=min(stray),
                              limit="GPT-2's byte alphabet")
    return vocab


def _build(vocab: dict[str, int], merges: Sequence[str], pretokenizer: Pretokenization) -> BpeTokenizer:
    if len(merges) > MAX_MERGES:
        raise bad_value(key("merges"), f"a list of {len(merges)}", f"at most {MAX_MERGES} entries")
    parts = iter(" ".join(merges).split(" "))  # one split for all: 2 x faster than one each
    with library_errors("tokenizer.ggml.merges does not fit the tokens", key("merges")):
        model = BPE(vocab=vocab, merges=list(zip(parts, parts, strict=True)) if merges else [],
                    ignore_merges=pretokenizer.whole_words)
    bpe = BpeTokenizer(model)
    bpe.pre_tokenizer = pretokenizer.pre_tokenizer()
    bpe.normalizer = pretokenizer.normalizer()
    return bpe


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones are themselves, the others U+0100 and up in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _refuse_blank_tokens(control: Mapping[str, int]) -> None:
    blank = sorted(index for token, index in control.items() if not token.strip())
    if blank:
        raise UnsupportedError(f"the tokens {blank[:8]} are user-defined and blank; runs of white space as "
                               "tokens outside the BPE are not supported")
