"""Dequantisation of every weight format to float32 in plain NumPy: the reference for the native kernels.

Legend: B blocks; the numbers of a block are in row order. Every function takes blocks (B, block_bytes) uint8 and
gives float32 (B, block_size). Scales and integers are multiplied in ggml's order, so that results agree to the last
bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from brise.errors import UnsupportedError
from brise.quant.formats import FORMATS

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def dequantize(format: str, data: Bytes, cols: int) -> Floats:
    """The numbers (rows, cols) that `data` (rows, bytes of a row) stands for."""
    if format not in FORMATS:
        raise UnsupportedError(f"weight format is {format!r}, allowed are {', '.join(FORMATS)}")
    row_bytes = FORMATS[format].row_bytes(cols)
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != row_bytes:
        raise ValueError(f"{format} data is {data.dtype} {data.shape}, allowed is uint8 (rows, {row_bytes})")
    blocks_BN = np.ascontiguousarray(data).reshape(-1, FORMATS[format].block_bytes)
    # Scales come from a file: an infinite one must give infinities and NaNs, not a warning.
    with np.errstate(over="ignore", invalid="ignore"):
        return _BLOCKS[format](blocks_BN).reshape(len(data), cols)


# F32 and F16: as they are.
def _f32(blocks: Bytes) -> Floats:
    return blocks.view(np.float32).copy()


def _f16(blocks: Bytes) -> Floats:
    return blocks.view(np.float16).astype(np.float32)


# BF16: the upper half of a float32.
def _bf16(blocks: Bytes) -> Floats:
    return (blocks.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


# Q4_0, 32 numbers in 18 bytes:
#   0  d    half
#   2  q    16 bytes: numbers 0..15 in the low nibbles, 16..31 in the high ones
# number = d * (q - 8)
def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]) - np.float32(8))


# Q4_1, 32 numbers in 20 bytes:
#   0  d    half
#   2  m    half
#   4  q    16 bytes as in Q4_0
# number = d * q + m
def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


# Q5_0, 32 numbers in 22 bytes:
#   0  d    half
#   2  h    32 bits: bit i is the fifth bit of number i
#   6  q    16 bytes as in Q4_0
# number = d * (q + 16 h - 16)
def _q5_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 6:]) + _fifth_bits(blocks[:, 2:6]) - np.float32(16))


# Q5_1, 32 numbers in 24 bytes:
#   0  d    half
#   2  m    half
#   4  h    32 bits as in Q5_0
#   8  q    16 bytes as in Q4_0
# number = d * (q + 16 h) + m
def _q5_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 8:]) + _fifth_bits(blocks[:, 4:8])) + _half(blocks, 2)


# Q8_0, 32 numbers in 34 bytes:
#   0  d    half
#   2  q    32 signed bytes
# number = d * q
def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


# IQ4_NL, 32 numbers in 18 bytes:
#   0  d    half
#   2  q    16 bytes as in Q4_0
# number = d * table[q]
IQ4_NUMBERS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def _iq4_nl(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * IQ4_NUMBERS[_codes(blocks[:, 2:])]


# MXFP4, 32 numbers in 17 bytes (OCP Microscaling Formats 1.0):
#   0  e    8 bits of exponent
#   1  q    16 bytes as in Q4_0: sign, two bits of exponent, one of mantissa
# number = 2^(e - 128) * table[q]; the table has twice the numbers that four bits stand for. There is no NaN.
FP4_NUMBERS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def _mxfp4(blocks: Bytes) -> Floats:
    scale_B1 = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)
    return scale_B1 * FP4_NUMBERS[_codes(blocks[:, 1:])]


# Q2_K, 256 numbers in 84 bytes, 16 groups of 16:
#    0  s     16 bytes, one a group: scale in the low nibble, minimum in the high one
#   16  q     64 bytes: each 32 bytes hold 128 numbers, number 32 j + l in bits 2j, 2j+1 of byte l
#   80  d     half
#   82  dmin  half
# number = (d * scale) * q - dmin * minimum
def _q2_k(blocks: Bytes) -> Floats:
    scale_BG = _half(blocks, 80) * (blocks[:, :16] & 15).astype(np.float32)
    minimum_BG = _half(blocks, 82) * (blocks[:, :16] >> 4).astype(np.float32)
    q_BGE = _crumbs(blocks[:, 16:80]).reshape(-1, 16, 16).astype(np.float32)
    return _flat(scale_BG[..., None] * q_BGE - minimum_BG[..., None])


# Q3_K, 256 numbers in 110 bytes, 16 groups of 16:
#     0  h    32 bytes: bit j of byte l is the third bit of number 32 j + l
#    32  q    64 bytes: the two low bits, as in Q2_K
#    96  s    12 bytes: the low 4 bits of scales 0..7 in the low nibbles of bytes 0..7, of scales 8..15 in
#             their high nibbles; the high 2 bits of scale k in byte 8 + k % 4 at bit 2 (k // 4)
#   108  d    half
# number = (d * (scale - 32)) * (q + 4 h - 4)
def _q3_k(blocks: Bytes) -> Floats:
    packed = blocks[:, 96:108]
    low_BG = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    high_BG = np.concatenate([packed[:, 8:] >> shift & 3 for shift in (0, 2, 4, 6)], axis=1)
    scale_BG = _half(blocks, 108) * ((low_BG | high_BG << 4).astype(np.float32) - np.float32(32))
    third_BE = np.stack([blocks[:, :32] >> j & 1 for j in range(8)], axis=1).reshape(-1, 256)
    q_BE = _crumbs(blocks[:, 32:96]) | third_BE << np.uint8(2)
    q_BGE = q_BE.reshape(-1, 16, 16).astype(np.float32) - np.float32(4)
    return _flat(scale_BG[..., None] * q_BGE)


# Q4_K, 256 numbers in 144 bytes, 8 groups of 32:
#    0  d     half
#    2  dmin  half
#    4  s     12 bytes of 6-bit scales and minimums, see _six_bits
#   16  q     128 bytes: each 32 bytes hold two groups, the first in the low nibbles
# number = (d * scale) * q - dmin * minimum
def _q4_k(blocks: Bytes) -> Floats:
    return _scaled_groups(blocks, _paired_nibbles(blocks[:, 16:]))


# Q5_K, 256 numbers in 176 bytes, 8 groups of 32:
#    0  d, dmin, s   as in Q4_K
#   16  h            32 bytes: bit g of byte l is the fifth bit of number l of group g
#   48  q            128 bytes as in Q4_K
# number = (d * scale) * (q + 16 h) - dmin * minimum
def _q5_k(blocks: Bytes) -> Floats:
    fifth_BGE = np.stack([blocks[:, 16:48] >> group & 1 for group in range(8)], axis=1)
    return _scaled_groups(blocks, _paired_nibbles(blocks[:, 48:]) | fifth_BGE << np.uint8(4))


# Q6_K, 256 numbers in 210 bytes, 16 groups of 16, in two halves of 128 numbers:
#     0  q    2 x 64 bytes: numbers 0..63 of the half in the low nibbles, 64..127 in the high ones
#   128  h    2 x 32 bytes: the high two bits of number 32 j + l of the half in bits 2j, 2j+1 of byte l
#   192  s    16 signed bytes, one a group
#   208  d    half
# number = (d * s) * (q + 16 h - 32)
def _q6_k(blocks: Bytes) -> Floats:
    low_B2H = blocks[:, :128].reshape(-1, 2, 64)
    q_BE = np.concatenate([low_B2H & 15, low_B2H >> 4], axis=2).reshape(-1, 256)
    q_BE = q_BE | _crumbs(blocks[:, 128:192]) << 4
    scale_BG = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    q_BGE = q_BE.reshape(-1, 16, 16).astype(np.float32) - np.float32(32)
    return _flat(scale_BG[..., None] * q_BGE)


# IQ4_XS, 256 numbers in 136 bytes, 8 groups of 32:
#   0  d    half
#   2  h    16 bits: bits 2g, 2g+1 are the high two of scale g
#   4  l    4 bytes: the low four bits of scale 2i in the low nibble of byte i, of scale 2i+1 in the high one
#   8  q    8 x 16 bytes, each as in Q4_0
# number = (d * (scale - 32)) * table[q], the table of IQ4_NL
def _iq4_xs(blocks: Bytes) -> Floats:
    low_BG = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    high_BG = np.stack([blocks[:, 2:4] >> shift & 3 for shift in (0, 2, 4, 6)], axis=2).reshape(-1, 8)
    scale_BG = _half(blocks, 0) * ((low_BG | high_BG << 4).astype(np.float32) - np.float32(32))
    q_BGE = _codes(blocks[:, 8:].reshape(-1, 16)).reshape(-1, 8, 32)
    return _flat(scale_BG[..., None] * IQ4_NUMBERS[q_BGE])


def _flat(numbers_BGE: Floats) -> Floats:
    """The numbers of a block's groups in one row."""
    return numbers_BGE.reshape(len(numbers_BGE), -1)


def _half(blocks: Bytes, offset: int) -> Floats:
    """The half-precision number at `offset` of each block, (B, 1)."""
    return blocks[:, offset:offset + 2].copy().view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes) -> Floats:
    """Low nibbles of all bytes, then the high ones."""
    return _codes(packed).astype(np.float32)


def _codes(packed: Bytes) -> Bytes:
    codes: Bytes = np.concatenate([packed & 15, packed >> 4], axis=1)
    return codes


def _fifth_bits(packed: Bytes) -> Floats:
    """32 bits, lowest first, each worth 16."""
    return np.unpackbits(packed, axis=1, bitorder="little").astype(np.float32) * np.float32(16)


def _crumbs(packed: Bytes) -> Bytes:
    """64 bytes as 256 two-bit numbers: 32 bytes hold 128 of them, lowest bits of all bytes first."""
    halves_B2L = packed.reshape(-1, 2, 32)
    return np.stack([halves_B2L >> shift & 3 for shift in (0, 2, 4, 6)], axis=2).reshape(-1, 256)


def _paired_nibbles(packed: Bytes) -> Bytes:
    """128 bytes as 8 groups of 32 nibbles: 32 bytes hold two groups, low nibbles first."""
    pairs_B4L = packed.reshape(-1, 4, 32)
    return np.stack([pairs_B4L & 15, pairs_B4L >> 4], axis=2).reshape(-1, 8, 32)


def _scaled_groups(blocks: Bytes, q_BGE: Bytes) -> Floats:
    """(d * scale) * q - dmin * minimum of Q4_K and Q5_K, whose first 16 bytes are alike."""
    scale_BG, minimum_BG = _six_bits(blocks[:, 4:16])
    scale_BG, minimum_BG = _half(blocks, 0) * scale_BG, _half(blocks, 2) * minimum_BG
    return _flat(scale_BG[..., None] * q_BGE.astype(np.float32) - minimum_BG[..., None])


# 12 bytes hold 8 scales and 8 minimums of 6 bits:
#   bytes 0..3   scales 0..3 in the low 6 bits; the high 2 bits of scales 4..7
#   bytes 4..7   minimums 0..3 in the low 6 bits; the high 2 bits of minimums 4..7
#   bytes 8..11  the low 4 bits of scales 4..7 in the low nibbles, of minimums 4..7 in the high ones
def _six_bits(packed: Bytes) -> tuple[Floats, Floats]:
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    minimums = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return scales.astype(np.float32), minimums.astype(np.float32)


_BLOCKS: Mapping[str, Callable[[Bytes], Floats]] = MappingProxyType({
    "F32": _f32, "F16": _f16, "BF16": _bf16, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1,
    "Q8_0": _q8_0, "IQ4_NL": _iq4_nl, "MXFP4": _mxfp4, "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k,
    "Q6_K": _q6_k, "IQ4_XS": _iq4_xs})
assert _BLOCKS.keys() == FORMATS.keys(), "every format of formats.py has its decoding here"
