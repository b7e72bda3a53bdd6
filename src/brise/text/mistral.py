"""Reads Tekken, the tokenizer of Mistral's models since Nemo: a tekken.json, by mistral-common (extra `mistral`).

    {"config": {"pattern", "default_vocab_size", "default_num_special_tokens", "version": "v13", ...},
     "vocab": [{"rank", "token_bytes" (base64), "token_str"}],      ids 1000 and up
     "special_tokens": [{"rank", "token_str", "is_control"}]}       ids 0 to 999; which is which differs by file
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, ToolMessage, UserMessage
from mistral_common.tokens.tokenizers.base import Tokenized
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer as GenericTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from brise.errors import CheckpointError, RequestError, UnsupportedError
from brise.text import pretokenizers, special_tokens
from brise.text.hf_tokenizer import PASSED_ON, read_json
from brise.text.protocols import Before
from brise.text.special_tokens import SpecialTokenSplitter

CommonTokenizer = GenericTokenizer[UserMessage, AssistantMessage, ToolMessage, SystemMessage, Tokenized]
VERSIONS = ("v3", "v7", "v11", "v13", "v15")
_MAX_TOKENS = 1 << 21


class MistralTokenizer:
    """A tekken.json. `common` is mistral-common's own object, for the chat format of the file's version."""

    def __init__(self, path: Path) -> None:
        self._pieces = _read_pieces(path)
        self.common, self._tekken = _open(path)
        self.path = path
        self.version = self._tekken.version.value
        self.num_control = self._tekken.num_special_tokens
        self.control: Mapping[str, int] = MappingProxyType(
            {self._tekken.id_to_piece(token): token for token in range(self.num_control)})
        special_tokens.check(self.control)
        self.bos_id: int | None = self.control["<s>"]
        self.eos_id: int | None = self.control["</s>"]
        self.add_bos = True
        self.text_end_id: int | None = None
        self.end_ids = frozenset({self.control["</s>"]})
        self.vocab_size = self._tekken.n_words

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
        if not 0 <= token < self.vocab_size:
            raise RequestError(f"token {token} does not exist; the vocabulary has {self.vocab_size}")
        if token < self.num_control:
            return self._tekken.id_to_piece(token).encode() if show_control else b""
        return self._pieces[token - self.num_control]

    def token_text(self, token: int) -> str:
        """A token for display: control tokens by name, half characters as U+FFFD."""
        return self.token_bytes(token, show_control=True).decode(errors="replace")

    def is_control(self, token: int) -> bool:
        """Whether the token is no text."""
        return token < self.num_control

    def drops_space_after(self, token: int | None) -> bool:
        """Whether a space that begins the text behind this token is the tokenizer's own: never of Tekken."""
        return False

    @cached_property
    def splitter(self) -> SpecialTokenSplitter:
        """Cuts text at special tokens."""
        return SpecialTokenSplitter(self.control)

    def _encode_plain(self, text: str, before: Before) -> list[int]:
        check_unicode(text)
        try:
            return self._tekken.encode(text, bos=False, eos=False)
        except PASSED_ON:
            raise
        except BaseException as error:  # tiktoken's panics are no Exception
            raise RequestError(f"the model's tokenizer cannot encode this text: {error}") from None


def check_unicode(text: str) -> None:
    """Refuses half a surrogate pair, which mistral-common would replace silently."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError("the text holds half a surrogate pair, which is no Unicode character",
                           code="invalid_unicode") from error


def _read_pieces(path: Path) -> list[bytes]:
    """The bytes of each token of text, after a check of the file; mistral-common takes 10 us to look one up."""
    document = read_json(path)
    _check(document, path)
    vocab, config = document["vocab"], document["config"]
    assert isinstance(vocab, list) and isinstance(config, dict), "checked above"
    count = config["default_vocab_size"] - config["default_num_special_tokens"]
    try:
        pieces = [base64.b64decode(entry["token_bytes"], validate=True) for entry in vocab[:count]]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path.name} has a token of text without its bytes: {error}", field="vocab") from error
    num_bytes = len({piece for piece in pieces if len(piece) == 1})
    if num_bytes < 256:  # tiktoken panics at text that holds one of the others
        raise CheckpointError(f"{path.name} has tokens for {num_bytes} single bytes, allowed are all 256",
                              field="vocab", value=num_bytes, limit=256)
    return pieces


def _open(path: Path) -> tuple[CommonTokenizer, Tekkenizer]:
    try:
        common = CommonTokenizer.from_file(path)
    except PASSED_ON:
        raise
    except BaseException as error:  # foreign code reads an untrusted file: whatever it raises, panics too
        raise CheckpointError(f"{path.name} cannot be used: {str(error)[:300] or type(error).__name__}",
                              field=path.name) from error
    tekken = common.instruct_tokenizer.tokenizer
    if not isinstance(tekken, Tekkenizer):
        raise UnsupportedError(f"{path.name} is no Tekken tokenizer but {type(tekken).__name__}")
    for name in ("<s>", "</s>", "[INST]", "[/INST]"):
        if not tekken.is_special(name):
            raise CheckpointError(f"{path.name} has no control token {name}", field="special_tokens")
    return common, tekken


def _check(document: Mapping[str, object], path: Path) -> None:
    """Checks what mistral-common does not: sizes, and that a control token's rank is its position."""
    config, vocab, control = document.get("config"), document.get("vocab"), document.get("special_tokens")
    if not isinstance(config, dict) or not isinstance(vocab, list) or not isinstance(control, list | None):
        raise CheckpointError(f"{path.name} has no 'config' or no 'vocab'", field=path.name)
    version = config.get("version")
    if version not in VERSIONS:
        raise UnsupportedError(f"{path.name} has the version {version!r}; this build reads {', '.join(VERSIONS)}")
    pattern = config.get("pattern")
    if not isinstance(pattern, str) or pattern.count("(") != pattern.count(")"):
        raise CheckpointError(f"{path.name} has the pattern {str(pattern)[:200]!r}", field="config.pattern",
                              value=str(pattern)[:80], limit="a regular expression")
    if pattern not in pretokenizers.PATTERNS:  # tiktoken would run any, in time without end
        raise UnsupportedError(f"{path.name} splits text by a pattern that brise does not know: {pattern[:200]!r}")
    size, num_control = config.get("default_vocab_size"), config.get("default_num_special_tokens")
    if type(size) is not int or type(num_control) is not int or not (
            0 < num_control <= special_tokens.MAX_COUNT and num_control < size <= _MAX_TOKENS):
        raise CheckpointError(f"{path.name} has {num_control!r} control tokens of {size!r} tokens; at most "
                              f"{special_tokens.MAX_COUNT} of {_MAX_TOKENS} are allowed, and some text",
                              field="config.default_vocab_size",
                              value=size, limit=_MAX_TOKENS)
    if size - num_control > len(vocab):
        raise CheckpointError(f"{path.name} says {size - num_control} tokens of text and has {len(vocab)}",
                              field="vocab", value=len(vocab), limit=size - num_control)
    for place, entry in enumerate(control or []):
        if not isinstance(entry, dict) or entry.get("rank") != place or not isinstance(entry.get("token_str"), str):
            raise CheckpointError(f"special_tokens[{place}] of {path.name} does not have the rank {place} and a name",
                                  field=f"special_tokens[{place}]", value=str(entry)[:80])
