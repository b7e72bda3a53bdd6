"""Answers of models with a SentencePiece vocabulary: the space that stands before a text is no part of them."""

from __future__ import annotations

import json
from functools import cache

import pytest

from brise.engine.engine import Engine, EngineSettings
from brise.engine.request import Request
from brise.text.inputs import Grammar
from brise.text.load import Tokens, gguf_tokenizer
from brise.text.protocols import TextTokenizer
from brise.text.sentencepiece import SentencePieceTokenizer
from tests.engine.stub import GREEDY, answer, stub_model, text_of
from tests.text.sentencepieces import gguf_metadata, mixed_texts, trained


@cache
def tokenizer() -> SentencePieceTokenizer:
    made = gguf_tokenizer(gguf_metadata(trained("bpe", control=("[INST]", "[/INST]"))))
    assert isinstance(made, SentencePieceTokenizer)
    return made


def engine(reply: str, tok: TextTokenizer) -> Engine:
    return Engine(stub_model(reply, tokens=Tokens(tok, None)), EngineSettings(num_pages=256))


def prompt(text: str) -> tuple[int, ...]:
    return (1, *tokenizer().encode(text, parse_control=True))


def test_the_stream_is_what_decoding_at_once_gives() -> None:
    for text in mixed_texts(60, seed=3):
        if not text or any(name in text for name in tokenizer().control) or "\u2581" in text:
            continue
        deltas = answer(engine(text, tokenizer()), Request(prompt("[INST]x[/INST]"), 400, GREEDY))
        ids = [token for delta in deltas for token in delta.tokens]
        assert text_of(deltas) == tokenizer().decode(ids) == text
        assert "\ufffd" in text or not any("\ufffd" in delta.text for delta in deltas)  # no half characters


def test_a_text_that_goes_on_keeps_its_space() -> None:
    deltas = answer(engine("wind", tokenizer()), Request(prompt("a cold"), 20, GREEDY))
    assert text_of(deltas) == " wind"
    chat = Request(prompt("[INST] as text in version 1 [/INST]")[:-1], 20, GREEDY, begins_text=True)
    assert text_of(answer(engine("wind", tokenizer()), chat)) == "wind"


@pytest.mark.parametrize("grammar", [
    Grammar("json_schema", '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'),
    Grammar("json_object"), Grammar("lark", 'start: "{" /"a": [0-9]+/ "}"')], ids=["schema", "object", "lark"])
def test_a_grammar_lets_the_model_write_the_space(grammar: Grammar) -> None:
    deltas = answer(engine('{"a": 1}', tokenizer()), Request(prompt("x[/INST]"), 50, GREEDY, grammar=grammar))
    first = deltas[0].tokens[0]
    assert tokenizer().token_bytes(first).startswith(b" ") and json.loads(text_of(deltas)) == {"a": 1}
    assert text_of(deltas)[0] == "{"
