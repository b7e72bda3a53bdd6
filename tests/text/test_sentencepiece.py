"""SentencePiece vocabularies get sentencepiece's ids, from each kind of file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

import pytest
from tokenizers import normalizers

from brise.errors import CheckpointError, RequestError, UnsupportedError
from brise.text import hf_tokenizer, read_sentencepiece, sentencepiece_file
from brise.text.charsmap import CharsMap
from brise.text.load import gguf_tokenizer
from brise.text.sentencepiece import SentencePieceTokenizer, is_marker
from tests.cpu_time import cpu_s
from tests.text import sentencepieces
from tests.text.sentencepieces import V1, V2, V3, V7, Kind, mixed_texts, processor, trained


def from_bytes(folder: Path, model: bytes) -> SentencePieceTokenizer:
    (folder / "tokenizer.model").write_bytes(model)
    return read_sentencepiece.from_file(folder / "tokenizer.model", {})


def from_json(folder: Path, text: str) -> SentencePieceTokenizer:
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    document = hf_tokenizer.read_json(folder / "tokenizer.json")
    assert hf_tokenizer.is_sentencepiece(document)
    return read_sentencepiece.from_hf(hf_tokenizer.read(folder / "tokenizer.json", {"bos_token": "<s>"}, document),
                                      document, "tokenizer.json")


@pytest.mark.parametrize("path", [V1, V2, V3, V7], ids=["v1", "v2", "v3", "v7"])
def test_mistrals_own_vocabularies(path: Path) -> None:
    """32,000 and 32,768 pieces; fifteen runs of spaces have one score."""
    spm, tok = processor(path.read_bytes()), read_sentencepiece.from_file(path, {})
    gguf = gguf_tokenizer(sentencepieces.gguf_metadata(path.read_bytes()))
    for text in mixed_texts(2500, seed=path.stat().st_size):
        ids = spm.encode(text)
        assert tok.encode(text) == ids and gguf.encode(text) == ids
        assert tok.decode(ids) == gguf.decode(ids) == spm.decode(ids)


@pytest.mark.parametrize("prefix", [True, False], ids=["prefix", "bare"])
@pytest.mark.parametrize("removes", [True, False], ids=["collapsed", "spaces"])
@pytest.mark.parametrize("norm", ["identity", "nmt_nfkc"])
@pytest.mark.parametrize(("kind", "has_bytes"), [("bpe", True), ("bpe", False), ("unigram", True), ("unigram", False)])
def test_trained_vocabularies(tmp_path: Path, kind: Kind, has_bytes: bool, norm: str, removes: bool,
                              prefix: bool) -> None:
    model = trained(kind, prefix=prefix, removes=removes, norm=norm, has_bytes=has_bytes)
    spm, tok = processor(model), from_bytes(tmp_path, model)
    for text in mixed_texts(400, seed=len(model)):
        assert tok.encode(text) == spm.encode(text)


def test_user_defined_pieces_are_never_cut(tmp_path: Path) -> None:
    model = trained("bpe", words=("\u2581\u2581", "\u2581\u2581\u2581\u2581", "<table>", "foo", "the"))
    spm, tok = processor(model), from_bytes(tmp_path, model)
    for text in [*mixed_texts(400), "a<table>food    the  other"]:
        assert tok.encode(text) == spm.encode(text)


@pytest.mark.parametrize("how", ["legacy", "first"])
def test_a_tokenizer_json_of_llamas_gets_the_librarys_ids(tmp_path: Path, how: Literal["legacy", "first"]) -> None:
    library = sentencepieces.tokenizer_json(trained("bpe"), how)
    tok = from_json(tmp_path, library.to_str())
    for text in mixed_texts(600):
        ids = library.encode(text, add_special_tokens=False).ids
        assert [token for token in tok.encode(text, parse_control=True)] == ids
        assert tok.decode(ids) == library.decode(ids)


def test_a_tokenizer_json_of_gemmas_gets_the_librarys_ids(tmp_path: Path) -> None:
    library = sentencepieces.tokenizer_json(trained("bpe", prefix=False, words=("\n\n", "<table>", "\u2581\u2581")),
                                            "gemma")
    tok = from_json(tmp_path, library.to_str())
    assert tok.token_bytes(library.token_to_id("\n\n") or 0) == b"\n\n"
    for text in [*mixed_texts(600), "a\n\n<table>  b"]:
        ids = library.encode(text, add_special_tokens=False).ids
        assert tok.encode(text, parse_control=True) == ids
        assert tok.decode(ids) == library.decode(ids)


def test_a_unigram_of_a_tokenizer_json_gets_the_librarys_ids(tmp_path: Path) -> None:
    library = sentencepieces.tokenizer_json(trained("unigram", norm="nmt_nfkc"), "plain")
    tok = from_json(tmp_path, library.to_str())
    normalize = normalizers.Precompiled(tok.rules.charsmap).normalize_str
    texts = [text for text in mixed_texts(600) if normalize(text) == CharsMap(tok.rules.charsmap).apply(text)]
    # The library finds pieces of bytes and <unk> in text, and looks at graphemes, so it does not compose Hangul.
    same = [text for text in texts if not re.search("<0x|<unk>", text)]
    assert len(same) > 400
    for text in same:
        assert tok.encode(text, parse_control=True) == library.encode(text, add_special_tokens=False).ids


def test_the_space_before_a_text_depends_on_what_stands_before_it(tmp_path: Path) -> None:
    model = trained("bpe", control=("[INST]",))
    file = from_bytes(tmp_path, model)
    first = from_json(tmp_path, sentencepieces.tokenizer_json(model, "first").to_str())
    inst = file.control["[INST]"]
    assert file.encode("the", before="special") == file.encode("the") != file.encode("the", before="text")
    assert first.encode("the", before="special") == first.encode("the", before="text") == file.encode(
        "the", before="text")
    assert file.encode("the[INST]the", parse_control=True) == [*file.encode("the"), inst, *file.encode("the")]
    assert file.decode(file.encode("the[INST]the", parse_control=True), show_control=True) == "the[INST]the"
    assert file.drops_space_after(None) and file.drops_space_after(inst) and not file.drops_space_after(
        file.encode("the")[0])


def test_each_token_has_its_bytes(tmp_path: Path) -> None:
    tok = from_bytes(tmp_path, trained("bpe"))
    text = "  the wind\n\t🙂 \u0000 각"
    assert b"".join(map(tok.token_bytes, tok.encode(text, before="text"))) == text.encode()
    assert tok.token_bytes(tok.pieces.texts.index("<0x0A>")) == b"\n"
    assert tok.token_bytes(1) == b"" and tok.token_bytes(1, show_control=True) == b"<s>" and tok.is_control(0)


def test_no_text_becomes_a_control_token(tmp_path: Path) -> None:
    tok = from_bytes(tmp_path, trained("bpe", control=("[INST]",), words=("<start_of_turn>", "<h1>")))
    ids = tok.encode("<s></s><unk>[INST]<start_of_turn><h1><0x41>")
    assert not {*ids} & {0, 1, 2, tok.control["[INST]"], tok.control["<start_of_turn>"]}
    assert tok.pieces.texts.index("<h1>") in ids and tok.pieces.texts.index("<0x41>") not in ids
    assert [is_marker(text) for text in ("<|end|>", "[X]", "</table>", "\n\n", "<a", "<think>")] == [
        True, True, False, False, False, True]


def test_the_white_space_behind_a_special_token_may_belong_to_it() -> None:
    metadata = sentencepieces.gguf_metadata(trained("bpe", control=("<|end|>", "<|user|>")), add_space_prefix=False)
    other, phi3 = (gguf_tokenizer({**metadata, "general.architecture": name}) for name in ("llama", "phi3"))
    text, end = "<|user|>\nHello<|end|>\n", other.control["<|end|>"]
    assert phi3.encode(text, parse_control=True) == [phi3.control["<|user|>"], *phi3.encode("Hello"), end]
    assert other.encode(text, parse_control=True)[-1] != end


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("unit", ["the", "=", " "])
def test_the_time_of_a_text_without_words_grows_with_its_length(tmp_path: Path, kind: Kind, unit: str) -> None:
    tok = from_bytes(tmp_path, trained(kind))
    short, long = (min(cpu_s(lambda text=unit * count: tok.encode(text)) for _ in range(2))  # type: ignore[misc]
                   for count in (2000, 16_000))
    assert long < 24 * short + 0.01, "8 times as long if linear, 64 times if quadratic"


@pytest.mark.parametrize(("data", "message"), [
    (b"", "no pieces"), (b"\x0a\x7f", "a field of 127 bytes"), (b"\xff" * 12, "64 bits"),
    (b"\x0a\x02\x0a\x00", "piece"), (b"\x0f", "wire type"), (b"\x0a\x05\x0a\x03ab\xff", "codec"),
    (b"tokens of tiktoken\n", "no SentencePiece")])
def test_a_broken_file_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        from_bytes(tmp_path, data)


def test_models_of_words_and_broken_maps_are_refused(tmp_path: Path) -> None:
    words = b"\x0a\x03\x0a\x01a\x12\x02\x18\x03"  # one piece; model_type 3
    with pytest.raises(UnsupportedError, match="type 3"):
        from_bytes(tmp_path, words)
    for blob in (b"abc", b"\x05\0\0\0" + b"a" * 9, b"\xff\xff\xff\x7f" + b"a" * 64):
        with pytest.raises(CheckpointError, match="map of characters"):
            CharsMap(blob)
    assert CharsMap(b"\x08\0\0\0" + b"\xff" * 64).apply("any text") == "any text"


def test_gguf_keys_are_checked() -> None:
    metadata = sentencepieces.gguf_metadata(trained("bpe"))
    for key, value, message in (("scores", [1.0], "scores has 1"), ("scores", None, "scores is missing"),
                                ("scores", ["x"] * 9, "no number"), ("scores", [10 ** 400], "no number"),
                                ("token_type", [1], "token_type"),
                                ("merges", ["a b c"], "no pair")):
        with pytest.raises(CheckpointError, match=message):
            gguf_tokenizer({**metadata, f"tokenizer.ggml.{key}": value})
    for last, message in (("a" * 600, "length of a piece"), ("a\ud800", "surrogate")):
        texts = [*metadata["tokenizer.ggml.tokens"][:-1], last]  # type: ignore[index]
        with pytest.raises(CheckpointError, match=message):
            gguf_tokenizer({**metadata, "tokenizer.ggml.tokens": texts})
    scores = [1e38] * len(metadata["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="size of a score"):
        gguf_tokenizer({**metadata, "tokenizer.ggml.scores": scores})


@pytest.mark.parametrize(("part", "step"), [
    ("normalizer", {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}),
    ("normalizer", {"type": "Replace", "pattern": {"Regex": "(a+)+b"}, "content": "a"}),
    ("normalizer", {"type": "Prepend", "prepend": "x"}), ("normalizer", {"type": "Lowercase"}),
    ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": False}), ("decoder", {"type": "WordPiece"})])
def test_steps_that_no_model_has_are_refused(tmp_path: Path, part: str, step: dict[str, object]) -> None:
    document = json.loads(sentencepieces.tokenizer_json(trained("bpe"), "legacy").to_str())
    with pytest.raises(UnsupportedError, match=part):
        from_json(tmp_path, json.dumps(document | {part: step}))


def test_half_a_surrogate_pair_and_unknown_ids_are_refused(tmp_path: Path) -> None:
    tok = from_bytes(tmp_path, trained("bpe"))
    with pytest.raises(RequestError, match="surrogate"):
        tok.encode("\ud800")
    with pytest.raises(RequestError, match="does not exist"):
        tok.token_bytes(tok.vocab_size)


def test_the_reader_agrees_with_sentencepiece_on_pieces_scores_and_types(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(trained("unigram", words=("foo",), control=("<x>",)))
    read, spm = sentencepiece_file.read(tmp_path / "m"), processor((tmp_path / "m").read_bytes())
    ids = range(spm.vocab_size())
    assert read.pieces == [spm.id_to_piece(i) for i in ids] and read.scores == [spm.get_score(i) for i in ids]
    assert [i for i in ids if read.types[i] == 3] == [i for i in ids if spm.is_control(i)]
    assert (read.bos_id, read.eos_id, read.unk_id, read.is_unigram) == (1, 2, 0, True)
