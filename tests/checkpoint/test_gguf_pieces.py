"""A SentencePiece vocabulary keeps its ids on the way from a folder into a GGUF file and back."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from gguf import GGUFReader
from tokenizers import Tokenizer as Library
from transformers import PreTrainedTokenizerFast

from brise.checkpoint.gguf.file import open_gguf
from brise.checkpoint.gguf.write_file import write_gguf
from brise.checkpoint.gguf.write_tokenizer import vocabulary
from brise.checkpoint.safetensors.write_hf_tokenizer import tokenizer_files
from brise.errors import CheckpointError
from brise.text.load import gguf_tokenizer, tokens_for
from brise.text.protocols import TextTokenizer
from tests.text import sentencepieces
from tests.text.sentencepieces import V3, mixed_texts, trained
from tests.text.test_load import Files

WORDS = ("\n\n", "<table>", "\u2581\u2581\u2581")
CONTROL = ("[INST]", "<|end|>")
BPE, GEMMA = trained("bpe", control=CONTROL), trained("bpe", prefix=False, words=WORDS, control=CONTROL)
TEXTS = ["[INST]  the wind\n\n<|end|> <table>", *mixed_texts(250, seed=11)]


def json_of(model: bytes, how: str) -> Callable[[Path], object]:
    text = sentencepieces.tokenizer_json(model, how).to_str()  # type: ignore[arg-type]
    return lambda folder: (folder / "tokenizer.json").write_text(text, encoding="utf-8")


def with_right_space(folder: Path) -> None:
    document = json.loads(sentencepieces.tokenizer_json(BPE, "legacy").to_str())
    for entry in document["added_tokens"]:
        entry["rstrip"] = entry["content"] == "<|end|>"
    (folder / "tokenizer.json").write_text(json.dumps(document))


SOURCES: dict[str, Callable[[Path], object]] = {
    "llama": json_of(BPE, "legacy"), "metaspace": json_of(BPE, "first"), "gemma": json_of(GEMMA, "gemma"),
    "unigram": json_of(trained("unigram", norm="nmt_nfkc", control=CONTROL), "plain"), "phi3": with_right_space,
    "file": lambda folder: (folder / "tokenizer.model").write_bytes(BPE),
    "nfkc": lambda folder: (folder / "tokenizer.model").write_bytes(
        trained("unigram", norm="nmt_nfkc", removes=True, control=CONTROL)),
    "v3": lambda folder: shutil.copy(V3, folder / "tokenizer.model.v3")}


def same(one: TextTokenizer, other: TextTokenizer, texts: Sequence[str] = TEXTS) -> None:
    for text in texts:
        ids = one.encode(text, parse_control=True)
        assert other.encode(text, parse_control=True) == ids
        assert other.decode(ids) == one.decode(ids)
    assert (one.bos_id, one.eos_id, one.add_bos) == (other.bos_id, other.eos_id, other.add_bos)


@pytest.mark.parametrize("source", SOURCES)
def test_ids_stay_through_gguf_and_back(tmp_path: Path, source: str) -> None:
    SOURCES[source](tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true}')
    own = tokens_for(Files(tmp_path)).tokenizer
    size = own.vocab_size + 7
    write_gguf(tmp_path / "a.gguf", {"general.architecture": "llama"} | vocabulary(tmp_path, size), [])
    with open_gguf(tmp_path / "a.gguf") as file:
        found = gguf_tokenizer(file.metadata)
        assert found.vocab_size == size and found.is_control(size - 1)
        same(own, found)
        back = tmp_path / "back"
        back.mkdir()
        for name, text in tokenizer_files(file.metadata, 512).items():
            (back / name).write_text(text, encoding="utf-8")
    # Runs of the same characters have several best paths; the library's sums of 64 bits take others than
    # sentencepiece's.
    texts = [text for text in TEXTS if source not in ("unigram", "nfkc") or not re.search(r"(.+)\1\1", text)]
    same(own, tokens_for(Files(back)).tokenizer, texts)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(back / "tokenizer.json"))  # type: ignore[no-untyped-call]
    plain = [text for text in texts if "<" not in text and "\u2581" not in text and text.isascii()]
    assert len(plain) > 40
    for text in plain:
        assert theirs.encode(text, add_special_tokens=False) == own.encode(text, parse_control=True)


def test_gguf_reads_what_llama_cpp_knows(tmp_path: Path) -> None:
    SOURCES["gemma"](tmp_path)
    write_gguf(tmp_path / "a.gguf", {"general.architecture": "llama"} | vocabulary(tmp_path, 3000), [])
    fields = GGUFReader(tmp_path / "a.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"].contents() is False
    assert len(fields["tokenizer.ggml.scores"].data) == 3000
    # The scores alone put the pieces into the order of the merges.
    scores, tokens = fields["tokenizer.ggml.scores"].contents(), fields["tokenizer.ggml.tokens"].contents()
    merges = [merge.replace(" ", "", 1) for merge in fields["tokenizer.ggml.merges"].contents()]
    order = [scores[tokens.index(text)] for text in dict.fromkeys(merges) if text in tokens]
    assert "\n\n" in tokens and "   " in tokens and "\u2581\u2581\u2581" not in tokens
    assert order == sorted(order, reverse=True)


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    SOURCES["file"](tmp_path)
    with pytest.raises(CheckpointError, match="100 embeddings"):
        vocabulary(tmp_path, 100)


def test_an_exported_file_names_its_unknown_token(tmp_path: Path) -> None:
    SOURCES["nfkc"](tmp_path)
    write_gguf(tmp_path / "a.gguf", {"general.architecture": "llama"} | vocabulary(tmp_path, 2600), [])
    with open_gguf(tmp_path / "a.gguf") as file:
        library = Library.from_str(tokenizer_files(file.metadata, 512)["tokenizer.json"])
    assert library.id_to_token(0) == "<unk>" and library.encode("the", add_special_tokens=False).ids
