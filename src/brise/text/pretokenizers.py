"""Defines the pre-tokenizers of byte-level BPE, which cut text into words (`tokenizer.ggml.pre` of a GGUF file).

The patterns are those of the models' own tokenizer.json files; llama.cpp's src/llama-vocab.cpp says which
name means which pattern. Tokens never cross a word, so a wrong cut quietly gives a worse model.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.normalizers import NFC, Normalizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

from brise.errors import UnsupportedError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"  # one character that may stand before a word, mostly the space

_LLAMA3 = rf"{_CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")  # llama.cpp's own
_QWEN2 = rf"{_CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_TEKKEN = (rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}"
           rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}")
_GPT4O = (rf"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
          rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}")


# Of models whose tokenizer.json writes the same words in another way, or has a pattern that no GGUF name stands for:
# cl100k as tiktoken has it, DeepSeek's steps, GPT-2's own.
_CL100K = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|"
           r"\s+(?!\S)|\s+")
_DEEPSEEK = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[\u4e00-\u9fff\u3040-\u309f\u30a0-\u30ff]+", r"[\u4e00-\u9fa5]+",
             r"\p{N}{1,3}", r"\p{N}+", r"\p{N}", r"[一-龥぀-ゟ゠-ヿ]+", r"[一-龥]+", r"[一-龥ࠀ-一가-퟿]+",
             r"\s+$", r"\s+")
PATTERNS = frozenset({_LLAMA3, _QWEN2, _TEKKEN, _GPT4O, _GPT2, _CL100K, *_DEFAULT, *_DEEPSEEK})


@dataclass(frozen=True)
class Pretokenization:
    """A pre-tokenizer: each pattern cuts what the one before left; without any it is GPT-2's."""

    patterns: tuple[str, ...] = ()
    single_digits: bool = False
    nfc: bool = False  # the model's own tokenizer composes characters first
    whole_words: bool = False  # a word that is a token becomes that token, whatever the merges say
    add_bos: bool = False  # when the file does not say

    def pre_tokenizer(self) -> PreTokenizer:
        steps: list[PreTokenizer] = [Digits(individual_digits=True)] if self.single_digits else []
        steps += [Split(Regex(pattern), "isolated") for pattern in self.patterns]
        steps.append(ByteLevel(add_prefix_space=False, use_regex=not self.patterns))
        return Sequence(steps) if len(steps) > 1 else steps[0]

    def normalizer(self) -> Normalizer | None:
        return NFC() if self.nfc else None


def named(pre: str) -> Pretokenization:
    """The pre-tokenizer that a GGUF file means by this name."""
    for names, pretokenizer in _PRETOKENIZERS:
        if pre in names:
            return pretokenizer
    known = ", ".join(sorted(name for names, _ in _PRETOKENIZERS for name in names))
    raise UnsupportedError(f"tokenizer.ggml.pre is {pre!r}; this build knows {known}",
                           hint="a wrong guess would cut words wrongly and quietly make the model worse")


_PRETOKENIZERS: tuple[tuple[frozenset[str], Pretokenization], ...] = (
    (frozenset({"smollm", "starcoder", "refact", "codeshell"}), Pretokenization(single_digits=True)),
    (frozenset({"gpt-2", "phi-2"}), Pretokenization()),
    (frozenset({"llama-bpe", "llama3", "llama-v3", "pixtral"}),
     Pretokenization((_LLAMA3,), whole_words=True, add_bos=True)),
    (frozenset({"qwen2"}), Pretokenization((_QWEN2,), nfc=True)),
    (frozenset({"deepseek-r1-qwen"}), Pretokenization((_QWEN2,))),
    (frozenset({"tekken"}), Pretokenization((_TEKKEN,), whole_words=True, add_bos=True)),
    (frozenset({"default"}), Pretokenization(_DEFAULT)),
    (frozenset({"gpt-4o", "llama4"}), Pretokenization((_GPT4O,))),
)
