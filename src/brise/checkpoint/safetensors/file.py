"""Opens safetensors files, mapped into memory: tensors are views that cost no copy; no length or offset is trusted.

Layout: u64 length of the header (little-endian), the header, the tensors' bytes without gaps. The header is a JSON
object: name -> {"dtype", "shape", "data_offsets": [first, last]}, offsets from the header's end; `__metadata__` holds
strings. Source: huggingface/safetensors, "Format".
"""

from __future__ import annotations

import math
import mmap
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from brise.errors import BriseError, UnsupportedError, bad_value
from brise.files.fields import errors_of
from brise.files.json_file import parse_json
from brise.files.mapped import FileMap, SourceFile, map_file

# Our own limits: Mistral Large 3 has 46 000 tensors, and headers of 6 MB in all.
MAX_HEADER_BYTES = 1 << 25
MAX_TENSORS = 1 << 19
MAX_DIMS = 8
LARGEST = (1 << 63) - 1

# What NumPy makes of the bytes; BF16 and the 8-bit floats stay codes.
DTYPES: Mapping[str, np.dtype[np.generic]] = MappingProxyType({
    name: np.dtype(code) for name, code in (
        ("F64", "<f8"), ("F32", "<f4"), ("F16", "<f2"), ("BF16", "<u2"), ("F8_E4M3", "u1"), ("F8_E5M2", "u1"),
        ("F8_E8M0", "u1"), ("I64", "<i8"), ("I32", "<i4"), ("I16", "<i2"), ("I8", "i1"), ("U64", "<u8"),
        ("U32", "<u4"), ("U16", "<u2"), ("U8", "u1"), ("BOOL", "u1"))})


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: `offset` counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def open_safetensors(path: Path | str) -> SafetensorsFile:
    """Maps the file and checks its whole header; CheckpointError names the field that is wrong."""
    path = Path(path)
    data = map_file(path, 8)
    try:
        with errors_of(path.name):
            return SafetensorsFile(path, data, read_header(data))
    except BriseError:
        data.close()
        raise


def read_header(data: mmap.mmap | bytes) -> Mapping[str, TensorEntry]:
    """Every tensor of the file, in the order of its bytes."""
    if len(data) < 8:
        raise bad_value("size of the file", len(data), "at least 8 bytes", hint="download it again")
    (length,) = struct.unpack("<Q", data[:8])
    limit = min(len(data) - 8, MAX_HEADER_BYTES)
    if length > limit:
        raise bad_value("length of the header", length, f"at most {limit}", hint="this is not a whole safetensors file")
    fields = parse_json(bytes(data[8:8 + length]), "the header")
    fields.pop("__metadata__", None)  # notes by the program that wrote the file
    if len(fields) > MAX_TENSORS:
        raise bad_value("number of tensors", len(fields), f"at most {MAX_TENSORS}")
    tensors = sorted((_tensor(name, value, 8 + length) for name, value in fields.items()),
                     key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_extent(tensors, 8 + length, len(data))
    return MappingProxyType({tensor.name: tensor for tensor in tensors})


def _tensor(name: str, value: object, start: int) -> TensorEntry:
    if not name.isprintable():
        raise bad_value("name of a tensor", name[:100], "printable characters")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise bad_value(f"entry of {name}", value, "an object of dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UnsupportedError(f"tensor {name} has the dtype {dtype!r}, allowed are {', '.join(DTYPES)}")
    if not _are_counts(shape) or len(shape) > MAX_DIMS:
        raise bad_value(f"shape of {name}", shape, f"up to {MAX_DIMS} numbers of at least 0")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise bad_value(f"data_offsets of {name}", offsets, "two numbers, the first not over the second")
    nbytes = offsets[1] - offsets[0]
    if math.prod(shape) * DTYPES[dtype].itemsize != nbytes:
        raise bad_value(f"data_offsets of {name}", offsets,
                        f"{math.prod(shape) * DTYPES[dtype].itemsize} bytes apart, for {dtype} {tuple(shape)}")
    return TensorEntry(name, dtype, tuple(shape), start + offsets[0], nbytes)


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number <= LARGEST for number in value)


def _check_extent(tensors: list[TensorEntry], start: int, size: int) -> None:
    """Checks that the tensors follow one another and fill the file."""
    position, before = start, "the header"
    for tensor in tensors:
        if tensor.offset != position:
            raise bad_value(f"start of {tensor.name}", tensor.offset, f"{position}, the end of {before}")
        position, before = tensor.offset + tensor.nbytes, tensor.name
    if position != size:
        raise bad_value("size of the file", size, f"{position}, the end of {before}", hint="download it again")


class SafetensorsFile:
    """An open file; `close` unmaps it once no array of it is alive."""

    def __init__(self, path: Path, data: FileMap, tensors: Mapping[str, TensorEntry]) -> None:
        self.path, self._data, self.tensors = path, data, tensors

    @property
    def source(self) -> SourceFile:
        """The file as it was when it was opened."""
        return self._data.source

    @property
    def nbytes(self) -> int:
        return len(self._data)

    def array(self, name: str) -> NDArray[np.generic]:
        """A read-only view of the tensor's shape, of the type that DTYPES has for it."""
        tensor = self.tensors[name]
        dtype = DTYPES[tensor.dtype]
        if tensor.nbytes == 0:
            return np.zeros(tensor.shape, dtype)
        return np.frombuffer(self._data, dtype, tensor.nbytes // dtype.itemsize, tensor.offset).reshape(tensor.shape)

    def forget(self) -> None:
        """Lets the system drop the file's pages from memory; the next read fetches them again."""
        if sys.platform != "win32":
            self._data.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        try:
            self._data.close()
        except BufferError:
            pass  # arrays still point into it; the mapping goes with the last of them
