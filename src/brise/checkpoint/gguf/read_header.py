"""Reads the header of a GGUF file: metadata and the list of tensors, trusting no length, count or offset.

Layout (little-endian; string = u64 length, then UTF-8 bytes):
  "GGUF", u32 version, u64 number of tensors, u64 number of metadata entries
  each entry:   string key, u32 type, value; an array is u32 element type, u64 count, elements
  each tensor:  string name, u32 number of dims, u64 each dim (fastest first), u32 format, u64 offset
  zeros up to a multiple of general.alignment, then the tensors, each at its offset from there
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from brise import _native
from brise.errors import UnsupportedError, bad_value
from brise.quant.formats import FORMATS

Numbers: TypeAlias = "NDArray[np.generic]"
Value: TypeAlias = "bool | int | float | str | Numbers | StringArray | tuple[Value, ...]"

# Our own limits, far above what real files have, so that a false count costs neither time nor memory.
MAX_STRING = 1 << 24  # a chat template or tokenizer.json is the longest string
MAX_KEY = (1 << 16) - 1  # of the GGUF specification
MAX_NAME = 255  # the specification says 64; some tools write longer ones
MAX_DIMS = 4  # of ggml
MAX_ENTRIES = 1 << 16
MAX_TENSORS = 1 << 16
MAX_ELEMENTS = 1 << 24  # of one array; vocabularies have 2^18
MAX_NESTED = 1 << 10  # arrays in an array
MAX_DEPTH = 2
MAX_ALIGNMENT = 1 << 20

BOOL, STRING, ARRAY = 7, 8, 9
SCALARS: Mapping[int, struct.Struct] = MappingProxyType({
    number: struct.Struct(f"<{code}") for number, code in (
        (0, "B"), (1, "b"), (2, "H"), (3, "h"), (4, "I"), (5, "i"), (6, "f"), (BOOL, "B"),
        (10, "Q"), (11, "q"), (12, "d"))})

FORMAT_NAMES: Mapping[int, str] = MappingProxyType({
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 20: "IQ4_NL", 23: "IQ4_XS", 30: "BF16", 39: "MXFP4",
    # Known, so that the error can name them, but not run.
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    21: "IQ3_S", 22: "IQ2_S", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
    28: "F64", 29: "IQ1_M", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 34: "TQ1_0", 35: "TQ2_0",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 40: "NVFP4", 41: "Q1_0"})


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies: `shape` is row-major (GGUF lists dims reversed), `offset` from the file's start.

    `format` is one of quant.formats.FORMATS.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    part: int = 0  # of a model in several files


@dataclass(frozen=True)
class Header:
    """The part of the file before the tensors' data."""

    version: int
    alignment: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]


class StringArray(Sequence[str]):
    """Strings of a metadata array, decoded when asked for: a vocabulary is read faster than it is decoded."""

    def __init__(self, name: str, data: bytes, starts: NDArray[np.int64]) -> None:
        """`data` holds all strings with their 8-byte lengths, string i from starts[i]."""
        self._name, self._data, self._starts = name, data, starts

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def nbytes(self) -> int:
        """Bytes of all strings."""
        return len(self._data) - 8 * len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start = int(self._starts[index])
        (length,) = struct.unpack_from("<Q", self._data, start)
        return _decode(self._name, self._data[start + 8:start + 8 + length])

    def __iter__(self) -> Iterator[str]:
        return iter(self.decode())

    @property
    def encoded(self) -> bytes:
        """The bytes of the strings in the file: 8-byte lengths, UTF-8."""
        return self._data

    def decode(self) -> list[str]:
        """All strings. Decoding them at once is four times as fast as one by one."""
        bytes_ = np.frombuffer(self._data, np.uint8).copy()
        keep = np.ones(len(bytes_), np.bool_)
        for byte in range(1, 8):
            keep[self._starts + byte] = False
        bytes_[self._starts] = 0  # what is left of a length separates the strings
        strings = _decode(self._name, bytes_[keep].tobytes()).split("\0")[1:]
        return strings if len(strings) == len(self) else [self[i] for i in range(len(self))]


def read_header(data: mmap.mmap | bytes) -> Header:
    """The header of a whole file; every tensor it returns lies inside `data`."""
    cursor = _Cursor(data)
    version = _read_version(cursor)
    num_tensors = cursor.count("number of tensors", MAX_TENSORS, least_bytes=8 + 1 + 4 + 8 + 4 + 8)
    num_entries = cursor.count("number of metadata entries", MAX_ENTRIES, least_bytes=8 + 1 + 4 + 1)
    metadata = _read_metadata(cursor, num_entries)
    alignment = _read_alignment(metadata)
    infos = _read_tensor_infos(cursor, num_tensors)
    start = -(-cursor.position // alignment) * alignment
    tensors = {info.name: info for info in (_placed(info, start, alignment, len(data)) for info in infos)}
    _check_extent(list(tensors.values()), start if tensors else cursor.position, alignment, len(data))
    return Header(version, alignment, MappingProxyType(metadata), MappingProxyType(tensors))


def _read_version(cursor: _Cursor) -> int:
    magic = cursor.take("magic", 4)
    if magic != b"GGUF":
        raise bad_value("magic", magic, "b'GGUF'", hint="this is not a GGUF file")
    version = cursor.integer("version", 4)
    if version in (2, 3):
        return version
    if version & 0xFFFF == 0 and version:
        raise UnsupportedError("the file is big-endian GGUF, which brise does not read",
                               hint="convert it to little-endian with gguf-convert-endian")
    if version == 0:
        raise bad_value("version", version, "2 or 3")
    raise UnsupportedError(f"GGUF version is {version}, allowed are 2 and 3")


def _read_metadata(cursor: _Cursor, num_entries: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for index in range(num_entries):
        key = cursor.string(f"metadata key {index}", MAX_KEY)
        if not key or not key.isprintable():
            raise bad_value(f"metadata key {index}", key, "a name of printable characters")
        if key in metadata:
            raise bad_value(f"metadata key {index}", key, "a name that did not come before")
        metadata[key] = _read_value(cursor, key, cursor.integer(f"type of {key}", 4), depth=0)
    return metadata


def _read_value(cursor: _Cursor, key: str, kind: int, depth: int) -> Value:
    if kind == ARRAY:
        return _read_array(cursor, key, depth + 1)
    if kind == STRING:
        return cursor.string(key, MAX_STRING)
    if kind not in SCALARS:
        raise bad_value(f"type of {key}", kind, "0 to 12")
    value: int | float = SCALARS[kind].unpack(cursor.take(key, SCALARS[kind].size))[0]
    if kind != BOOL:
        return value
    if value > 1:
        raise bad_value(key, value, "0 or 1 (a bool)")
    return value == 1


def _read_array(cursor: _Cursor, key: str, depth: int) -> Value:
    if depth > MAX_DEPTH:
        raise bad_value(f"depth of {key}", depth, f"at most {MAX_DEPTH}")
    kind = cursor.integer(f"element type of {key}", 4)
    if kind == ARRAY:
        count = cursor.count(f"length of {key}", MAX_NESTED, least_bytes=4 + 8)
        return tuple(_read_array(cursor, key, depth + 1) for _ in range(count))
    if kind == STRING:
        return _read_strings(cursor, key, cursor.count(f"length of {key}", MAX_ELEMENTS, least_bytes=8))
    if kind not in SCALARS:
        raise bad_value(f"element type of {key}", kind, "0 to 12")
    size = SCALARS[kind].size
    count = cursor.count(f"length of {key}", MAX_ELEMENTS, least_bytes=size)
    numbers = np.frombuffer(cursor.take(key, count * size), SCALARS[kind].format)
    if kind == BOOL:
        if count and numbers.max() > 1:
            raise bad_value(key, int(numbers.max()), "0 or 1 (bools)")
        return numbers.astype(np.bool_)
    return numbers


def _read_strings(cursor: _Cursor, key: str, count: int) -> StringArray:
    """Finds where each string starts."""
    data, begin, end = cursor.data, cursor.position, len(cursor.data)
    starts = _native.string_starts(np.frombuffer(data, np.uint8), begin, count)
    position = begin
    if len(starts):
        last = begin + int(starts[-1])
        position = last + 8 + int.from_bytes(data[last:last + 8], "little")
    if len(starts) < count:
        raise bad_value(f"{key}, entry {len(starts)}", f"a string from byte {position}", f"bytes up to {end}")
    if position > end:
        raise bad_value(f"{key}, entry {count - 1}", f"a string up to byte {position}", f"bytes up to {end}")
    return StringArray(key, cursor.take(key, position - begin), starts)


def _read_alignment(metadata: Mapping[str, Value]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if isinstance(alignment, bool) or not isinstance(alignment, int):
        raise bad_value("general.alignment", alignment, "an integer")
    if not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise bad_value("general.alignment", alignment, f"a power of two from 8 to {MAX_ALIGNMENT}")
    return alignment


def _read_tensor_infos(cursor: _Cursor, num_tensors: int) -> list[GgufTensor]:
    """The tensors in file order, `offset` still counted from the data's start."""
    infos: dict[str, GgufTensor] = {}
    for index in range(num_tensors):
        name = cursor.string(f"name of tensor {index}", MAX_NAME)
        if not name or name in infos or not name.isprintable():
            raise bad_value(f"name of tensor {index}", name, "a name of printable characters that did not come before")
        num_dims = cursor.integer(f"number of dims of {name}", 4)
        if not 1 <= num_dims <= MAX_DIMS:
            raise bad_value(f"number of dims of {name}", num_dims, f"1 to {MAX_DIMS}")
        shape = tuple(cursor.integer(f"dim {d} of {name}", 8) for d in range(num_dims))[::-1]
        format = _read_format(cursor, name)
        offset = cursor.integer(f"offset of {name}", 8)
        infos[name] = GgufTensor(name, format, shape, offset, _nbytes(name, format, shape))
    return list(infos.values())


def _read_format(cursor: _Cursor, name: str) -> str:
    number = cursor.integer(f"format of {name}", 4)
    if number not in FORMAT_NAMES:
        raise bad_value(f"format of {name}", number, f"one of {sorted(FORMAT_NAMES)}")
    if FORMAT_NAMES[number] not in FORMATS:
        raise UnsupportedError(
            f"tensor {name} has the format {FORMAT_NAMES[number]}, allowed are {', '.join(FORMATS)}",
            hint="take another quantisation of this model, such as Q4_K_M")
    return FORMAT_NAMES[number]


def _nbytes(name: str, format: str, shape: tuple[int, ...]) -> int:
    if min(shape) < 1:
        raise bad_value(f"shape of {name}", shape, "dims of at least 1")
    if math.prod(shape) >= 1 << 63:
        raise bad_value(f"shape of {name}", shape, "fewer than 2^63 numbers")
    block = FORMATS[format]
    if shape[-1] % block.block_size:
        raise bad_value(f"row of {name}", shape[-1], f"a multiple of {block.block_size} ({format})")
    return math.prod(shape[:-1]) * block.row_bytes(shape[-1])


def _placed(info: GgufTensor, start: int, alignment: int, end: int) -> GgufTensor:
    """The tensor with its offset from the file's start."""
    if info.offset % alignment:
        raise bad_value(f"offset of {info.name}", info.offset, f"a multiple of {alignment}")
    last = start + info.offset + info.nbytes
    if last > end:
        raise bad_value(f"end of {info.name}", last, f"at most {end}, the size of the file",
                        hint="the file is cut short; download it again")
    return GgufTensor(info.name, info.format, info.shape, start + info.offset, info.nbytes)


def _check_extent(tensors: list[GgufTensor], start: int, alignment: int, size: int) -> None:
    """Checks that no tensor overlaps another, and that the file ends where the last one ends, or its padding."""
    position, before = start, "the header"
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.offset < position:
            raise bad_value(f"start of {tensor.name}", tensor.offset, f"at least {position}, the end of {before}")
        position, before = tensor.offset + tensor.nbytes, tensor.name
    padded = -(-position // alignment) * alignment
    if size > padded:
        raise bad_value("size of the file", size, f"at most {padded}, the end of {before}",
                        hint="something was appended to the file; download it again")


class _Cursor:
    """A position in the file, which never passes the end."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self.data, self.position = data, 0

    def take(self, field: str, size: int) -> bytes:
        rest = len(self.data) - self.position
        if size > rest:
            raise bad_value(field, f"{size} bytes from byte {self.position}", f"{rest}, the rest of the file",
                            hint="the file is cut short or damaged; download it again")
        self.position += size
        return self.data[self.position - size:self.position]

    def integer(self, field: str, size: int) -> int:
        return int.from_bytes(self.take(field, size), "little")

    def count(self, field: str, limit: int, *, least_bytes: int) -> int:
        """Reads how many items follow, of at least so many bytes each, and checks it before anything is allocated."""
        value = self.integer(field, 8)
        limit = min(limit, (len(self.data) - self.position) // least_bytes)
        if value > limit:
            raise bad_value(field, value, f"at most {limit}")
        return value

    def string(self, field: str, limit: int) -> str:
        length = self.integer(f"length of {field}", 8)
        if length > limit:
            raise bad_value(f"length of {field}", length, f"at most {limit}")
        return _decode(field, self.take(field, length))


def _decode(field: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise bad_value(field, error.object[error.start:error.start + 8], "UTF-8") from None


