"""Reading GGUF files: what a true one says, and how a lying one is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from brise.checkpoint.gguf.file import GgufFile, StringArray, open_gguf
from brise.checkpoint.gguf.write_file import Outgoing, write_gguf
from brise.errors import CheckpointError, UnsupportedError
from tests.checkpoint import raw_gguf as raw
from tests.checkpoint.make_gguf import CHATML, CONTROL, MERGES, VOCAB_SIZE, write_tiny


def opened(tmp_path: Path, data: bytes) -> GgufFile:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return open_gguf(path)


def test_every_kind_of_value_is_read(tmp_path: Path) -> None:
    metadata = dict(opened(tmp_path, raw.small_valid_file()).metadata)
    strings, numbers, bools = metadata.pop("strings"), metadata.pop("numbers"), metadata.pop("bools")
    nested = metadata.pop("nested")
    assert metadata == {
        "general.architecture": "llama", "u8": 7, "i8": -1, "u16": 65535, "i16": -2, "u32": 1 << 31,
        "i32": -3, "f32": 0.5, "bool": True, "u64": 1 << 63, "i64": -4, "f64": 0.1}
    assert metadata["bool"] is True
    assert isinstance(strings, StringArray) and list(strings) == ["a", "", "Ġé"]
    assert isinstance(numbers, np.ndarray) and numbers.tolist() == [1, -1, 3]
    assert isinstance(bools, np.ndarray) and bools.tolist() == [False, True]
    assert isinstance(nested, tuple) and [list(part) for part in nested] == [[1, 2], ["x"]]


@pytest.mark.parametrize("format", ["F32", "F16", "BF16", "Q4_1", "Q5_0", "Q8_0", "Q3_K", "Q6_K", "IQ4_NL",
                                    "IQ4_XS", "MXFP4"])
def test_tensors_are_those_that_gguf_reads(tmp_path: Path, format: str) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", "qwen2", format=format)
    with open_gguf(path) as file:
        expected = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        assert list(file.tensors) == list(expected)
        for name, tensor in file.tensors.items():
            assert tensor.format == expected[name].tensor_type.name
            assert tensor.shape == tuple(int(dim) for dim in expected[name].shape)[::-1]
            assert tensor.offset == expected[name].data_offset
            assert file.array(name).tobytes() == expected[name].data.tobytes()


def test_views_have_the_documented_types_and_shapes(tmp_path: Path) -> None:
    file = opened(tmp_path, raw.small_valid_file())
    plain, blocks = file.array("plain"), file.array("blocks")
    assert (plain.dtype, plain.shape) == (np.float32, (2, 4))
    assert (blocks.dtype, blocks.shape) == (np.uint8, (2, 18))
    assert not plain.flags.writeable and not plain.flags.owndata


def test_version_2_is_read(tmp_path: Path) -> None:
    assert opened(tmp_path, raw.file(version=2)).version == 2


def test_a_forgotten_tensor_reads_the_same(tmp_path: Path) -> None:
    with open_gguf(write_tiny(tmp_path / "tiny.gguf", "llama")) as file:
        before = file.array("token_embd.weight").copy()
        file.forget("token_embd.weight")
        np.testing.assert_array_equal(file.array("token_embd.weight"), before)


def test_an_array_outlives_close(tmp_path: Path) -> None:
    file = opened(tmp_path, raw.small_valid_file())
    view = file.array("blocks")
    file.close()
    assert view[0].tolist() == list(range(18))


def test_strings_are_a_sequence(tmp_path: Path) -> None:
    tokens = open_gguf(write_tiny(tmp_path / "tiny.gguf", "llama")).metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, StringArray) and len(tokens) == VOCAB_SIZE
    assert tokens[:3] == list(CONTROL) and tokens[-1] == MERGES[-1].replace(" ", "")
    assert [tokens[i] for i in range(len(tokens))] == list(tokens)


def test_strings_that_hold_nul_are_read(tmp_path: Path) -> None:
    texts = ["a\0b", "\0", "", "é"]
    entry = raw.array_entry("texts", raw.STRING, b"".join(map(raw.string, texts)), 4)
    strings = opened(tmp_path, raw.file([entry])).metadata["texts"]
    assert isinstance(strings, StringArray) and list(strings) == texts


def test_tiny_model_carries_its_chat_template(tmp_path: Path) -> None:
    assert open_gguf(write_tiny(tmp_path / "t.gguf", "llama")).metadata["tokenizer.chat_template"] == CHATML


def test_smollm2_header_is_read(smollm2_path: Path) -> None:
    with open_gguf(smollm2_path) as file:
        assert len(file.tensors) == 272 and file.metadata["llama.block_count"] == 30
        merges = file.metadata["tokenizer.ggml.merges"]
        assert isinstance(merges, StringArray) and len(list(merges)) == 48900


HUGE = 1 << 60
LIES = {
    "empty": (b"", "size of the file"),
    "not gguf": (b"PK\x03\x04" + bytes(60), "magic"),
    "only magic": (b"GGUF", "version"),
    "version 0": (raw.file(version=0), "version"),
    "entry count": (raw.file(num_entries=HUGE), "number of metadata entries"),
    "entry count, one too many": (raw.file(num_entries=1), "number of metadata entries"),
    "tensor count": (raw.file(num_tensors=HUGE), "number of tensors"),
    "key length": (raw.file([raw.string("k", length=HUGE) + bytes(40)]), "length of metadata key 0"),
    "empty key": (raw.file([raw.entry("", raw.U32, bytes(4))]), "metadata key 0"),
    "key not UTF-8": (raw.file([raw.string(b"\xff\xfe") + bytes(20)]), "metadata key 0"),
    "key twice": (raw.file([raw.entry("k", raw.U8, b"\1")] * 2), "metadata key 1"),
    "unknown value type": (raw.file([raw.entry("k", 13, bytes(8))]), "type of k"),
    "unknown element type": (raw.file([raw.array_entry("k", 99, bytes(8), 1)]), "element type of k"),
    "value past the end": (raw.file([raw.entry("k", raw.U64, bytes(4))]), "k"),
    "string length": (raw.file([raw.entry("k", raw.STRING, raw.string("a", length=HUGE))]), "length of k"),
    "string past the end": (raw.file([raw.entry("k", raw.STRING, raw.string("abc", length=4))]), "k"),
    "string not UTF-8": (raw.file([raw.entry("k", raw.STRING, raw.string(b"\x80"))]), "k"),
    "bool of 2": (raw.file([raw.entry("k", raw.BOOL, b"\x02")]), "k"),
    "bools of 2": (raw.file([raw.array_entry("k", raw.BOOL, b"\0\2", 2)]), "k"),
    "array length": (raw.file([raw.array_entry("k", raw.F64, bytes(8), HUGE)]), "length of k"),
    "strings length": (raw.file([raw.array_entry("k", raw.STRING, bytes(8), HUGE)]), "length of k"),
    "string in strings": (
        raw.file([raw.array_entry("k", raw.STRING, raw.string("a", length=HUGE) + bytes(9), 2)]),
        "k, entry 1"),
    "last string in strings": (
        raw.file([raw.array_entry("k", raw.STRING, raw.string("a", length=2), 1)]), "k, entry 0"),
    "nested length": (raw.file([raw.array_entry("k", raw.ARRAY, bytes(24), HUGE)]), "length of k"),
    "nested too deep": (
        raw.file([raw.entry("k", raw.ARRAY, raw.array(raw.ARRAY, b"", 1) * 100)]), "depth of k"),
    "alignment 0": (raw.file([raw.entry("general.alignment", raw.U32, bytes(4))]), "general.alignment"),
    "alignment 48": (raw.file([raw.entry("general.alignment", raw.U32, b"\x30\0\0\0")]), "general.alignment"),
    "alignment text": (raw.file([raw.entry("general.alignment", raw.STRING, raw.string("32"))]),
                       "general.alignment"),
    "name length": (raw.file([], [raw.string("t", length=HUGE) + bytes(32)]), "length of name of tensor 0"),
    "name twice": (raw.file([], [raw.tensor("t", [8])] * 2, bytes(32)), "name of tensor 1"),
    "no dims": (raw.file([], [raw.tensor("t", [], num_dims=0) + bytes(8)], bytes(32)), "number of dims of t"),
    "many dims": (raw.file([], [raw.tensor("t", [8], num_dims=1 << 31)], bytes(32)), "number of dims of t"),
    "dim 0": (raw.file([], [raw.tensor("t", [8, 0])], bytes(32)), "shape of t"),
    "product overflow": (raw.file([], [raw.tensor("t", [1 << 32, 1 << 32])], bytes(32)), "shape of t"),
    "row not whole blocks": (raw.file([], [raw.tensor("t", [33], format=2)], bytes(64)), "row of t"),
    "unknown format": (raw.file([], [raw.tensor("t", [8], format=1000)], bytes(32)), "format of t"),
    "offset past the end": (raw.file([], [raw.tensor("t", [8], offset=1 << 40)], bytes(32)), "end of t"),
    "offset not aligned": (raw.file([], [raw.tensor("t", [8], offset=8)], bytes(64)), "offset of t"),
    "cut data": (raw.file([], [raw.tensor("t", [8])], bytes(31)), "end of t"),
    "overlap": (
        raw.file([], [raw.tensor("t", [16]), raw.tensor("u", [8], offset=32)], bytes(64)), "start of u"),
    "appended": (raw.file([], [raw.tensor("t", [8])], bytes(33)), "size of the file"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_with_its_field_value_and_limit(tmp_path: Path, lie: str) -> None:
    data, field = LIES[lie]
    with pytest.raises(CheckpointError) as caught:
        opened(tmp_path, data)
    assert caught.value.field == field
    assert caught.value.value is not None and caught.value.limit is not None
    assert "model.gguf: " in str(caught.value) and len(str(caught.value)) < 600


def test_a_string_that_is_no_utf8_is_refused_when_it_is_decoded(tmp_path: Path) -> None:
    entry = raw.array_entry("k", raw.STRING, raw.string("ok") + raw.string(b"\xc3"), 2)
    strings = opened(tmp_path, raw.file([entry])).metadata["k"]
    assert isinstance(strings, StringArray) and strings[0] == "ok"
    with pytest.raises(CheckpointError, match="k is .*UTF-8"):
        list(strings)
    with pytest.raises(CheckpointError, match="k is .*UTF-8"):
        strings[1]


@pytest.mark.parametrize("version", [1, 4])
def test_other_versions_are_refused_by_number(tmp_path: Path, version: int) -> None:
    with pytest.raises(UnsupportedError, match=f"version is {version}"):
        opened(tmp_path, raw.file(version=version))


def test_big_endian_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="big-endian"):
        opened(tmp_path, b"GGUF" + struct.pack(">IQQ", 3, 0, 0))


def test_a_format_that_we_do_not_run_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="tensor t has the format IQ3_S, allowed are .*IQ4_XS"):
        opened(tmp_path, raw.file([], [raw.tensor("t", [256], format=21)], bytes(110)))


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.gguf"):
        with pytest.raises(CheckpointError, match="cannot open"):
            open_gguf(path)


@pytest.mark.parametrize("name", ["a\x1b[2J", "a\nb", "a\u202eb", "a\x9b"])
def test_a_name_with_control_characters_is_refused_in_escapes(tmp_path: Path, name: str) -> None:
    write_gguf(tmp_path / "m.gguf", {"general.architecture": "llama"}, [
        Outgoing(name, "F32", (8,), lambda: iter([np.zeros(8, np.float32)]))])
    with pytest.raises(CheckpointError) as caught:
        open_gguf(tmp_path / "m.gguf")
    assert repr(name)[1:-1] in str(caught.value) and name not in str(caught.value)
