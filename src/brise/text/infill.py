"""Encodes a prompt whose middle is to be filled in, with the special tokens that a model was trained with.

    Mistral     <s> [SUFFIX] suffix [PREFIX] prefix           the answer follows the prefix
    others      prefix-token prefix suffix-token suffix middle-token

GGUF files may name the tokens: tokenizer.ggml.fim_pre_token_id, fim_suf_token_id, fim_mid_token_id, and in older files
prefix_token_id, suffix_token_id, middle_token_id. Else they are found by their texts, as llama.cpp does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from brise.errors import RequestError
from brise.text.gguf_vocabulary import token_id
from brise.text.protocols import TextTokenizer

# Prefix, suffix and middle: Codestral's, Qwen's and CodeGemma's, StarCoder's and Granite's, SantaCoder's, DeepSeek's,
# CodeLlama's in two ways, Falcon's.
_TEXTS: Sequence[tuple[str, str, str]] = (
    ("[PREFIX]", "[SUFFIX]", ""), ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"), ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ("<PRE>", "<SUF>", "<MID>"), ("<|prefix|>", "<|suffix|>", "<|middle|>"))
# Tokens at which a middle ends, beside the model's own end of an answer: the next file of a repository begins.
_ENDS = ("<|fim_pad|>", "<|fim_repo|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>", "<fim_pad>",
         "<file_sep>", "<repo_name>", "<filename>", "<|endoftext|>", "<EOT>", "▁<EOT>")


@dataclass(frozen=True)
class Infill:
    """The tokens around prefix and suffix; without a token for the middle the suffix comes first."""

    prefix_id: int
    suffix_id: int
    middle_id: int | None
    ends: frozenset[int] = frozenset()

    def encode(self, tokenizer: TextTokenizer, prefix: str, suffix: str) -> tuple[int, ...]:
        """The prompt. The suffix goes on from other text; the prefix begins one."""
        bos = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
        first, last = tokenizer.encode(prefix, before="special"), tokenizer.encode(suffix, before="text")
        if self.middle_id is None:
            return (*bos, self.suffix_id, *last, self.prefix_id, *first)
        return (*bos, self.prefix_id, *first, self.suffix_id, *last, self.middle_id)


def infill_of(tokenizer: TextTokenizer, metadata: Mapping[str, object]) -> Infill | None:
    """How the model is asked to fill in a middle; None if it has no tokens for that."""
    control = tokenizer.control
    ends = frozenset(control[text] for text in _ENDS if text in control)
    named = [_named(metadata, names, tokenizer.vocab_size) for names in (
        ("fim_pre", "prefix"), ("fim_suf", "suffix"), ("fim_mid", "middle"))]
    if named[0] is not None and named[1] is not None and tokenizer.token_text(named[0]) != "[PREFIX]":
        return None if named[2] is None else Infill(named[0], named[1], named[2], ends)
    for prefix, suffix, middle in _TEXTS:
        if prefix in control and suffix in control and (not middle or middle in control):
            return Infill(control[prefix], control[suffix], control[middle] if middle else None, ends)
    return None


def require_infill(infill: Infill | None) -> Infill:
    """The model's way to fill in a middle; RequestError names the field `suffix` for a model without one."""
    if infill is None:
        raise RequestError("'suffix' is not supported: the model has no tokens for filling in the middle",
                           param="suffix", code="unsupported_parameter",
                           hint="take a model for code, such as Codestral or Qwen2.5 Coder")
    return infill


def _named(metadata: Mapping[str, object], names: Sequence[str], count: int) -> int | None:
    return next((token for name in names if (token := token_id(metadata, name, count)) is not None), None)
