"""A tokenizer keeps its ids on the way from a folder into a GGUF file and back."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from brise.checkpoint.gguf.file import open_gguf
from brise.checkpoint.gguf.write_file import write_gguf
from brise.checkpoint.gguf.write_tokenizer import PRE_NAMES, PROBE, vocabulary
from brise.checkpoint.safetensors.write_hf_tokenizer import tokenizer_files
from brise.errors import CheckpointError, UnsupportedError
from brise.text.tokenizer import Tokenizer
from tests.checkpoint.make_gguf import write_tiny
from tests.checkpoint.make_tokenizer import TEMPLATE, write_tokenizer

TEXTS = ("the user's 1234 things", "  the\n\nin and\t!?", "<|im_start|>user", "é 你好 🙂", PROBE)


def write_tekken(path: Path, words: list[bytes], special: list[str] | None, num_control: int = 20) -> Path:
    document: dict[str, object] = {
        "config": {"pattern": ".", "num_vocab_tokens": len(words) + 5, "default_vocab_size": len(words) + num_control,
                   "default_num_special_tokens": num_control, "version": "v13"},
        "vocab": [{"rank": rank, "token_bytes": base64.b64encode(word).decode(), "token_str": None}
                  for rank, word in enumerate([*words, b"not used"])]}
    if special is not None:
        document["special_tokens"] = [{"rank": rank, "token_str": text, "is_control": True}
                                      for rank, text in enumerate(special)]
    path.mkdir()
    (path / "tekken.json").write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("family", ["llama", "mistral3", "qwen2"])
def test_a_gguf_s_tokenizer_goes_through_tokenizer_json_unchanged(tmp_path: Path, family: str) -> None:
    with open_gguf(write_tiny(tmp_path / "a.gguf", family, vocab=300)) as source:
        for name, text in tokenizer_files(source.metadata, 512).items():
            (tmp_path / name).write_text(text)
        keys, expected = vocabulary(tmp_path, 300), Tokenizer.from_gguf(source.metadata)
        assert keys["tokenizer.ggml.pre"] == source.metadata["tokenizer.ggml.pre"]
        assert keys["tokenizer.ggml.merges"] == list(source.metadata["tokenizer.ggml.merges"])
        assert np.array_equal(keys["tokenizer.ggml.token_type"], source.metadata["tokenizer.ggml.token_type"])
        assert keys["tokenizer.chat_template"] == source.metadata["tokenizer.chat_template"]
        found = Tokenizer.from_gguf(keys)
        for text in TEXTS:
            assert found.encode(text, parse_control=True) == expected.encode(text, parse_control=True)


@pytest.mark.parametrize("pre", [name for name in PRE_NAMES if name != "deepseek-r1-qwen"])
def test_each_way_to_cut_words_is_told_from_the_others(tmp_path: Path, pre: str) -> None:
    assert vocabulary(write_tokenizer(tmp_path / "a", 97, pre), 97)["tokenizer.ggml.pre"] == pre


def test_tokens_that_fill_up_the_vocabulary_are_unused(tmp_path: Path) -> None:
    keys = vocabulary(write_tokenizer(tmp_path / "a", 97), 100)
    assert keys["tokenizer.ggml.tokens"][97:] == ["[PAD97]", "[PAD98]", "[PAD99]"]
    assert list(keys["tokenizer.ggml.token_type"][96:]) == [1, 5, 5, 5]
    assert keys["tokenizer.chat_template"] == TEMPLATE and keys["tokenizer.ggml.add_bos_token"] is True
    assert [keys[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "unknown", "padding")] == [1, 2, 0, 11]


def test_a_tekken_becomes_merges_of_every_split(tmp_path: Path) -> None:
    words = [bytes([byte]) for byte in range(256)] + [b"ab", b"bc", b"abc", b" abc"]
    keys = vocabulary(write_tekken(tmp_path / "a", words, ["<unk>", "<s>", "</s>", "[INST]"]), 20 + len(words))
    assert keys["tokenizer.ggml.merges"] == ["a b", "b c", "a bc", "ab c", "Ġ abc"]
    assert keys["tokenizer.ggml.tokens"][3:5] == ["[INST]", "[/INST]"] and keys["tokenizer.ggml.pre"] == "tekken"
    tokenizer = Tokenizer.from_gguf(keys)
    assert tokenizer.encode(" abc") == [20 + 259] and tokenizer.bos_id == 1 and tokenizer.add_bos


@pytest.mark.slow
def test_mistral_s_own_tekken_has_as_many_merges_as_its_converter_writes(tmp_path: Path) -> None:
    common = pytest.importorskip("mistral_common")
    source = Path(common.__file__).parent / "data" / "tekken_240911.json"
    (tmp_path / "tekken.json").write_bytes(source.read_bytes())
    keys = vocabulary(tmp_path, 131072)
    assert len(keys["tokenizer.ggml.merges"]) == 269443 and len(keys["tokenizer.ggml.tokens"]) == 131072
    tekken = pytest.importorskip("mistral_common.tokens.tokenizers.tekken").Tekkenizer.from_file(source)
    tokenizer = Tokenizer.from_gguf(keys)
    for text in TEXTS:
        assert tokenizer.encode(text) == tekken.encode(text, bos=False, eos=False)


def test_keys_survive_the_file(tmp_path: Path) -> None:
    keys = vocabulary(write_tokenizer(tmp_path / "a", 97), 97)
    write_gguf(tmp_path / "a.gguf", keys, [])
    with open_gguf(tmp_path / "a.gguf") as found:
        assert Tokenizer.from_gguf(found.metadata).encode("hello") == Tokenizer.from_gguf(keys).encode("hello")


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="97 tokens, the model 90"):
        vocabulary(write_tokenizer(tmp_path / "a", 97), 90)


def test_an_unknown_way_to_cut_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "a", 97)
    document = json.loads((tmp_path / "a" / "tokenizer.json").read_text())
    document["pre_tokenizer"] = {"type": "Whitespace"}
    (tmp_path / "a" / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(UnsupportedError, match=r"no tokenizer\.ggml\.pre"):
        vocabulary(tmp_path / "a", 97)


def test_a_damaged_tekken_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has 3 words, the model 100"):
        vocabulary(write_tekken(tmp_path / "a", [b"a", b"b"], None), 120)
