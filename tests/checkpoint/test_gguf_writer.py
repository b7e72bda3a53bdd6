"""What the GGUF writer writes, the gguf package and our own reader read; and it appears whole or not at all."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import pytest

from brise.checkpoint.gguf.file import StringArray, open_gguf
from brise.checkpoint.gguf.write_file import Outgoing, write_gguf
from brise.errors import OutputError

METADATA: dict[str, object] = {
    "general.architecture": "llama", "a.flag": True, "a.count": 7, "a.negative": -3, "a.large": 1 << 40,
    "a.number": 0.5, "a.texts": ["é", "", "two"], "a.types": np.array([1, 3, 5], np.int32),
    "a.scores": np.array([0.5, 2], np.float32)}


class Usage(NamedTuple):
    """What shutil.disk_usage gives."""

    total: int
    used: int
    free: int


def tensor(name: str, data: np.ndarray, step: int = 2) -> Outgoing:
    def pieces() -> Iterator[np.ndarray]:
        for first in range(0, len(data), step):
            yield data[first:first + step]

    return Outgoing(name, "F32", data.shape, pieces)


def test_the_gguf_package_reads_every_key_and_tensor(tmp_path: Path) -> None:
    first, second = np.arange(15, dtype=np.float32).reshape(5, 3), np.ones(7, np.float32)
    size = write_gguf(tmp_path / "a.gguf", METADATA, [tensor("first", first), tensor("second", second)])
    assert (tmp_path / "a.gguf").stat().st_size == size
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    for key, value in METADATA.items():
        found = reader.fields[key].contents()
        assert np.array_equal(found, value) if isinstance(value, np.ndarray) else found == value
    arrays = {found.name: found.data for found in reader.tensors}
    assert np.array_equal(arrays["first"], first) and np.array_equal(arrays["second"], second)


def test_types_are_those_that_llama_cpp_asks_for(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", METADATA, [])
    kinds = {key: field.types[0].name for key, field in gguf.GGUFReader(tmp_path / "a.gguf").fields.items()}
    assert [kinds[f"a.{key}"] for key in ("flag", "count", "negative", "large", "number")] == [
        "BOOL", "UINT32", "INT32", "UINT64", "FLOAT32"]


def test_string_arrays_of_another_file_are_copied(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", METADATA, [])
    with open_gguf(tmp_path / "a.gguf") as source:
        write_gguf(tmp_path / "b.gguf", source.metadata, [])
    with open_gguf(tmp_path / "b.gguf") as copy:
        texts = copy.metadata["a.texts"]
        assert isinstance(texts, StringArray) and list(texts) == METADATA["a.texts"]


def test_an_error_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    def pieces() -> Iterator[np.ndarray]:
        yield np.zeros(4, np.float32)
        raise RuntimeError("the source ends here")

    with pytest.raises(RuntimeError):
        write_gguf(tmp_path / "a.gguf", METADATA, [Outgoing("x", "F32", (8,), pieces)])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    def pieces() -> Iterator[np.ndarray]:
        yield np.zeros(4, np.float32)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="no space left"):
        write_gguf(tmp_path / "a.gguf", METADATA, [Outgoing("x", "F32", (8,), pieces)])
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_fit_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 9, 1))
    with pytest.raises(OutputError, match="its disk has 1 free"):
        write_gguf(tmp_path / "a.gguf", METADATA, [tensor("x", np.zeros(4, np.float32))])
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_text("mine")
    with pytest.raises(OutputError, match="is there already"):
        write_gguf(tmp_path / "a.gguf", METADATA, [])
    assert (tmp_path / "a.gguf").read_text() == "mine"


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".a.gguf.part").write_bytes(b"x" * 100000)
    size = write_gguf(tmp_path / "a.gguf", METADATA, [])
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"] and (tmp_path / "a.gguf").stat().st_size == size
