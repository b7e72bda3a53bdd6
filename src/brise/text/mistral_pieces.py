"""Opens the SentencePiece tokenizers of Mistral's models before Nemo, for mistral-common's chat formats.

The version stands in the file's name: tokenizer.model.v1, .v2, .v3, .v7 (m1 behind it: with images). Without it, the
file's control tokens tell: none (v1), [INST] (v3), [SYSTEM_PROMPT] (v7). text/read_sentencepiece.py reads the pieces;
the library `sentencepiece`, which mistral-common would use, is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from mistral_common.integrations.chat_templates.chat_templates import generate_chat_template
from mistral_common.protocol.instruct.normalize import get_normalizer
from mistral_common.protocol.instruct.validator import ValidationMode, get_validator
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy, TokenizerVersion
from mistral_common.tokens.tokenizers.base import Tokenizer as AnyTokenizer
from mistral_common.tokens.tokenizers.instruct import (
    InstructTokenizerV1,
    InstructTokenizerV2,
    InstructTokenizerV3,
    InstructTokenizerV7,
)
from mistral_common.tokens.tokenizers.model_settings_builder import ModelSettingsBuilder

from brise.errors import CheckpointError, UnsupportedError
from brise.text import read_sentencepiece
from brise.text.mistral import CommonTokenizer
from brise.text.sentencepiece import SentencePieceTokenizer

VERSIONS: Mapping[str, type[InstructTokenizerV1[Any, Any, Any]]] = MappingProxyType({
    "v1": InstructTokenizerV1, "v2": InstructTokenizerV2, "v3": InstructTokenizerV3, "v7": InstructTokenizerV7})
# Version 1 has no tokens of its own: all but bos and eos is text, and an answer begins with the space of its own text.
_V1_TEMPLATE = (
    "{{ bos_token }}{% set turns = messages[1:] if messages[0].role == 'system' else messages %}"
    "{% for m in turns %}{% if m.role == 'user' %}{{ '[INST] ' }}"
    "{% if loop.first and turns|length < messages|length %}{{ messages[0].content + '\\n\\n' }}{% endif %}"
    "{{ m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% else %}"
    "{{ raise_exception('this model takes messages of system, user and assistant') }}{% endif %}{% endfor %}")
_NAME = re.compile(r".*\.model\.(v\d+)(m\d+)?")


def chat_template(path: Path) -> str:
    """A chat template that gives mistral-common's tokens, for a GGUF file of this tokenizer: there a space stands
    before each text behind a special token.

    It writes the result of a call as a string, which mistral-common would write as JSON where it is some.
    """
    _, common = open_pieces(path)
    if common.version is TokenizerVersion.v1:
        return _V1_TEMPLATE
    return generate_chat_template(
        spm=False, tokenizer_version=common.version, image_support=False, audio_support=False, thinking_support=False,
        default_system_prompt=None, plain_thinking_support=False, use_special_token_variables=True,
        model_settings_fields=None, reasoning_effort_values=None, reasoning_effort_default=None)


def open_pieces(path: Path) -> tuple[SentencePieceTokenizer, CommonTokenizer]:
    """The tokenizer, and mistral-common's object for the chat format of its version."""
    tokenizer = read_sentencepiece.from_file(path, {})
    match = _NAME.fullmatch(path.name)
    version = match[1] if match is not None else _version_of(tokenizer)
    if version not in VERSIONS:
        raise UnsupportedError(f"{path.name} has the version {version}; brise reads {', '.join(VERSIONS)} of "
                               "SentencePiece files, and later ones as tekken.json")
    needed = ["<s>", "</s>", *([] if version == "v1" else ["[INST]", "[/INST]", "[TOOL_CALLS]"])]
    if missing := [name for name in needed if name not in tokenizer.control]:
        raise CheckpointError(f"{path.name} has no control token {missing[0]}, which version {version} needs",
                              field="pieces", value=missing[0])
    instruct = VERSIONS[version](_Pieces(tokenizer, path, TokenizerVersion(version)))
    return tokenizer, CommonTokenizer(instruct, get_validator(TokenizerVersion(version), ValidationMode.serving),
                                      get_normalizer(TokenizerVersion(version), None))


def _version_of(tokenizer: SentencePieceTokenizer) -> str:
    if "[INST]" not in tokenizer.control:
        return "v1"
    return "v7" if "[SYSTEM_PROMPT]" in tokenizer.control else "v3"


class _Pieces(AnyTokenizer):
    """Our tokenizer as mistral-common wants it."""

    def __init__(self, tokenizer: SentencePieceTokenizer, path: Path, version: TokenizerVersion) -> None:
        self._tokenizer, self._path, self._version = tokenizer, path, version
        self._unk = tokenizer.pieces.unk_id or 0

    @property
    def n_words(self) -> int:
        return self._tokenizer.vocab_size

    @property
    def special_ids(self) -> set[int]:
        return set(self._tokenizer.control.values())

    @property
    def num_special_tokens(self) -> int:
        return len(self._tokenizer.control)

    @property
    def model_settings_builder(self) -> ModelSettingsBuilder | None:
        return None

    def vocab(self) -> list[str]:
        return list(self._tokenizer.pieces.texts)

    def id_to_piece(self, token_id: int) -> str:
        return self._tokenizer.pieces.texts[token_id]

    @property
    def bos_id(self) -> int:
        return self._tokenizer.control["<s>"]

    @property
    def eos_id(self) -> int:
        return self._tokenizer.control["</s>"]

    @property
    def pad_id(self) -> int:
        return self._tokenizer.control.get("<pad>", -1)

    @property
    def unk_id(self) -> int:
        return self._unk

    def encode(self, s: str, bos: bool, eos: bool) -> list[int]:
        return [*([self.bos_id] if bos else []), *self._tokenizer.encode(s), *([self.eos_id] if eos else [])]

    def decode(self, tokens: list[int], special_token_policy: SpecialTokenPolicy = SpecialTokenPolicy.IGNORE) -> str:
        return self._tokenizer.decode(tokens, show_control=special_token_policy == SpecialTokenPolicy.KEEP)

    def get_special_token(self, s: str) -> int:
        return self._tokenizer.control.get(s, self._unk)

    def is_special(self, token: int | np.integer | str) -> bool:
        return token in self._tokenizer.control if isinstance(token, str) else int(token) in self.special_ids

    @property
    def version(self) -> TokenizerVersion:
        return self._version

    def _to_string(self, tokens: list[int]) -> str:
        return self.decode(tokens, SpecialTokenPolicy.KEEP)

    @property
    def file_path(self) -> Path:
        return self._path
