"""Packed weights as files keep them: bytes belong to a version of the layout, and a checksum sees every change."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from brise.backends import open_backend, packing_of
from brise.models.packing import PackedPart, PackedSpan, Packing
from brise.models.weights import Array, Dense, Placed, Quant, Stack, Weight
from brise.quant.formats import FORMATS
from brise.quant.rows import encode_rows

native = pytest.importorskip("brise.backends.native.backend")

# Of layout 1. Where this changes, LAYOUT in backends/native/packing.py changes, or old files give wrong answers.
DIGEST = "85725f8899820d5c633c604064b0c5b2ebcf05bf23b2e5afb6af201791701be6"


def weight_of(format: str) -> Dense | Quant:
    """A matrix (40, 512) whose bytes are the same everywhere: numbers of a quarter that every format holds well."""
    quarters = (np.arange(40 * 512, dtype=np.int64) * 2654435761 >> 7) % 65 - 32
    numbers = quarters.astype(np.float32).reshape(40, 512) / 4
    if format == "BF16":
        return Dense("BF16", (40, 512), (numbers.view(np.uint32) >> 16).astype(np.uint16))
    if FORMATS[format].is_plain:
        return Dense(format, (40, 512), numbers.astype(np.float16 if format == "F16" else np.float32))
    rng = np.random.default_rng(0)
    return Quant(format, (40, 512), rng.integers(0, 256, (40, FORMATS[format].row_bytes(512)), np.uint8))


def test_the_bytes_are_those_of_this_layout() -> None:
    backend, digest = native.NativeBackend(1), hashlib.sha256()
    packing = packing_of(backend)
    assert packing is not None and packing.version == "native 1 little"
    for format in sorted(FORMATS):
        for part, data in packing.parts(format, backend.place(format, weight_of(format))):
            digest.update(f"{part} {packing.checksum(data)}".encode() + data.tobytes())
    assert digest.hexdigest() == DIGEST


def test_the_reference_keeps_none() -> None:
    assert packing_of(open_backend("reference")) is None


def test_a_stack_a_matrix_and_a_vector_come_back_as_they_were(tmp_path: Path) -> None:
    backend = native.NativeBackend(2)
    packing = packing_of(backend)
    weights: dict[str, Weight] = {"stack": Stack((weight_of("Q4_K"), weight_of("Q8_0"))), "matrix": weight_of("BF16"),
                                  "vector": Dense("F32", (7,), np.arange(7, dtype=np.float32))}
    assert packing is not None
    placed = {path: backend.place(path, weight) for path, weight in weights.items()}
    pieces = [pair for path in weights for pair in packing.parts(path, placed[path])]
    assert [part for part, _ in pieces] == [part for path, weight in weights.items()
                                            for part in packing.expected(path, weight)]
    with open(tmp_path / "file", "w+b") as file:
        spans = write(file, pieces, packing)
        opened = packing.open(file.fileno(), spans)
    for path, weight in weights.items():
        again = packing.placed(weight, [opened[part] for part in packing.expected(path, weight)])
        assert isinstance(again, Placed) and again.shape == placed[path].shape
        for (_, data), (_, other) in zip(packing.parts(path, placed[path]), packing.parts(path, again), strict=True):
            assert np.array_equal(data, other)


def write(file: BinaryIO, pieces: Sequence[tuple[PackedPart, Array]], packing: Packing) -> list[PackedSpan]:
    spans, at = list[PackedSpan](), 0
    for part, data in pieces:
        file.seek(at)
        file.write(data.tobytes())
        spans.append(PackedSpan(part, at, packing.checksum(data)))
        at += -(-len(data) // 4096) * 4096
    file.seek(at)
    file.write(bytes(4096))
    file.flush()
    return spans


def test_a_checksum_sees_a_change_of_any_byte() -> None:
    packing = packing_of(native.NativeBackend(1))
    assert packing is not None
    data = np.random.default_rng(1).integers(0, 256, (1 << 20) + 77, np.uint8)
    sums = {packing.checksum(data)}
    places = [0, 1, 7, 8, 63, 64, 65, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 76]
    for place in places:
        changed = data.copy()
        changed[place] ^= 0x80  # the highest bit of a byte, which a plain product would lose
        sums.add(packing.checksum(changed))
    changed = data.copy()
    changed[[7, 71]] ^= 0x80  # twice in one lane
    sums |= {packing.checksum(changed), packing.checksum(data[:-1]), packing.checksum(np.append(data, np.uint8(0)))}
    assert len(sums) == len(places) + 4


@pytest.mark.parametrize(("offset", "size", "reason"), [
    (0, 4096, "of a file of 4096"), (1 << 40, 4096, "of a file of 4096"), (100, 1 << 16, "a multiple of 64")])
def test_a_span_that_is_not_in_the_file_is_refused(tmp_path: Path, offset: int, size: int, reason: str) -> None:
    packing = packing_of(native.NativeBackend(1))
    assert packing is not None
    (tmp_path / "file").write_bytes(bytes(size))
    part = packing.expected("w", weight_of("Q4_0"))[0]
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        with pytest.raises(ValueError, match=reason):
            packing.open(descriptor, [PackedSpan(part, offset, 0)])
    finally:
        os.close(descriptor)


def test_quantized_numbers_come_the_same_from_a_file(tmp_path: Path) -> None:
    backend = native.NativeBackend(1)
    packing = packing_of(backend)
    assert packing is not None
    rows = encode_rows("w", "Q4_K", np.random.default_rng(2).normal(size=(20, 256)).astype(np.float32), threads=1)
    weight = Quant("Q4_K", (20, 256), rows)
    with open(tmp_path / "file", "w+b") as file:
        pieces = list(packing.parts("w", backend.place("w", weight)))
        opened = packing.open(file.fileno(), write(file, pieces, packing))
    x = np.random.default_rng(3).normal(size=(3, 256)).astype(np.float32)
    mapped = packing.placed(weight, [opened[part] for part, _ in pieces])
    assert np.array_equal(backend.ops().linear(x, mapped), backend.ops().linear(x, backend.place("w", weight)))
