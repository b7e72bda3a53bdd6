"""safetensors headers and shards: what is right opens, what lies is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brise.checkpoint.open import open_checkpoint
from brise.checkpoint.safetensors.file import MAX_HEADER_BYTES, open_safetensors
from brise.checkpoint.safetensors.shards import open_shards, shard_files
from brise.errors import BriseError, CheckpointError, StoreError, UnsupportedError
from tests.checkpoint import make_folder as make

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file_with(folder: Path, header: object, body: bytes = b"\0" * 8) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def test_arrays_are_views_of_every_dtype(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    files: make.Files = {
        "a": ("F32", random.normal(size=(3, 4)).astype(np.float32)), "b": ("U8", np.arange(5, dtype=np.uint8)),
        "c": ("F16", np.ones((2, 2), np.float16)), "d": ("BF16", np.full((3,), 1.5, np.float32)),
        "e": ("I64", np.array(7)), "f": ("F32", np.zeros((0, 4), np.float32)),
        "g": ("F8_E4M3", np.array([[0x38]], np.uint8))}
    make.write_safetensors(tmp_path / "x.safetensors", files)
    file = open_safetensors(tmp_path / "x.safetensors")
    for name, (dtype, numbers) in files.items():
        assert np.array_equal(file.array(name), make.stored(dtype, numbers)) and file.tensors[name].dtype == dtype
    assert not file.array("a").flags.writeable
    file.forget()
    assert np.array_equal(file.array("b"), np.arange(5))


def test_files_of_the_safetensors_package_are_read(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    arrays: dict[str, Any] = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(3.5, np.float16)}
    library.save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "np"})
    file = open_safetensors(tmp_path / "x.safetensors")
    assert all(np.array_equal(file.array(name), array) for name, array in arrays.items())


@pytest.mark.parametrize(("header", "message"), [
    ({"a": {**ENTRY, "dtype": "F4"}}, "tensor a has the dtype 'F4'"),
    ({"a": {**ENTRY, "dtype": 3}}, "tensor a has the dtype 3"),
    ({"a": {**ENTRY, "shape": [-2]}}, "shape of a"),
    ({"a": {**ENTRY, "shape": [True]}}, "shape of a"),
    ({"a": {**ENTRY, "shape": [1] * 9}}, "shape of a"),
    ({"a": {**ENTRY, "shape": [1 << 62, 1 << 62, 0]}}, "data_offsets of a"),
    ({"a": {**ENTRY, "data_offsets": [8, 0]}}, "data_offsets of a"),
    ({"a": {**ENTRY, "data_offsets": [0, 4]}}, "8 bytes apart"),
    ({"a": {**ENTRY, "data_offsets": [8, 16]}}, "start of a"),
    ({"a": ENTRY, "b": ENTRY}, "start of b"),
    ({"a": {**ENTRY, "extra": 1}}, "entry of a"),
    ({"a": 1}, "entry of a"),
    ({}, "size of the file"),
    ([1], "the header is 'list'"),
    (b'{"a": 1, "a": 2}', "a key of the header"),
    (b'{"a": NaN}', "a number in the header"),
    (b"\xff\xfe", "no JSON"),
    (b"[" * 100_000, "no JSON"),
])
def test_lies_in_the_header_are_refused(tmp_path: Path, header: object, message: str) -> None:
    with pytest.raises((CheckpointError, UnsupportedError), match=f"(?s)model.safetensors: .*{message}"):
        open_safetensors(file_with(tmp_path, header))


@pytest.mark.parametrize("data", [b"", b"\0" * 7, (100).to_bytes(8, "little") + b"{}", b"\xff" * 64,
                                  (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}"])
def test_files_that_are_cut_off_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        open_safetensors(path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = make.write_hf(tmp_path, make.tiny("llama_tied"), num_shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00003.safetensors of .* is missing, one of 3"):
        open_checkpoint(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00003.safetensors of .* is missing"):
        open_checkpoint(folder)


def test_shards_are_found_without_an_index(tmp_path: Path) -> None:
    folder = make.write_hf(tmp_path, make.tiny("llama_tied"), num_shards=3)
    (folder / "model.safetensors.index.json").unlink()
    assert len(shard_files(folder, "model")) == 3
    open_checkpoint(folder).weights()


@pytest.mark.parametrize(("mapping", "message"), [
    ({"model.norm.weight": "model-00002-of-00002.safetensors"}, "model.norm.weight is not in model-00002"),
    ({"other": "model-00001-of-00002.safetensors"}, "the tensor other is not in"),
    ({"a": "../model.safetensors"}, "the name of a .safetensors file beside it"),
    ({"a": "/etc/passwd"}, "the name of a .safetensors file beside it"),
    ({"a": 3}, "the name of a .safetensors file beside it"),
    ({}, "weight_map of model.safetensors.index.json"),
])
def test_an_index_that_lies_is_refused(tmp_path: Path, mapping: dict[str, Any], message: str) -> None:
    files: make.Files = {"model.norm.weight": ("F32", np.ones(2, np.float32)), "x": ("F32", np.ones(2, np.float32))}
    make.write_folder(tmp_path, "model", files, num_shards=2)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapping}))
    with pytest.raises(CheckpointError, match=message):
        open_shards(tmp_path, "model")


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for number in (1, 2):
        make.write_safetensors(tmp_path / f"model-0000{number}-of-00002.safetensors",
                               {"a": ("F32", np.ones(2, np.float32))})
    with pytest.raises(CheckpointError, match="the tensor a of model-00002-of-00002.safetensors"):
        open_shards(tmp_path, "model")


@pytest.mark.parametrize(("files", "kind", "message"), [
    ((), StoreError, "holds no model"),
    (("pytorch_model.bin",), UnsupportedError, "pickled weights"),
    (("model.safetensors",), CheckpointError, "but no config.json"),
    (("consolidated.safetensors",), CheckpointError, "but no params.json"),
    (("weights.safetensors",), CheckpointError, "names that brise does not know"),
    (("a.gguf", "b.gguf"), StoreError, "holds 2 .gguf files"),
])
def test_folders_that_hold_no_model(
        tmp_path: Path, files: tuple[str, ...], kind: type[BriseError], message: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(kind, match=message):
        open_checkpoint(tmp_path)


def test_a_single_safetensors_file_points_to_its_folder(tmp_path: Path) -> None:
    folder = make.write_hf(tmp_path / "m", make.tiny("llama_tied"))
    with pytest.raises(StoreError, match=r"(?s)one file of a safetensors model.*hint: give its folder: .*/m"):
        open_checkpoint(folder / "model.safetensors")


@pytest.mark.parametrize("tensor", ["model.norm.weight", "model.layers.1.self_attn.k_proj.weight",
                                    "model.embed_tokens.weight"])
def test_a_missing_tensor_is_named(tmp_path: Path, tensor: str) -> None:
    files = make.hf_tensors(make.tiny("llama_tied"))
    del files[tensor]
    make.write_folder(tmp_path, "model", files)
    (tmp_path / "config.json").write_text(json.dumps(make.hf_config(make.tiny("llama_tied"), is_wrapped=False)))
    with pytest.raises(CheckpointError, match="missing") as caught:
        open_checkpoint(tmp_path).weights()
    assert tensor.removeprefix("model.") in caught.value.field


def test_eagle_drafts_are_refused_by_name(tmp_path: Path) -> None:
    model = make.tiny("large3")
    files = make.native_tensors(model) | {"eagle_linear.weight": ("F32", np.zeros((32, 64), np.float32))}
    make.write_folder(tmp_path, "consolidated", files)
    (tmp_path / "params.json").write_text(json.dumps(make.params(model)))
    with pytest.raises(UnsupportedError, match="eagle_linear.weight belongs to an EAGLE draft"):
        open_checkpoint(tmp_path)


def test_of_both_kinds_hugging_faces_is_read(tmp_path: Path) -> None:
    model = make.tiny("mistral")
    make.write_native(tmp_path, model)
    assert open_checkpoint(tmp_path).kind == "mistral"
    make.write_hf(tmp_path, model)
    assert open_checkpoint(tmp_path).kind == "hf"


@pytest.mark.parametrize("said", [False, None])
def test_a_head_that_is_missing_is_an_error_only_where_the_file_says_so(tmp_path: Path, said: bool | None) -> None:
    folder = make.write_hf(tmp_path / "m", make.tiny("llama_tied"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": said}))
    if said is None:
        assert open_checkpoint(folder).weights().output is not None
        return
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing: config.json says"):
        open_checkpoint(folder).weights()
