"""The format of each tensor in a mix; llama.cpp's quantiser has the same mixes under the same names.

The first of these rules that applies counts:

1. Vectors (norms, biases), the router of experts and rope factors stay F32; tensors of a vision encoder are not
   changed.
2. The output, and an embedding that is the output too: Q6_K, but Q8_0 in the mix Q8_0.
3. Q4_K_M and Q5_K_M: v and ffn_down are Q6_K in the first and last eighth of the layers and every third between.
   Q4_K_S: v of the first four layers and ffn_down of the first eighth are Q5_K.
   q, k and v in one matrix (Phi-3) are Q5_K in Q4_K_M and Q6_K in Q5_K_M.
   IQ4_NL and IQ4_XS: ffn_down of the first eighth is Q5_K, and v where four query heads or more share one of k and v.
4. Everything else: the mix's own format (Q4_K in Q4_K_M).
5. Rows that are not a multiple of 256 numbers: Q4_K becomes Q5_0, Q5_K becomes Q5_1, Q6_K becomes Q8_0, IQ4_XS becomes
   IQ4_NL.
   Rows that are not a multiple of 32 either: F16.

In F16, BF16 and F32 every matrix has that format.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from brise.errors import UnsupportedError
from brise.quant.formats import FORMATS

# The format that most matrices of a mix get.
MIXES: Mapping[str, str] = MappingProxyType({
    "Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K", "Q4_0": "Q4_0", "Q4_1": "Q4_1", "Q5_0": "Q5_0", "Q5_1": "Q5_1",
    "Q5_K_M": "Q5_K", "Q6_K": "Q6_K", "Q8_0": "Q8_0", "IQ4_NL": "IQ4_NL", "IQ4_XS": "IQ4_XS", "F16": "F16",
    "BF16": "BF16", "F32": "F32"})

# The format in place of one with blocks of 256 where rows are not a multiple of that (llama.cpp's rule; its older
# versions put IQ4_NL in place of Q2_K and Q3_K).
FALLBACKS: Mapping[str, str] = MappingProxyType({
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL"})

# Of q, k and v in one matrix, which has the precision that v needs.
_JOINED: Mapping[str, str] = MappingProxyType({"Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"})

_ALWAYS_F32 = ("ffn_gate_inp.weight", "rope_freqs.weight")
_VISION = ("v.", "mm.")


def choose(mix: str, name: str, shape: tuple[int, ...], source_format: str, num_layers: int, *, tied: bool,
           queries_per_kv: int = 1) -> str:
    """The format of the GGUF tensor `name` in this mix; `queries_per_kv` query heads share one of keys and values."""
    if name.startswith(_VISION):
        return source_format
    if len(shape) == 1 or name.endswith(_ALWAYS_F32):
        return "F32"
    wanted = _wanted(mix, name, num_layers, tied=tied, queries_per_kv=queries_per_kv)
    return wanted if FORMATS[wanted].is_plain else fitting(wanted, shape[-1])


def fitting(format: str, cols: int) -> str:
    """The format, or the one in its place in rows of `cols` numbers."""
    if cols % FORMATS[format].block_size == 0:
        return format
    return fitting(FALLBACKS[format], cols) if format in FALLBACKS else "F16"


def _wanted(mix: str, name: str, num_layers: int, *, tied: bool, queries_per_kv: int) -> str:
    if mix not in MIXES:
        raise UnsupportedError(f"the mix is {mix!r}, allowed are {', '.join(MIXES)}")
    usual = MIXES[mix]
    if FORMATS[usual].is_plain or mix == "Q8_0":
        return usual
    if name == "output.weight" or (name == "token_embd.weight" and tied):
        return "Q6_K"
    if not name.startswith("blk."):
        return usual
    if ".attn_qkv" in name and mix in _JOINED:
        return _JOINED[mix]
    layer, is_v, is_down = int(name.split(".")[1]), ".attn_v" in name, ".ffn_down" in name
    if mix in ("Q4_K_M", "Q5_K_M") and (is_v or is_down):
        return "Q6_K" if _has_more_bits(layer, num_layers) else usual
    if mix == "Q4_K_S" and ((is_v and layer < 4) or (is_down and layer < num_layers // 8)):
        return "Q5_K"
    if usual.startswith("IQ4") and ((is_v and queries_per_kv >= 4) or (is_down and layer < num_layers // 8)):
        return "Q5_K"
    return usual


def _has_more_bits(layer: int, num_layers: int) -> bool:
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2
