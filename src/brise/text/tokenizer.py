"""Encodes and decodes text: byte-level BPE from the metadata of a GGUF file, or from a tokenizer.json.

GGUF keys read here, all under `tokenizer.ggml.`: model, pre, tokens (in GPT-2's byte alphabet), merges ("left
right", best first), token_type (1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte),
bos_token_id, eos_token_id, eot_token_id, eom_token_id, add_bos_token, add_eos_token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from tokenizers import Tokenizer as BpeTokenizer
from tokenizers.models import BPE

from brise.errors import CheckpointError, RequestError, UnsupportedError, bad_value
from brise.text import hf_tokenizer, pretokenizers, special_tokens
from brise.text.hf_tokenizer import MAX_MERGES, PASSED_ON, library_errors
from brise.text.pretokenizers import Pretokenization

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_MAX_TOKENS = 1 << 21  # the largest vocabularies in use have 2^18; a false header must not fill the memory

# Tokens that end an answer whatever the file says: many files name only one (llama.cpp does so too).
_END_TEXTS = frozenset({"<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>",
                        "<|end|>", "<end_of_turn>", "</s>", "<EOT>"})


class Tokenizer:
    """Byte-level BPE. Control tokens such as <|im_end|> never arise from plain text."""

    def __init__(self, tokens: Sequence[str], types: Sequence[int],
                 build: Callable[[dict[str, int]], BpeTokenizer], *, bos_id: int | None = None,
                 eos_id: int | None = None, add_bos: bool = False, text_end_id: int | None = None,
                 end_ids: Iterable[int] = ()) -> None:
        # One pass in Python over the types; the rest of the vocabulary is handled at C speed (cold start).
        special = {index: kind for index, kind in enumerate(types) if kind != _NORMAL}
        control = {tokens[index]: index for index, kind in special.items()
                   if kind in (_CONTROL, _USER_DEFINED)}
        _refuse_blank_tokens(control)
        special_tokens.check(control)
        self.control: Mapping[str, int] = MappingProxyType(control)
        self._tokens = tokens
        self._shown = frozenset(index for index, kind in special.items() if kind == _USER_DEFINED)
        self._hidden = frozenset(special) - self._shown
        self._bytes = _byte_alphabet()
        vocab = _text_vocabulary(tokens, special, self._bytes)
        self._missing = bytes(byte for char, byte in self._bytes.items() if char not in vocab)
        self._bpe = build(vocab)
        self.bos_id, self.eos_id, self.add_bos, self.text_end_id = bos_id, eos_id, add_bos, text_end_id
        self.end_ids = frozenset(end_ids) | {index for token, index in control.items() if token in _END_TEXTS}
        self.vocab_size = len(tokens)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object]) -> Tokenizer:
        """The tokenizer a GGUF file describes; refuses kinds that this build does not know."""
        model = metadata.get(_key("model"))
        if model != "gpt2":
            raise _unsupported_model(model)
        tokens, merges = _strings(metadata, "tokens"), _strings(metadata, "merges")
        types = _types(metadata, len(tokens))
        pre = metadata.get(_key("pre"))
        if not isinstance(pre, str):
            raise UnsupportedError("the file has no tokenizer.ggml.pre, so its pre-tokenizer is unknown",
                                   hint="convert the model again with a current llama.cpp")
        pretokenizer = pretokenizers.named(pre)
        bos_id, eos_id = _id(metadata, "bos", len(tokens)), _id(metadata, "eos", len(tokens))
        add_bos = bool(metadata.get(_key("add_bos_token"), pretokenizer.add_bos))
        text_end_id = eos_id if metadata.get(_key("add_eos_token")) else None
        if text_end_id is not None and not metadata.get(f"{metadata.get('general.architecture')}.pooling_type"):
            raise UnsupportedError("tokenizer.ggml.add_eos_token is true, and the model makes no embeddings; brise "
                                   "never ends a prompt so that is to be continued")
        ends = (eos_id, _id(metadata, "eot", len(tokens)), _id(metadata, "eom", len(tokens)))
        return cls(tokens, types, lambda vocab: _build(vocab, merges, pretokenizer), bos_id=bos_id, eos_id=eos_id,
                   add_bos=add_bos and bos_id is not None, text_end_id=text_end_id,
                   end_ids=(end for end in ends if end is not None))

    @classmethod
    def from_hf(cls, path: Path, settings: Mapping[str, object], end_ids: Iterable[int] = ()) -> Tokenizer:
        """The tokenizer of a tokenizer.json; `settings` is tokenizer_config.json, `end_ids` end answers too."""
        read = hf_tokenizer.read(path, settings)
        types = [_NORMAL] * len(read.tokens)
        for index, is_special in read.added.items():
            types[index] = _CONTROL if is_special else _USER_DEFINED
        for index in read.gaps:
            types[index] = _UNUSED
        ends = {*end_ids, read.eos_id} - {None}
        return cls(read.tokens, types, read.build, bos_id=read.bos_id, eos_id=read.eos_id,
                   add_bos=read.add_bos, text_end_id=read.text_end_id,
                   end_ids=[end for end in ends if end is not None and end < len(types)])

    def encode(self, text: str, *, parse_control: bool = False) -> list[int]:
        """Ids of the text, without bos. With parse_control, special tokens in it become control tokens."""
        if not parse_control:
            return self._encode_plain(text)
        return special_tokens.encode(text, self.control, self.control_splitter, self._encode_plain)

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

    def is_control_text(self, text: str) -> bool:
        """Whether this string is a token that `decode` leaves out."""
        return self.control.get(text) in self._hidden

    @cached_property
    def control_splitter(self) -> re.Pattern[str]:
        """`split` with it gives text and special tokens in turn."""
        return special_tokens.splitter(self.control)

    def _encode_plain(self, text: str) -> list[int]:
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
    stray = set("".join(vocab)) - alphabet.keys()
    if stray:
        raise CheckpointError(f"tokenizer.ggml.tokens has {min(stray)!r} in a token: it is not byte-level",
                              field="tokenizer.ggml.tokens", value=min(stray),
                              limit="GPT-2's byte alphabet")
    return vocab


def _build(vocab: dict[str, int], merges: Sequence[str], pretokenizer: Pretokenization) -> BpeTokenizer:
    if len(merges) > MAX_MERGES:
        raise bad_value(_key("merges"), f"a list of {len(merges)}", f"at most {MAX_MERGES} entries")
    parts = iter(" ".join(merges).split(" "))  # one split for all: 2 x faster than one each
    with library_errors("tokenizer.ggml.merges does not fit the tokens", _key("merges")):
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


def _unsupported_model(model: object) -> UnsupportedError:
    if model == "llama":
        return UnsupportedError("tokenizer.ggml.model is 'llama', a SentencePiece tokenizer; this build "
                                "reads byte-level BPE ('gpt2')",
                                hint="take a model with a byte-level BPE: SmolLM2, Llama 3, Qwen 2 or 3, "
                                     "Mistral Nemo, Ministral 3")
    return UnsupportedError(f"tokenizer.ggml.model is {model!r}; this build reads byte-level BPE ('gpt2')")


def _key(name: str) -> str:
    return f"tokenizer.ggml.{name}"


def _strings(metadata: Mapping[str, object], name: str) -> Sequence[str]:
    value = metadata.get(_key(name))
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise CheckpointError(f"{_key(name)} is missing or no list", field=_key(name),
                              value=type(value).__name__, limit="a list of strings")
    if len(value) > _MAX_TOKENS:
        raise CheckpointError(f"{_key(name)} has {len(value)} entries; at most {_MAX_TOKENS}",
                              field=_key(name), value=len(value), limit=_MAX_TOKENS)
    if not set(map(type, value)) <= {str}:
        raise CheckpointError(f"{_key(name)} holds something that is no string", field=_key(name))
    return value


def _types(metadata: Mapping[str, object], count: int) -> list[int]:
    value = metadata.get(_key("token_type"))
    if value is None:
        raise CheckpointError("tokenizer.ggml.token_type is missing", field=_key("token_type"))
    if not isinstance(value, Iterable):
        raise CheckpointError("tokenizer.ggml.token_type is no list", field=_key("token_type"), value=value)
    try:
        types = [int(kind) for kind in value]
    except (TypeError, ValueError) as error:
        raise CheckpointError("tokenizer.ggml.token_type holds something that is no number",
                              field=_key("token_type")) from error
    if len(types) != count:
        raise CheckpointError(f"tokenizer.ggml.token_type has {len(types)} entries for {count} tokens",
                              field=_key("token_type"), value=len(types), limit=count)
    return types


def _id(metadata: Mapping[str, object], name: str, count: int) -> int | None:
    key = _key(f"{name}_token_id")
    value = metadata.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or (name != "eos" and isinstance(value, int) and not 0 <= value < count):
        return None  # as llama.cpp takes it, which only warns; without an eos answers would not end
    if not isinstance(value, int) or not 0 <= value < count:
        raise CheckpointError(f"{key} is {value!r}; there are {count} tokens", field=key, value=value,
                              limit=count)
    return value
