"""Writes GGUF files (version 3), one tensor after the other, each in pieces: no tensor need be in memory whole.

The layout stands in read_header.py. Types of metadata: bool, str, float as float32, int as uint32 (int32 below zero,
uint64 over 2^32), NumPy arrays by their dtype, sequences of str as arrays of strings.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from brise.checkpoint.gguf.read_header import ARRAY, BOOL, FORMAT_NAMES, STRING, StringArray
from brise.files.atomic import staged_file
from brise.quant.formats import FORMATS

ALIGNMENT = 32
QUANTIZATION_VERSION = 2  # of ggml's block formats

# llama.cpp's numbers of `general.file_type`.
FILE_TYPES: Mapping[str, int] = MappingProxyType({
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q4_K_S": 14, "Q4_K_M": 15,
    "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25,
    "IQ4_XS": 30, "BF16": 32})

_DTYPES: Mapping[str, int] = MappingProxyType({
    "uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6, "bool": BOOL,
    "uint64": 10, "int64": 11, "float64": 12})
_FORMAT_NUMBERS: Mapping[str, int] = MappingProxyType({name: number for number, name in FORMAT_NAMES.items()})


@dataclass(frozen=True)
class Outgoing:
    """A tensor to write: `pieces` gives its bytes in order, whatever the arrays' dtype; shape is row-major."""

    name: str
    format: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[NDArray[np.generic]]]

    @property
    def nbytes(self) -> int:
        rows = 1
        for length in self.shape[:-1]:
            rows *= length
        return rows * FORMATS[self.format].row_bytes(self.shape[-1])


def write_gguf(path: Path, metadata: Mapping[str, object], tensors: Sequence[Outgoing],
               wrote: Callable[[int], None] | None = None) -> int:
    """Writes the whole file, or nothing; returns its size. `wrote` is called with the bytes of each piece."""
    header = _header(metadata, tensors)
    size = len(header) + sum(_padded(tensor.nbytes) for tensor in tensors)
    with staged_file(path, size) as file:
        file.write(header)
        for tensor in tensors:
            done = 0
            for piece in tensor.pieces():
                data = np.ascontiguousarray(piece)
                file.write(data.data)
                done += data.nbytes
                if wrote is not None:
                    wrote(data.nbytes)
            assert done == tensor.nbytes, (tensor.name, done, tensor.nbytes)
            file.write(bytes(_padded(done) - done))
    return size


def _header(metadata: Mapping[str, object], tensors: Sequence[Outgoing]) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _value(key, value)]
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        parts += [_string(tensor.name), struct.pack(f"<I{len(dims)}Q", len(dims), *dims),
                  struct.pack("<IQ", _FORMAT_NUMBERS[tensor.format], offset)]
        offset += _padded(tensor.nbytes)
    header = b"".join(parts)
    return header + bytes(_padded(len(header)) - len(header))


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _value(key: str, value: object) -> bytes:
    """A value with the number of its type before it."""
    match value:
        case bool():
            return struct.pack("<IB", BOOL, value)
        case int():
            return _integer(value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", STRING) + _string(value)
        case _:
            return struct.pack("<I", ARRAY) + _array(key, value)


def _integer(value: int) -> bytes:
    if value < 0:
        return struct.pack("<Ii", 5, value)
    return struct.pack("<II", 4, value) if value < 1 << 32 else struct.pack("<IQ", 10, value)


def _array(key: str, value: object) -> bytes:
    """Element type, count, elements."""
    match value:
        case np.ndarray():
            kind = _DTYPES[value.dtype.name]
            return struct.pack("<IQ", kind, value.size) + np.ascontiguousarray(value).tobytes()
        case StringArray():
            return struct.pack("<IQ", STRING, len(value)) + value.encoded
        case tuple() if value and not isinstance(value[0], str):
            return struct.pack("<IQ", ARRAY, len(value)) + b"".join(_array(key, item) for item in value)
        case list() | tuple():
            return struct.pack("<IQ", STRING, len(value)) + b"".join(map(_string, value))
        case _:
            raise TypeError(f"{key} is {type(value).__name__}, which GGUF cannot hold")


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
