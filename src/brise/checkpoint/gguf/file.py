"""Opens GGUF files, mapped into memory: metadata are Python values, tensors views that cost no copy.

A model in several files (llama-gguf-split) has NAME-00001-of-0000N.gguf and so on. Each part has split.no (from 0),
split.count and split.tensors.count, the tensors of all parts; the first part has all other metadata.
"""

from __future__ import annotations

import mmap
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, TracebackType

import numpy as np
from numpy.typing import NDArray

from brise.checkpoint.gguf.read_header import GgufTensor, Header, StringArray, Value, read_header
from brise.errors import BriseError, CheckpointError, bad_value
from brise.files.fields import errors_of
from brise.files.mapped import FileMap, SourceFile, map_file
from brise.quant.formats import FORMATS

__all__ = ["GgufFile", "GgufTensor", "StringArray", "Value", "open_gguf", "open_model_file"]

PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def open_gguf(path: Path | str) -> GgufFile:
    """Maps the file and checks its whole header; CheckpointError names the field that is wrong."""
    path = Path(path)
    data = map_file(path, 24)
    try:
        with errors_of(path.name):
            return GgufFile((path,), (data,), read_header(data))
    except BriseError:
        data.close()
        raise


def open_model_file(path: Path | str) -> GgufFile:
    """A GGUF file, or all parts of a model from any one of them; CheckpointError for a set that is not whole."""
    first = open_gguf(path)
    count = first.num_parts
    if count == 1:
        return first
    first.close()
    parts: list[GgufFile] = []
    try:
        for number, part in enumerate(part_paths(Path(path), count)):
            parts.append(open_gguf(part))
            with errors_of(part.name):
                _check_part(parts[0], parts[-1], number, count)
        return _joined(parts)
    except BriseError:
        for opened in parts:
            opened.close()
        raise


def part_paths(path: Path, count: int) -> list[Path]:
    """The paths of all parts, in order, from the path of one; CheckpointError names one that is missing."""
    name = PART.fullmatch(path.name)
    if name is None or int(name[3]) != count or not 1 <= int(name[2]) <= count:
        raise CheckpointError(f"{path.name} is one of {count} parts of a model (split.count); such a part is called "
                              f"NAME-00001-of-{count:05}.gguf", field="name of the file", value=path.name,
                              hint="give it the name that it had")
    paths = [path.with_name(f"{name[1]}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    for part in paths:
        if not part.is_file():
            raise CheckpointError(f"{part.name} is missing, one of the {count} parts of this model",
                                  field="split.count", value=part.name, limit=f"{count} files in one folder",
                                  hint="download it, too")
    return paths


def _check_part(first: GgufFile, part: GgufFile, number: int, count: int) -> None:
    """Whether a part belongs to the set: its number, and what it says of the whole, as the first part says it."""
    for key, value in (("split.no", number), ("split.count", count),
                       ("split.tensors.count", first.metadata.get("split.tensors.count"))):
        if part.metadata.get(key) != value:
            raise bad_value(key, part.metadata.get(key), f"{value}, as the first part and its name say",
                            hint="the parts are of different models or in the wrong order; download them again")
    for key, other in part.metadata.items():
        own = first.metadata.get(key, other)
        if key != "split.no" and isinstance(other, str | int | float | bool) and own != other:
            raise bad_value(key, other, f"{own!r}, as the first part says", hint="the parts are of different models")


def _joined(parts: Sequence[GgufFile]) -> GgufFile:
    tensors: dict[str, GgufTensor] = {}
    for number, part in enumerate(parts):
        for name, tensor in part.tensors.items():
            if name in tensors:
                raise bad_value(f"a tensor of {part.path.name}", name, "one that no part before it has",
                                hint="the parts are of different models; download them again")
            tensors[name] = replace(tensor, part=number)
    expected = parts[0].metadata.get("split.tensors.count", len(tensors))
    if len(tensors) != expected:
        raise bad_value("split.tensors.count", expected, f"{len(tensors)}, the tensors of all {len(parts)} parts",
                        hint="the parts are of different models; download them again")
    header = Header(parts[0].version, parts[0].alignment, parts[0].metadata, MappingProxyType(tensors))
    return GgufFile([part.path for part in parts], [data for part in parts for data in part.maps], header)


class GgufFile:
    """An open model in one file or several; `close` unmaps it once no array of it is alive."""

    def __init__(self, paths: Sequence[Path], maps: Sequence[FileMap], header: Header) -> None:
        self.paths, self.maps, self._header = tuple(paths), tuple(maps), header

    @property
    def path(self) -> Path:
        """The file, or the first part."""
        return self.paths[0]

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        """The files as they were when they were opened."""
        return tuple(data.source for data in self.maps)

    @property
    def num_parts(self) -> int:
        """In how many files the model lies, as this one says."""
        count = self.metadata.get("split.count", 1)
        return count if isinstance(count, int) and count > 1 else 1

    @property
    def version(self) -> int:
        return self._header.version

    @property
    def alignment(self) -> int:
        return self._header.alignment

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.maps))

    @property
    def metadata(self) -> Mapping[str, Value]:
        return self._header.metadata

    @property
    def tensors(self) -> Mapping[str, GgufTensor]:
        return self._header.tensors

    def array(self, name: str) -> NDArray[np.generic]:
        """A read-only view: uint8 (rows, bytes of a row) for blocks, the tensor's shape for plain formats."""
        tensor = self.tensors[name]
        match tensor.format:
            case "F32":
                return self._view(tensor, np.dtype(np.float32)).reshape(tensor.shape)
            case "F16":
                return self._view(tensor, np.dtype(np.float16)).reshape(tensor.shape)
            case "BF16":
                return self._view(tensor, np.dtype(np.uint16)).reshape(tensor.shape)
            case _:
                row_bytes = FORMATS[tensor.format].row_bytes(tensor.shape[-1])
                return self._view(tensor, np.dtype(np.uint8)).reshape(-1, row_bytes)

    def forget(self, name: str) -> None:
        """Lets the system drop the tensor's pages from memory; the next read fetches them from the file."""
        if sys.platform == "win32":
            return
        tensor = self.tensors[name]
        # Whole pages only: the edges belong to the neighbours as well.
        first = -(-tensor.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (tensor.offset + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self.maps[tensor.part].madvise(mmap.MADV_DONTNEED, first, last - first)

    def forget_all(self) -> None:
        """The same for everything, the header too, which has been read."""
        if sys.platform != "win32":
            for data in self.maps:
                data.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        for data in self.maps:
            try:
                data.close()
            except BufferError:
                pass  # arrays still point into it; the mapping goes with the last of them

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()

    def _view(self, tensor: GgufTensor, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        return np.frombuffer(self.maps[tensor.part], dtype, tensor.nbytes // dtype.itemsize, tensor.offset)
