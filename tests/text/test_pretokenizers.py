"""How each `tokenizer.ggml.pre` cuts text: as llama.cpp does, but for tekken's marks."""

from __future__ import annotations

import pytest

from brise.errors import UnsupportedError
from brise.text import pretokenizers
from tests.text.vocabulary import byte_letters

TEXT = "I'M you'll  2024 x=1;\n\n\tend"
WORDS = {
    "smollm": ["I", "'", "M", " you", "'ll", "  ", "2", "0", "2", "4", " x", "=", "1", ";", "\n\n", "\t",
               "end"],
    "gpt-2": ["I", "'", "M", " you", "'ll", " ", " 2024", " x", "=", "1", ";", "\n\n", "\t", "end"],
    "llama-bpe": ["I", "'M", " you", "'ll", " ", " ", "202", "4", " x", "=", "1", ";\n\n", "\tend"],
    "qwen2": ["I", "'M", " you", "'ll", " ", " ", "2", "0", "2", "4", " x", "=", "1", ";\n\n", "\tend"],
    "tekken": ["I", "'M", " you", "'ll", " ", " ", "2", "0", "2", "4", " x", "=", "1", ";\n\n", "\tend"],
    "gpt-4o": ["I'M", " you'll", " ", " ", "202", "4", " x", "=", "1", ";\n\n", "\tend"],
    "default": ["I", "'", "M", " you", "'", "ll", " ", " ", "202", "4", " x", "=", "1", ";", "\n\n", "\t",
                "end"],
}


@pytest.mark.parametrize("pre", WORDS)
def test_words_are_cut_as_the_model_was_trained(pre: str) -> None:
    assert words(pre, TEXT) == WORDS[pre]


def test_tekken_cuts_between_lower_and_upper_case_and_keeps_marks_with_letters() -> None:
    assert words("tekken", "camelCase HTTPServer नमस्ते/\n") == ["camel", "Case", " HTTPServer", " नमस्ते", "/\n"]


def test_qwen_composes_characters_first() -> None:
    normalizer = pretokenizers.named("qwen2").normalizer()
    assert normalizer is not None and normalizer.normalize_str("e\u0301") == "é"


def test_an_unknown_name_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="'kimi-k2'"):
        pretokenizers.named("kimi-k2")


def words(pre: str, text: str) -> list[str]:
    byte = {letter: number for number, letter in enumerate(byte_letters())}
    pieces = pretokenizers.named(pre).pre_tokenizer().pre_tokenize_str(text)
    return [bytes(byte[letter] for letter in piece).decode() for piece, _ in pieces]
