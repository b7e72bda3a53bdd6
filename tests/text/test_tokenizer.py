"""The tokenizer against llama.cpp's ids, its own inverse, and files that lie."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brise.checkpoint.gguf.file import open_gguf
from brise.errors import BriseError, CheckpointError, RequestError, UnsupportedError
from brise.text.tokenizer import Tokenizer
from tests.profiles import examples
from tests.text.vocabulary import CONTROL, metadata, tokenizer

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))  # no halves of surrogate pairs
TINY = tokenizer()


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Tokenizer:
    return Tokenizer.from_gguf(open_gguf(smollm2_path).metadata)


def test_smollm2_gives_llama_cpps_ids(smollm2: Tokenizer) -> None:
    expected = json.loads(Path(__file__).with_name("smollm2_ids.json").read_text())
    assert {text: smollm2.encode(text) for text in expected} == expected


def test_smollm2_ends_and_begins(smollm2: Tokenizer) -> None:
    assert (smollm2.bos_id, smollm2.eos_id, smollm2.add_bos, smollm2.vocab_size) == (1, 2, False, 49152)
    assert smollm2.end_ids == {0, 2}  # <|endoftext|> too, though the file names only <|im_end|>


def test_a_byte_without_a_token_is_refused_not_dropped(smollm2: Tokenizer) -> None:
    with pytest.raises(RequestError, match="0x04"):
        smollm2.encode("a\x04b")


@given(TEXTS)
def test_decode_undoes_encode(text: str) -> None:
    assert TINY.decode(TINY.encode(text)) == text


@given(TEXTS)
def test_token_bytes_add_up_to_the_text(text: str) -> None:
    assert b"".join(map(TINY.token_bytes, TINY.encode(text))) == text.encode()


@given(st.lists(st.one_of(st.sampled_from([*CONTROL, "<", "|", ">"]), st.text(max_size=3))).map("".join))
def test_control_tokens_never_arise_from_text(text: str) -> None:
    clean = text.encode(errors="ignore").decode()
    assert not set(TINY.encode(clean)) & set(TINY.control.values())


def test_a_whole_word_is_no_control_token_either() -> None:
    tekken = tokenizer("tekken", control=("<s>", "PAD"), words=("hello",))
    assert tekken.encode("hello") == [tekken.vocab_size - 1]  # though no merges lead there
    assert tekken.control["PAD"] not in tekken.encode("PAD")


def test_parse_control_finds_the_longest() -> None:
    tok = tokenizer(control=("<a>", "<a>b", "<c>"))
    assert tok.encode("<a>b<a>c<c>", parse_control=True) == [1, 0, *tok.encode("c"), 2]


def test_control_tokens_are_hidden_unless_shown() -> None:
    ids = [1, *TINY.encode("hi"), 2]
    assert TINY.decode(ids) == "hi"
    assert TINY.decode(ids, show_control=True) == "<|im_start|>hi<|im_end|>"
    assert (TINY.token_bytes(1), TINY.token_text(1), TINY.is_control(1)) == (b"", "<|im_start|>", True)


def test_user_defined_tokens_are_shown_but_do_not_arise_from_text() -> None:
    tok = tokenizer(user_defined=("<think>",))
    assert tok.decode([3]) == "<think>" and not tok.is_control(3) and not tok.is_control_text("<think>")
    assert 3 not in tok.encode("<think>") and tok.encode("<think>", parse_control=True) == [3]
    assert tok.is_control_text("<|im_end|>") and not tok.is_control_text("hi")


def test_half_a_character_shows_as_replacement() -> None:
    half = TINY.encode("é")[:1]
    assert TINY.decode(half) == TINY.token_text(half[0]) == "\ufffd" and TINY.token_bytes(half[0]) == b"\xc3"


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(RequestError, match="surrogate"):
        TINY.encode("a\ud800")


def test_a_token_that_does_not_exist_is_refused() -> None:
    with pytest.raises(RequestError, match="has 269"):
        TINY.token_bytes(TINY.vocab_size)


def test_bos_is_added_as_the_file_or_else_its_kind_says() -> None:
    assert not tokenizer("smollm").add_bos and not tokenizer("qwen2").add_bos
    assert tokenizer("tekken").add_bos and tokenizer("llama-bpe").add_bos
    assert tokenizer("tekken", add_bos_token=False).add_bos is False
    assert tokenizer("smollm", add_bos_token=True).add_bos is True


@pytest.mark.parametrize(("key", "value"), [
    ("model", "llama"), ("model", "bert"), ("model", None), ("pre", "what"), ("pre", None),
    ("add_eos_token", True)])
def test_what_is_not_supported_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(UnsupportedError, match=f"tokenizer.ggml.{key}"):
        Tokenizer.from_gguf(metadata(**{key: value}))


@pytest.mark.parametrize(("key", "value"), [
    ("tokens", None), ("tokens", ["a", 5]), ("tokens", "abc"), ("tokens", ["a", "b"]), ("merges", ["q z"]),
    ("merges", ["a"]), ("merges", ["a b c", "d"]), ("token_type", None), ("token_type", 3),
    ("token_type", [1]), ("eos_token_id", 10**6), ("bos_token_id", "x")])
def test_a_wrong_key_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=f"tokenizer.ggml.({key}|token)"):
        Tokenizer.from_gguf(metadata(**{key: value}))


def test_a_token_twice_and_a_token_of_no_bytes_are_refused() -> None:
    for bad in ("t", "日本"):
        broken = metadata(words=(bad,))
        with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.tokens"):
            Tokenizer.from_gguf(broken)


def test_blank_user_defined_tokens_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="blank"):
        tokenizer(user_defined=("  ",))


@settings(max_examples=examples(50))
@given(st.dictionaries(st.sampled_from(sorted(metadata())), st.one_of(
    st.none(), st.integers(), st.text(), st.lists(st.integers(0, 9)), st.lists(st.text()))))
def test_any_metadata_gives_a_tokenizer_or_a_typed_error(changes: dict[str, object]) -> None:
    try:
        Tokenizer.from_gguf(metadata() | changes)
    except BriseError:
        pass


@pytest.mark.parametrize("token", [10**6, (1 << 32) - 1, -1])
def test_a_bos_that_no_token_has_counts_as_none(token: int) -> None:
    odd = tokenizer(bos_token_id=token, add_bos_token=True)
    assert odd.bos_id is None and not odd.add_bos


def test_a_token_id_may_be_a_whole_number_in_a_float() -> None:
    assert tokenizer(bos_token_id=1.0).bos_id == 1


def test_texts_of_an_embedding_model_end_with_eos_where_the_file_says_so() -> None:
    keys = metadata(add_eos_token=True) | {"general.architecture": "qwen3", "qwen3.pooling_type": 3}
    assert Tokenizer.from_gguf(keys).text_end_id == 2 and TINY.text_end_id is None
