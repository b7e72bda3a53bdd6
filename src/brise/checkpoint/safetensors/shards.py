"""Opens the tensors of a model that is one safetensors file or several, in a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brise.checkpoint.safetensors.file import SafetensorsFile, TensorEntry, open_safetensors
from brise.errors import CheckpointError, bad_value
from brise.files.json_file import read_json
from brise.files.mapped import SourceFile

NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
DOWNLOAD_AGAIN = "download the whole repository again"


def shard_files(folder: Path, stem: str) -> tuple[Path, ...]:
    """The files STEM.safetensors, or STEM-00001-of-0000N.safetensors, as STEM.safetensors.index.json lists them.

    Empty if there is none; CheckpointError names a missing one.
    """
    index = folder / f"{stem}.safetensors.index.json"
    single = folder / f"{stem}.safetensors"
    if index.is_file():
        names = sorted(set(_weight_map(index).values()))
    elif single.is_file():
        names = [single.name]
    else:
        names = _numbered(folder, stem)
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"the file {name} of {folder} is missing, one of {len(names)}", field=name,
                                  limit="a file", hint=DOWNLOAD_AGAIN)
    return tuple(folder / name for name in names)


def open_shards(folder: Path, stem: str) -> Shards:
    """All tensors of the folder's files; those that an index lists must lie where it says."""
    shards = Shards([open_safetensors(path) for path in shard_files(folder, stem)])
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        for name, file in _weight_map(index).items():
            if name not in shards.tensors or shards.file_of(name).path.name != file:
                shards.close()
                raise CheckpointError(f"the tensor {name} is not in {file}, where {index.name} has it", field=name,
                                      value=file, limit="a file that holds it", hint=DOWNLOAD_AGAIN)
    return shards


class Shards:
    """Several open files as one."""

    def __init__(self, files: Sequence[SafetensorsFile]) -> None:
        self._files = tuple(files)
        self._owners: dict[str, SafetensorsFile] = {}
        self.tensors: Mapping[str, TensorEntry] = {name: tensor for file in files for name,
                                                   tensor in file.tensors.items()}
        for file in files:
            for name in file.tensors:
                if name in self._owners:
                    raise bad_value(f"the tensor {name} of {file.path.name}", "there",
                                    f"to be in one file, {self._owners[name].path.name} has it too")
                self._owners[name] = file

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file.path for file in self._files)

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        """The files as they were when they were opened."""
        return tuple(file.source for file in self._files)

    def tensor(self, name: str) -> TensorEntry:
        """CheckpointError if there is none."""
        if name not in self.tensors:
            raise CheckpointError(f"the tensor {name} is missing", field=name, limit="a tensor of this name")
        return self.tensors[name]

    def array(self, name: str) -> NDArray[np.generic]:
        """A read-only view."""
        return self._owners[name].array(name)

    def file_of(self, name: str) -> SafetensorsFile:
        return self._owners[name]

    def forget(self) -> None:
        """Lets the system drop the pages of all files."""
        for file in self._files:
            file.forget()

    def close(self) -> None:
        for file in self._files:
            file.close()


def _weight_map(index: Path) -> Mapping[str, str]:
    """Tensor name to file name; a file must lie in the folder itself."""
    mapping = read_json(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise bad_value(f"weight_map of {index.name}", mapping, "an object of tensor and file names")
    for name, file in mapping.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise bad_value(f"weight_map[{name!r}] of {index.name}", file, "the name of a .safetensors file beside it")
    return mapping


def _numbered(folder: Path, stem: str) -> list[str]:
    """STEM-00001-of-0000N and its fellows, all that must be there; empty if there is none."""
    numbered = [match for path in folder.glob(f"{stem}-*.safetensors")
             if (match := NUMBERED.fullmatch(path.name)) and match[1] == stem]
    if not numbered:
        return []
    count = int(numbered[0][3])
    if any(int(match[3]) != count for match in numbered):
        raise bad_value(f"the number of files in {numbered[0][0]}", count, "what all files of the folder say")
    return [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
