"""The tokenizer of a tekken.json: its own inverse, what is text and what is control, and files that lie."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.errors import BriseError, CheckpointError, RequestError, UnsupportedError
from brise.text.mistral import MistralTokenizer
from brise.text.tokenizer import Tokenizer
from tests.text import tekken

WORDS = ("[INST]", "</s>", " the", "12", "\n\n", "é", "HTTPServer", "a/b")
TEXTS = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.sampled_from(WORDS)).map("".join))


@pytest.fixture(scope="module")
def tok(tmp_path_factory: pytest.TempPathFactory) -> MistralTokenizer:
    return MistralTokenizer(tekken.write(tmp_path_factory.mktemp("v13")))


@pytest.fixture(scope="module")
def gguf() -> Tokenizer:
    return Tokenizer.from_gguf(tekken.gguf_metadata())


@given(text=TEXTS)
def test_decoding_is_the_inverse_and_plain_text_makes_no_control_token(tok: MistralTokenizer, text: str) -> None:
    ids = tok.encode(text)
    assert tok.decode(ids) == text and not any(tok.is_control(token) for token in ids)
    assert b"".join(map(tok.token_bytes, ids)) == text.encode()


@given(text=TEXTS)
def test_the_same_vocabulary_in_a_gguf_file_gives_the_same_ids(tok: MistralTokenizer, gguf: Tokenizer,
                                                               text: str) -> None:
    assert tok.encode(text) == gguf.encode(text)
    assert tok.encode(text, parse_control=True) == gguf.encode(text, parse_control=True)


def test_control_tokens_are_those_of_the_file(tok: MistralTokenizer) -> None:
    assert tok.encode("<s>[INST]a[/INST]", parse_control=True) == [1, 3, *tok.encode("a"), 4]
    assert (tok.bos_id, tok.eos_id, tok.end_ids, tok.add_bos, tok.vocab_size) == (1, 2, {2}, True, 2040)
    assert (tok.token_bytes(9), tok.token_bytes(9, show_control=True), tok.token_text(9)) == (
        b"", b"[TOOL_CALLS]", "[TOOL_CALLS]")


def test_ids_are_not_taken_for_granted(tmp_path: Path) -> None:
    names = ["</s>", "<s>", "<unk>", *tekken.control_names("v13")[3:]]
    names[31], names[32] = names[32], names[31]  # in some models 32 is another token than [ARGS]
    tok = MistralTokenizer(tekken.write(tmp_path, control=names))
    assert (tok.bos_id, tok.eos_id, tok.end_ids, tok.control["[ARGS]"]) == (1, 0, {0}, 31)


@pytest.mark.parametrize("token", [-1, 2040])
def test_a_token_that_does_not_exist_is_refused(tok: MistralTokenizer, token: int) -> None:
    with pytest.raises(RequestError, match="has 2040"):
        tok.token_bytes(token)


def test_half_a_surrogate_pair_is_refused(tok: MistralTokenizer) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        tok.encode("a\ud800")


def change(**values: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update(values)


def config(**values: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["config"].update(values)


@pytest.mark.parametrize(("lie", "kind"), [
    (config(version="v99"), UnsupportedError), (config(version="v1"), UnsupportedError),
    (config(default_num_special_tokens=1 << 60), CheckpointError),
    (config(default_vocab_size=1 << 60), CheckpointError),
    (config(default_vocab_size="9"), CheckpointError), (config(default_vocab_size=9000), CheckpointError),
    (config(default_vocab_size=50), CheckpointError),
    (config(pattern="("), CheckpointError), (config(pattern=5), CheckpointError), (change(config=[]), CheckpointError),
    (change(vocab={}), CheckpointError), (change(vocab=[{}] * 2000), CheckpointError),
    (change(special_tokens=None), CheckpointError),
    (change(special_tokens=[{"rank": 5, "token_str": "<s>"}]), CheckpointError),
    (change(special_tokens=[{"rank": 0, "token_str": "<s>", "is_control": True}]), CheckpointError),
    (change(image={"nonsense": 1}), CheckpointError)])
def test_a_file_that_lies_is_refused(tmp_path: Path, lie: Callable[[dict[str, Any]], None],
                                     kind: type[BriseError]) -> None:
    content: dict[str, Any] = tekken.document("v13")
    lie(content)
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(content))
    with pytest.raises(kind, match="tekken.json"):
        MistralTokenizer(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{" * 100_000, b'{"config": 5}'])
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tekken.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="tekken.json"):
        MistralTokenizer(path)


def test_the_whole_bundled_vocabulary_is_read() -> None:
    tok = MistralTokenizer(tekken.BUNDLED)
    assert tok.vocab_size == 131072 and tok.num_control == 1000 and tok.version == "v3"
    text = "Les 3 brises d'été — 風 [INST]"
    assert tok.decode(tok.encode(text)) == text
    names: Mapping[str, int] = tok.control
    assert all(names[name] == index for index, name in tekken.NAMES.items())


def test_a_pattern_that_no_model_has_is_refused_by_name(tmp_path: Path) -> None:
    content: dict[str, Any] = tekken.document("v13")
    config(pattern="(a+)+$")(content)
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    with pytest.raises(UnsupportedError, match="pattern that brise does not know"):
        MistralTokenizer(tmp_path / "tekken.json")
