"""Puts GGUF files together byte by byte, so that tests can lie in any field."""

from __future__ import annotations

import struct
from collections.abc import Sequence

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


def string(text: str | bytes, *, length: int | None = None) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data) if length is None else length) + data


def entry(key: str, kind: int, payload: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + payload


def array(kind: int, payload: bytes, count: int) -> bytes:
    return struct.pack("<IQ", kind, count) + payload


def array_entry(key: str, kind: int, payload: bytes, count: int) -> bytes:
    return entry(key, ARRAY, array(kind, payload, count))


def tensor(name: str, dims: Sequence[int], format: int = 0, offset: int = 0, *,
           num_dims: int | None = None) -> bytes:
    return (string(name) + struct.pack("<I", len(dims) if num_dims is None else num_dims)
            + struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", format, offset))


def file(entries: Sequence[bytes] = (), tensors: Sequence[bytes] = (), data: bytes = b"", *,
         magic: bytes = b"GGUF", version: int = 3, num_entries: int | None = None,
         num_tensors: int | None = None, alignment: int = 32) -> bytes:
    header = magic + struct.pack("<IQQ", version, len(tensors) if num_tensors is None else num_tensors,
                                 len(entries) if num_entries is None else num_entries)
    header += b"".join(entries) + b"".join(tensors)
    return header + bytes(-len(header) % alignment if tensors else 0) + data


def small_valid_file() -> bytes:
    """A file with every kind of value and two tensors."""
    entries = [
        entry("general.architecture", STRING, string("llama")),
        entry("u8", U8, b"\x07"), entry("i8", I8, b"\xff"), entry("u16", U16, struct.pack("<H", 65535)),
        entry("i16", I16, struct.pack("<h", -2)), entry("u32", U32, struct.pack("<I", 1 << 31)),
        entry("i32", I32, struct.pack("<i", -3)), entry("f32", F32, struct.pack("<f", 0.5)),
        entry("bool", BOOL, b"\x01"), entry("u64", U64, struct.pack("<Q", 1 << 63)),
        entry("i64", I64, struct.pack("<q", -4)), entry("f64", F64, struct.pack("<d", 0.1)),
        array_entry("strings", STRING, string("a") + string("") + string("Ġé"), 3),
        array_entry("numbers", I32, struct.pack("<3i", 1, -1, 3), 3),
        array_entry("bools", BOOL, b"\x00\x01", 2),
        array_entry("nested", ARRAY, array(U8, b"\x01\x02", 2) + array(STRING, string("x"), 1), 2)]
    tensors = [tensor("plain", [4, 2]), tensor("blocks", [32, 2], format=2, offset=32)]
    return file(entries, tensors, bytes(range(32)) + bytes(range(36)) + bytes(28))
