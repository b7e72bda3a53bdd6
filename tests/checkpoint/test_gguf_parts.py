"""A GGUF model in several files: opened from any part or the folder, and checked to be one whole set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from brise.checkpoint.gguf.file import open_gguf
from brise.checkpoint.gguf.write_file import Outgoing, write_gguf
from brise.checkpoint.model_files import find_layout
from brise.checkpoint.open import open_checkpoint
from brise.checkpoint.read_original import open_original
from brise.errors import BriseError, CheckpointError, StoreError
from brise.hub.locate import locate
from brise.hub.pull import Puller, pull
from brise.hub.store import ModelStore
from brise.models.weights import Weight, place
from tests.checkpoint.make_gguf import write_tiny


def split(source: Path, folder: Path, count: int, **changes: int) -> list[Path]:
    """The model in `count` files, its tensors in turn, as llama-gguf-split writes it; `changes` are of the last
    part."""
    folder.mkdir(exist_ok=True)
    file, paths = open_gguf(source), []
    names = list(file.tensors)
    for number in range(count):
        keys = {"split.no": np.uint16(number), "split.count": np.uint16(count), "split.tensors.count": len(names)}
        keys |= {} if number < count - 1 else {name.replace("_", "."): value for name, value in changes.items()}
        metadata = {**file.metadata, **keys} if number == 0 else keys
        tensors = [Outgoing(name, file.tensors[name].format, file.tensors[name].shape,
                            lambda name=name: iter([file.array(name)])) for name in names[number::count]]
        paths.append(folder / f"tiny-{number + 1:05}-of-{count:05}.gguf")
        write_gguf(paths[-1], {key: int(value) if isinstance(value, np.integer) else value
                               for key, value in metadata.items()}, tensors)
    return paths


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "whole.gguf", "llama", tied=False)


@pytest.fixture
def parts(whole: Path, tmp_path: Path) -> Iterator[list[Path]]:
    yield split(whole, tmp_path / "parts", 3)


def numbers(path: Path) -> dict[str, bytes]:
    out: dict[str, bytes] = {}

    def note(name: str, weight: Weight) -> Weight:
        out[name] = np.asarray(weight.data).tobytes()  # type: ignore[union-attr]
        return weight

    place(open_checkpoint(path).weights(), note)
    return out


def test_any_part_and_the_folder_are_the_whole_model(whole: Path, parts: list[Path]) -> None:
    for path in (*parts, parts[0].parent):
        checkpoint = open_checkpoint(path)
        assert checkpoint.files == tuple(parts) and checkpoint.config == open_checkpoint(whole).config
        checkpoint.forget()
        checkpoint.close()
        assert numbers(path) == numbers(whole)


def test_the_original_of_a_conversion_has_the_tensors_of_all_parts(whole: Path, parts: list[Path]) -> None:
    assert {tensor.name for tensor in open_original(parts[2]).tensors} == set(open_gguf(whole).tensors)


def test_a_pull_of_one_part_takes_all_of_them(parts: list[Path], tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "home")
    entry = pull(Puller(store, lambda *a: None, lambda path: open_checkpoint(path).close(), lambda: None),
    str(parts[1]))
    assert entry.name == "tiny" and [file.name for file in entry.files] == [part.name for part in parts]
    assert numbers(locate("tiny", store).path) == numbers(parts[0])
    assert locate(str(parts[1]), store).name == "tiny"


def test_a_missing_part_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    for path in (parts[0], parts[2], parts[0].parent):
        with pytest.raises(CheckpointError, match=r"tiny-00002-of-00003\.gguf is missing, one of the 3 parts"):
            open_checkpoint(path)


def test_a_part_under_another_name_says_what_it_is(parts: list[Path]) -> None:
    other = parts[0].rename(parts[0].parent.parent / "model.gguf")
    with pytest.raises(CheckpointError, match=r"one of 3 parts .* is called NAME-00001-of-00003\.gguf"):
        open_checkpoint(other)


@pytest.mark.parametrize(("changes", "message"), [
    ({"split_no": 0}, "split.no is 0, allowed is 2"), ({"split_count": 4}, "split.count is 4, allowed is 3"),
    ({"split_tensors_count": 7}, "split.tensors.count is 7"), ({"llama_block__count": 7}, None)])
def test_parts_that_are_no_set_are_refused(whole: Path, tmp_path: Path, changes: dict[str, int],
                                           message: str | None) -> None:
    paths = split(whole, tmp_path / "parts", 3, **changes)
    if message is None:
        open_checkpoint(paths[0])
        return
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(paths[0])


def test_parts_of_two_models_are_refused(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    """The same part twice, under the number of another."""
    other = split(whole, tmp_path / "other", 3, split_no=1)
    parts[1].write_bytes(other[2].read_bytes())
    with pytest.raises(CheckpointError, match=r"a tensor of tiny-00003-of-00003\.gguf is"):
        open_checkpoint(parts[0])


def test_a_folder_with_two_models_is_refused(whole: Path, parts: list[Path]) -> None:
    (parts[0].parent / "other.gguf").write_bytes(whole.read_bytes())
    with pytest.raises(StoreError, match="holds 2 .gguf models, 1 is allowed"):
        find_layout(parts[0].parent)


def test_every_cut_of_a_part_is_refused(parts: list[Path]) -> None:
    data = parts[2].read_bytes()
    for length in range(0, len(data), max(len(data) // 40, 1)):
        parts[2].write_bytes(data[:length])
        with pytest.raises(BriseError):
            open_checkpoint(parts[0])
