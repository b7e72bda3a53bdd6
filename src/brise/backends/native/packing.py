"""Packed weights of the native backend in a file: a part is the tiles of a matrix, or the float32 of a vector."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from brise import _native
from brise.backends.native.backend import NativeBackend
from brise.errors import UnsupportedError
from brise.models.packing import PackedPart, PackedSpan
from brise.models.weights import Array, Dense, Placed, Quant, Stack, Stored, Weight

# Of the tiles that native/formats.h describes, and of the checksum. It changes with either of them, and where a reader
# in checkpoint/ gives other numbers for the same file; tests/backends/test_packing.py holds the bytes of this one.
LAYOUT = 1


class NativePacking:
    """A Packing (models/ops.py). The layout is the same for all instruction sets of one byte order."""

    def __init__(self, backend: NativeBackend) -> None:
        self._backend = backend

    @property
    def version(self) -> str:
        return f"native {LAYOUT} {sys.byteorder}"

    def expected(self, path: str, weight: Weight) -> list[PackedPart]:
        match weight:
            case Stack(matrices):
                return [part for index, matrix in enumerate(matrices)
                        for part in self.expected(f"{path}.{index}", matrix)]
            case Dense(shape=(rows,)) | Stored(shape=(rows,)):
                return [PackedPart(path, "", rows, 0)]
            case Dense(format=format, shape=(rows, cols)) | Quant(format=format, shape=(rows, cols)) | Stored(
                    format=format, shape=(rows, cols)):
                return [PackedPart(path, format, rows, cols)]
        raise UnsupportedError(f"{path} of shape {weight.shape} has no packed form")

    def parts(self, path: str, placed: Weight) -> list[tuple[PackedPart, Array]]:
        assert isinstance(placed, Placed)
        if isinstance(placed.handle, tuple):
            return [(PackedPart(f"{path}.{index}", *handle.shape), handle.bytes())
                    for index, handle in enumerate(placed.handle)]
        return [(PackedPart(path, *placed.handle.shape), placed.handle.bytes())]

    def checksum(self, data: Array) -> int:
        return _native.checksum(data)

    def open(self, descriptor: int, spans: Sequence[PackedSpan]) -> Mapping[PackedPart, _native.Weight]:
        file = _native.MappedFile(descriptor)
        handles = {span.part: file.matrix(span.part.format, span.part.rows, span.part.cols, span.offset)
                   if span.part.cols else file.vector(span.part.rows, span.offset) for span in spans}
        sizes = [(span.offset, len(handles[span.part].bytes())) for span in spans]
        sums = file.checksums(self._backend.handle, sizes)
        for span, found in zip(spans, sums, strict=True):
            if found != span.checksum:
                raise ValueError(f"the checksum of {span.part.path} is {found}, and {span.checksum} was written")
        return handles

    def placed(self, weight: Weight, parts: Sequence[_native.Weight]) -> Placed:
        return Placed(weight.shape, tuple(parts) if isinstance(weight, Stack) else parts[0])
