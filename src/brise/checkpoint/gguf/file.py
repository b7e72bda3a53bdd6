"""Opens a GGUF file, mapped into memory: metadata are Python values, tensors views that cost no copy."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from brise.checkpoint.gguf.read_header import GgufTensor, Header, StringArray, Value, read_header
from brise.errors import BriseError
from brise.files.fields import errors_of
from brise.files.mapped import map_file
from brise.quant.formats import FORMATS

__all__ = ["GgufFile", "GgufTensor", "StringArray", "Value", "open_gguf"]


def open_gguf(path: Path | str) -> GgufFile:
    """Maps the file and checks its whole header; CheckpointError names the field that is wrong."""
    path = Path(path)
    data = map_file(path, 24)
    try:
        with errors_of(path.name):
            return GgufFile(path, data, read_header(data))
    except BriseError:
        data.close()
        raise


class GgufFile:
    """An open file; `close` unmaps it once no array of it is alive."""

    def __init__(self, path: Path, data: mmap.mmap, header: Header) -> None:
        self.path, self._data, self._header = path, data, header

    @property
    def version(self) -> int:
        return self._header.version

    @property
    def alignment(self) -> int:
        return self._header.alignment

    @property
    def nbytes(self) -> int:
        return len(self._data)

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
            self._data.madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        try:
            self._data.close()
        except BufferError:
            pass  # arrays still point into it; the mapping goes with the last of them

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()

    def _view(self, tensor: GgufTensor, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        return np.frombuffer(self._data, dtype, tensor.nbytes // dtype.itemsize, tensor.offset)
