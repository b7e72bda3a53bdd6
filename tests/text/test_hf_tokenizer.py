"""tokenizer.json files: as the library that wrote them reads them, but no text becomes a control token."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Reference
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE, WordLevel
from tokenizers.processors import TemplateProcessing

from brise.errors import BriseError, CheckpointError, UnsupportedError
from brise.text import pretokenizers
from brise.text.tokenizer import Tokenizer
from tests.text.vocabulary import MERGES, byte_letters

LLAMA3 = pretokenizers.named("llama-bpe").patterns[0]
CONFIG = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}


@cache
def reference() -> Reference:
    """Built as Llama 3's file: a split pattern, control tokens at the end, bos by the post-processor."""
    words = [*byte_letters(), *(merge.replace(" ", "") for merge in MERGES)]
    made = Reference(BPE({word: index for index, word in enumerate(words)}, [tuple(m.split()) for m in MERGES],
                          # type: ignore[arg-type,misc]
                         ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                                                   # type: ignore[assignment]
                                                  pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.normalizer = normalizers.NFC()  # type: ignore[assignment]
    made.decoder = ByteLevel()  # type: ignore[assignment]
    made.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    made.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    made.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>",
                                                                        made.token_to_id("<s>"))])  # type: ignore[assignment]
    return made


def write(folder: Path, **changes: object) -> Path:
    document: dict[str, Any] = json.loads(reference().to_str())
    document["model"] |= changes.pop("model", {})  # type: ignore[operator]
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document | changes))
    return path


@pytest.fixture(scope="module")
def tok(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_hf(write(tmp_path_factory.mktemp("hf")), CONFIG)


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_text_gets_the_ids_of_the_library(tok: Tokenizer, text: str) -> None:
    assert tok.encode(text) == reference().encode(text, add_special_tokens=False).ids
    assert tok.decode(tok.encode(text)) == normalizers.NFC().normalize_str(text)


def test_control_tokens_arise_only_where_they_are_asked_for(tok: Tokenizer) -> None:
    bos, eos, think = (tok.control[name] for name in ("<s>", "</s>", "<think>"))
    assert not {bos, eos, think} & set(tok.encode("<s></s><think>"))
    assert tok.encode("<s>a<think></s>", parse_control=True) == [bos, *tok.encode("a"), think, eos]
    assert tok.is_control(eos) and not tok.is_control(think) and tok.token_bytes(think) == b"<think>"
    assert (tok.bos_id, tok.eos_id, tok.add_bos) == (bos, eos, True) and tok.end_ids == {eos}


def test_the_config_decides_on_bos_and_other_files_on_more_ends(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert not Tokenizer.from_hf(path, {**CONFIG, "add_bos_token": False}).add_bos
    assert Tokenizer.from_hf(write(tmp_path, post_processor=None), {**CONFIG, "add_bos_token": True}).add_bos
    assert not Tokenizer.from_hf(write(tmp_path, post_processor=None), CONFIG).add_bos
    assert {5, 267} <= Tokenizer.from_hf(path, CONFIG, [5, 1 << 40]).end_ids


def test_gaps_between_ids_are_no_text(tmp_path: Path) -> None:
    added = [{"id": 300, "content": "<far>", "special": True}]
    tok = Tokenizer.from_hf(write(tmp_path, added_tokens=added), {})
    assert tok.vocab_size == 301 and tok.control == {"<far>": 300} and tok.is_control(280)
    assert tok.token_bytes(280) == b"" and tok.bos_id is None


@pytest.mark.parametrize("as_pairs", [False, True])
def test_merges_are_strings_or_pairs(tmp_path: Path, as_pairs: bool) -> None:
    merges = [merge.split() if as_pairs else merge for merge in MERGES]
    assert len(Tokenizer.from_hf(write(tmp_path, model={"merges": merges}), {}).encode("the")) == 1


@pytest.mark.parametrize(("changes", "kind", "message"), [
    ({"model": {"type": "Unigram"}}, UnsupportedError, "SentencePiece"),
    ({"model": {"byte_fallback": True}}, UnsupportedError, "SentencePiece"),
    ({"decoder": {"type": "Metaspace"}}, UnsupportedError, "SentencePiece"),
    ({"model": {"dropout": 0.1}}, UnsupportedError, "dropout"),
    ({"model": {"vocab": {"a": "b"}}}, CheckpointError, "vocab"),
    ({"model": {"vocab": {"a": -5}}}, CheckpointError, "ids"),
    ({"model": {"vocab": {"a": 1 << 40}}}, CheckpointError, "ids"),
    ({"model": {"merges": ["x y z"]}}, CheckpointError, "cannot be used"),
    ({"model": {"merges": ["nope no"]}}, CheckpointError, "cannot be used"),
    ({"added_tokens": [{"id": 5}]}, CheckpointError, "added_tokens"),
    ({"added_tokens": 5}, CheckpointError, "added_tokens"),
    ({"pre_tokenizer": {"type": "Nonsense"}}, CheckpointError, "cannot be used"),
    ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}},
     CheckpointError, "cannot be used")])
def test_what_cannot_be_read_is_refused(tmp_path: Path, changes: dict[str, object], kind: type[BriseError],
                                        message: str) -> None:
    with pytest.raises(kind, match=message):
        Tokenizer.from_hf(write(tmp_path, **changes), CONFIG)


def test_a_model_of_whole_words_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(Reference(WordLevel({"a": 0}, "a")).to_str())
    with pytest.raises(UnsupportedError, match="WordLevel"):
        Tokenizer.from_hf(path, {})


def test_what_stands_behind_a_text_that_is_embedded(tmp_path: Path) -> None:
    plain = {"type": "Sequence", "processors": [
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}},
                                                  {"SpecialToken": {"id": "<think>", "type_id": 0}}],
         "pair": [], "special_tokens": {"<think>": {"id": "<think>", "ids": [7], "tokens": ["<think>"]}}}]}
    path = write(tmp_path, post_processor=plain)
    assert Tokenizer.from_hf(path, CONFIG).text_end_id == 7
    assert Tokenizer.from_hf(path, CONFIG | {"add_eos_token": False}).text_end_id is None
    eos = Tokenizer.from_hf(path, CONFIG | {"add_eos_token": True})
    assert eos.text_end_id == eos.eos_id
