"""Filling in the middle: mistral-common's tokens for Codestral, and the tokens that other models name."""

from __future__ import annotations

import pytest
from mistral_common.protocol.fim.request import FIMRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer as CommonTokenizer

from brise.errors import RequestError
from brise.text.infill import Infill, infill_of, require_infill
from brise.text.load import gguf_tokenizer
from brise.text.mistral import MistralTokenizer
from brise.text.mistral_pieces import open_pieces
from brise.text.protocols import TextTokenizer
from tests.text import tekken
from tests.text.sentencepieces import V1, V2, V3, V7, gguf_metadata, mixed_texts, trained
from tests.text.vocabulary import tokenizer

PAIRS = list(zip(mixed_texts(60, seed=1), mixed_texts(60, seed=2), strict=True))
QWEN = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|endoftext|>")


def found(tok: TextTokenizer, **keys: int) -> Infill | None:
    return infill_of(tok, {f"tokenizer.ggml.{name}_token_id": token for name, token in keys.items()})


@pytest.mark.parametrize("path", [V3, V7], ids=["v3", "v7"])
def test_codestral_gets_mistral_commons_tokens(path: object) -> None:
    tok, _ = open_pieces(path)  # type: ignore[arg-type]
    common, infill = CommonTokenizer.from_file(str(path)), found(tok)
    assert infill is not None
    for prefix, suffix in (("def f(x):\n    ", "\n    return x\n"), *PAIRS):
        if suffix:
            expected = common.encode_fim(FIMRequest(prompt=prefix, suffix=suffix)).tokens
            assert list(infill.encode(tok, prefix, suffix)) == expected


def test_tekken_gets_mistral_commons_tokens() -> None:
    tok = MistralTokenizer(tekken.BUNDLED)
    infill = found(tok)
    assert infill is not None
    for prefix, suffix in (("def f(x):\n    ", "\n    return x\n"), ("a = ", "b"), ("", "} // end")):
        expected = tok.common.encode_fim(FIMRequest(prompt=prefix, suffix=suffix)).tokens
        assert list(infill.encode(tok, prefix, suffix)) == expected


def test_others_write_prefix_suffix_and_middle_in_turn() -> None:
    tok = tokenizer(control=QWEN, eos_token_id=4)
    infill, control = found(tok), tok.control
    assert infill is not None and infill.ends == {control["<|fim_pad|>"], control["<|endoftext|>"]}
    assert infill.encode(tok, "the <|fim_suffix|>", " in") == (
        control[QWEN[0]], *tok.encode("the <|fim_suffix|>"), control[QWEN[2]], *tok.encode(" in"), control[QWEN[1]])


def test_a_gguf_file_may_name_its_tokens() -> None:
    tok = tokenizer(control=("<a>", "<b>", "<c>"))
    assert found(tok) is None
    for names in (("fim_pre", "fim_suf", "fim_mid"), ("prefix", "suffix", "middle")):
        infill = found(tok, **dict(zip(names, (1, 2, 0), strict=True)))
        assert infill == Infill(1, 2, 0)
    assert found(tok, fim_pre=1, fim_suf=2) is None


def test_code_llama_keeps_the_spaces_of_a_middle() -> None:

    tok = gguf_tokenizer(gguf_metadata(trained("bpe", control=("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"))))
    infill = found(tok)
    assert infill is not None and infill.middle_id is not None
    tokens = infill.encode(tok, "the", "the")
    assert tokens == (1, infill.prefix_id, *tok.encode("the"), infill.suffix_id,
                      *tok.encode("the", before="text"), infill.middle_id)
    assert not tok.drops_space_after(infill.middle_id)


def test_a_model_without_the_tokens_refuses_the_field() -> None:
    for path in (V1, V2):
        tok, _ = open_pieces(path)
        with pytest.raises(RequestError, match="'suffix' is not supported") as refused:
            require_infill(found(tok))
        assert refused.value.param == "suffix"
