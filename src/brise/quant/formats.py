"""The one list of weight formats: how many numbers a block holds, and how many bytes it takes.

dequantize.py has the layout of each block, and checks that it decodes all of them; the native backend checks that the
C++ kernels have the same list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class BlockFormat:
    """`block_size` numbers lie in `block_bytes` bytes; plain formats are blocks of one number."""

    name: str
    block_size: int
    block_bytes: int

    @property
    def is_plain(self) -> bool:
        return self.block_size == 1

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row of `cols` numbers, a multiple of the block size."""
        if cols % self.block_size:
            raise ValueError(
                f"a row of {self.name} has {cols} numbers, allowed are multiples of {self.block_size}")
        return cols // self.block_size * self.block_bytes


FORMATS: Mapping[str, BlockFormat] = MappingProxyType({
    format.name: format for format in (
        BlockFormat("F32", 1, 4),
        BlockFormat("F16", 1, 2),
        BlockFormat("BF16", 1, 2),
        BlockFormat("Q4_0", 32, 2 + 16),
        BlockFormat("Q4_1", 32, 2 + 2 + 16),
        BlockFormat("Q5_0", 32, 2 + 4 + 16),
        BlockFormat("Q5_1", 32, 2 + 2 + 4 + 16),
        BlockFormat("Q8_0", 32, 2 + 32),
        BlockFormat("IQ4_NL", 32, 2 + 16),
        BlockFormat("MXFP4", 32, 1 + 16),
        BlockFormat("Q2_K", 256, 16 + 64 + 2 + 2),
        BlockFormat("Q3_K", 256, 32 + 64 + 12 + 2),
        BlockFormat("Q4_K", 256, 2 + 2 + 12 + 128),
        BlockFormat("Q5_K", 256, 2 + 2 + 12 + 32 + 128),
        BlockFormat("Q6_K", 256, 128 + 64 + 16 + 2),
        BlockFormat("IQ4_XS", 256, 2 + 2 + 4 + 128),
    )})

PLAIN = tuple(format.name for format in FORMATS.values() if format.is_plain)
QUANTISED = tuple(format.name for format in FORMATS.values() if not format.is_plain)
