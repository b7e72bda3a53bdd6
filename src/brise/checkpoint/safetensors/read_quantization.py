"""Checks the quantisation that a config describes; what brise cannot read is refused by name.

Which weight is quantised, and how, is seen from its tensors. Scales of
activations and of a cache are notes: brise computes on the weights' numbers, which is closer to the original model.
"""

from __future__ import annotations

from brise.checkpoint import known_keys
from brise.files.fields import Fields

FLOAT_QUANTIZED, NVFP4_PACKED = "float-quantized", "nvfp4-pack-quantized"

EMPTY_SECTIONS = ("sparsity_config", "transform_config", "modules_to_convert")


def scale_block(quantization: Fields) -> tuple[int, int] | None:
    """Rows and columns that share a scale in `quantization_config`; UnsupportedError names any other method."""
    method = quantization.text("quant_method")
    for name in EMPTY_SECTIONS:
        if quantization.value(name):
            raise quantization.refused(name, "null or empty")
    match method:
        case "fp8":
            block = _block(quantization, "weight_block_size")
        case "compressed-tensors":
            block = _compressed_tensors(quantization)
        case "modelopt":
            _check_modelopt(quantization)
            block = None
        case _:
            raise quantization.refused("quant_method", "'fp8', 'compressed-tensors' or 'modelopt'")
    quantization.refuse_rest(known_keys.QUANTIZATION)
    return block


def check_native(quantization: Fields) -> None:
    """`quantization` of a params.json: FP8 with one scale for a tensor."""
    if quantization.text("qformat_weight") != "fp8_e4m3":
        raise quantization.refused("qformat_weight", "'fp8_e4m3'")
    if quantization.text("qscheme_act", default="TENSOR") not in ("TENSOR", "NO_SCALES"):
        raise quantization.refused("qscheme_act", "'TENSOR' or 'NO_SCALES'")
    quantization.refuse_rest(known_keys.STRICT)


def _compressed_tensors(quantization: Fields) -> tuple[int, int] | None:
    kinds = (FLOAT_QUANTIZED, NVFP4_PACKED)
    if quantization.text("format", default=FLOAT_QUANTIZED) not in (*kinds, "mixed-precision"):
        raise quantization.refused("format", f"{FLOAT_QUANTIZED!r} or {NVFP4_PACKED!r}")
    blocks = set()
    for group in quantization.sections("config_groups"):
        if group.has("format") and group.text("format") not in kinds:
            raise group.refused("format", f"{FLOAT_QUANTIZED!r} or {NVFP4_PACKED!r}")
        weights = group.section("weights")
        _check_weights(weights)
        if weights.has("block_structure"):
            blocks.add(_block(weights, "block_structure"))
        group.refuse_rest(known_keys.QUANTIZATION)
    if len(blocks) > 1:
        raise quantization.refused("config_groups", "one block_structure for all groups")
    return blocks.pop() if blocks else None


def _check_weights(weights: Fields) -> None:
    """FP8 with scales of any kind, or FP4 with one for 16 columns."""
    num_bits = weights.integer("num_bits")
    if weights.text("type", default="int") != "float":
        raise weights.refused("type", "'float'")
    if num_bits not in (4, 8):
        raise weights.refused("num_bits", "8, or 4")
    if not weights.flag("symmetric", default=True):
        raise weights.refused("symmetric", "true")
    strategies = ("tensor", "channel", "block") if num_bits == 8 else ("tensor_group",)
    if weights.has("strategy") and weights.text("strategy") not in strategies:
        raise weights.refused("strategy", " or ".join(map(repr, strategies)))
    if num_bits == 4 and weights.integer("group_size", default=16) != 16:
        raise weights.refused("group_size", "16")


def _check_modelopt(quantization: Fields) -> None:
    """NVIDIA's files: some nest the object once more, and name the algorithm in it."""
    inner = quantization.section("quantization") if quantization.has("quantization") else quantization
    if inner.text("quant_algo") not in ("FP8", "NVFP4"):
        raise inner.refused("quant_algo", "'FP8' or 'NVFP4'")
    if inner.integer("group_size", default=16) != 16:
        raise inner.refused("group_size", "16")
    for group in quantization.sections("config_groups") if quantization.has("config_groups") else ():
        _check_weights(group.section("weights"))


def _block(fields: Fields, name: str) -> tuple[int, int] | None:
    value = fields.value(name)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(type(size) is int and size > 0 for size in value):
        raise fields.wrong(name, "two numbers over 0: rows and columns")
    return value[0], value[1]
