"""Declares how a backend's placed weights are kept in a file that every process maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from brise.models.weights import Array, Weight


@dataclass(frozen=True)
class PackedPart:
    """A matrix, or a vector, of a placed weight: `format` is empty and `cols` 0 for a vector, which is float32."""

    path: str
    format: str
    rows: int
    cols: int


@dataclass(frozen=True)
class PackedSpan:
    """Where a part's bytes lie in a file, and their checksum."""

    part: PackedPart
    offset: int
    checksum: int


class Packing(Protocol):
    """How a backend's placed weights are kept in a file that every process maps."""

    @property
    def version(self) -> str:
        """What decides the bytes of a part besides the weight itself. It changes with the layout."""

    def expected(self, path: str, weight: Weight) -> Sequence[PackedPart]:
        """The parts that the weight has once it is placed; its numbers are not read."""

    def parts(self, path: str, placed: Weight) -> Sequence[tuple[PackedPart, Array]]:
        """The parts of a placed weight with their bytes, which are not copied."""

    def checksum(self, data: Array) -> int:
        """The checksum of bytes (n,), below 2^64. Bytes that differ in one place never have the same."""

    def open(self, descriptor: int, spans: Sequence[PackedSpan]) -> Mapping[PackedPart, Any]:
        """Maps a file and reads all of the spans, which stay mapped after the descriptor is closed. ValueError if a
        checksum is another one or a span is not in the file."""

    def placed(self, weight: Weight, parts: Sequence[Any]) -> Weight:
        """The placed weight of parts from `open`, as `place` would give it."""
