"""Dequantizing blocks by tensor operations on the device that has them: quant/dequantize.py, number for number.

That file has the layouts. Products and sums are separate operations in the same order, so that a GPU gives the bits of
the host: nothing contracts two of them.

Legend: B blocks, G groups of a block, E numbers of a group; shapes are as in quant/dequantize.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch

from brise.quant.dequantize import FP4_NUMBERS, IQ4_NUMBERS
from brise.quant.formats import FORMATS, QUANTISED

Tensor = torch.Tensor


def dequantize(format: str, data: Tensor, cols: int) -> Tensor:
    """The numbers (rows, cols) in float32 of `data` (rows, bytes of a row) uint8, on its device."""
    numbers = _BLOCKS[format](data.reshape(-1, FORMATS[format].block_bytes))
    return numbers.reshape(len(data), cols)


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_codes(blocks[:, 2:]).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _codes(blocks[:, 4:]).float() + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * ((_codes(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])).float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_codes(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])).float() + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].view(torch.int8).float()


def _iq4_nl(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _looked_up(IQ4_NUMBERS.tolist(), _codes(blocks[:, 2:]))


def _mxfp4(blocks: Tensor) -> Tensor:
    e_B1 = blocks[:, :1].int()
    # The bits of 2^(e - 128), which is no normal number for 0 and 1: a library's power need not be exact.
    bits_B1 = torch.where(e_B1 > 1, (e_B1 - 1) << 23, 0x200000 << e_B1)
    return bits_B1.view(torch.float32) * _looked_up(FP4_NUMBERS.tolist(), _codes(blocks[:, 1:]))


def _q2_k(blocks: Tensor) -> Tensor:
    scale_BG = _half(blocks, 80) * (blocks[:, :16] & 15).float()
    minimum_BG = _half(blocks, 82) * (blocks[:, :16] >> 4).float()
    return _groups(_crumbs(blocks[:, 16:80]), 16) * scale_BG[..., None] - minimum_BG[..., None]


def _q3_k(blocks: Tensor) -> Tensor:
    packed = blocks[:, 96:108]
    low_BG = torch.cat([packed[:, :8] & 15, packed[:, :8] >> 4], 1)
    high_BG = torch.cat([packed[:, 8:] >> shift & 3 for shift in (0, 2, 4, 6)], 1)
    scale_BG = _half(blocks, 108) * ((low_BG | high_BG << 4).float() - 32)
    third_BE = torch.cat([blocks[:, :32] >> bit & 1 for bit in range(8)], 1)
    return (_groups(_crumbs(blocks[:, 32:96]) | third_BE << 2, 16) - 4) * scale_BG[..., None]


def _q4_k(blocks: Tensor) -> Tensor:
    return _scaled_groups(blocks, _paired_nibbles(blocks[:, 16:]))


def _q5_k(blocks: Tensor) -> Tensor:
    fifth_BGE = torch.stack([blocks[:, 16:48] >> group & 1 for group in range(8)], 1)
    return _scaled_groups(blocks, _paired_nibbles(blocks[:, 48:]) | fifth_BGE << 4)


def _q6_k(blocks: Tensor) -> Tensor:
    low_B2H = blocks[:, :128].reshape(-1, 2, 64)
    q_BE = torch.cat([low_B2H & 15, low_B2H >> 4], 2).reshape(-1, 256)
    scale_BG = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()
    return (_groups(q_BE | _crumbs(blocks[:, 128:192]) << 4, 16) - 32) * scale_BG[..., None]


def _iq4_xs(blocks: Tensor) -> Tensor:
    low_BG = torch.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], 2).reshape(-1, 8)
    high_BG = torch.stack([blocks[:, 2:4] >> shift & 3 for shift in (0, 2, 4, 6)], 2).reshape(-1, 8)
    scale_BG = _half(blocks, 0) * ((low_BG | high_BG << 4).float() - 32)
    q_BGE = _codes(blocks[:, 8:].reshape(-1, 16)).reshape(-1, 8, 32)
    return _looked_up(IQ4_NUMBERS.tolist(), q_BGE) * scale_BG[..., None]


def _half(blocks: Tensor, offset: int) -> Tensor:
    """The half-precision number at `offset` of each block, (B, 1)."""
    return blocks[:, offset:offset + 2].contiguous().view(torch.float16).float()


def _codes(packed: Tensor) -> Tensor:
    """Low nibbles of all bytes, then the high ones."""
    return torch.cat([packed & 15, packed >> 4], 1)


def _looked_up(table: Sequence[float], codes: Tensor) -> Tensor:
    return torch.tensor(table, device=codes.device)[codes.int()]


def _fifth_bits(packed: Tensor) -> Tensor:
    """32 bits, lowest first, each at bit 4."""
    return torch.stack([packed >> bit & 1 for bit in range(8)], 2).reshape(-1, 32) << 4


def _crumbs(packed: Tensor) -> Tensor:
    """64 bytes as 256 two-bit numbers: 32 bytes hold 128 of them, lowest bits of all bytes first."""
    halves_B2L = packed.reshape(-1, 2, 32)
    return torch.stack([halves_B2L >> shift & 3 for shift in (0, 2, 4, 6)], 2).reshape(-1, 256)


def _paired_nibbles(packed: Tensor) -> Tensor:
    """128 bytes as 8 groups of 32 nibbles: 32 bytes hold two groups, low nibbles first."""
    pairs_B4L = packed.reshape(-1, 4, 32)
    return torch.stack([pairs_B4L & 15, pairs_B4L >> 4], 2).reshape(-1, 8, 32)


def _groups(codes: Tensor, size: int) -> Tensor:
    return codes.reshape(len(codes), -1, size).float()


def _scaled_groups(blocks: Tensor, q_BGE: Tensor) -> Tensor:
    """(d * scale) * q - dmin * minimum of Q4_K and Q5_K."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale_BG = _half(blocks, 0) * torch.cat([first & 63, third & 15 | first >> 6 << 4], 1).float()
    minimum_BG = _half(blocks, 2) * torch.cat([second & 63, third >> 4 | second >> 6 << 4], 1).float()
    return q_BGE.float() * scale_BG[..., None] - minimum_BG[..., None]


_BLOCKS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "IQ4_NL": _iq4_nl, "MXFP4": _mxfp4,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_XS": _iq4_xs})
assert tuple(sorted(_BLOCKS)) == tuple(sorted(QUANTISED)), "every block format of formats.py has its decoding here"
