"""Makes tests/goldens/scaled.npz with compressed-tensors 0.20; run by hand, its results are checked in.

    pip install 'brise[goldens]' compressed-tensors==0.20.0
    python tests/goldens/make_scaled.py

Random matrices, quantised by the library, and what it makes of them again: FP8 in blocks of 128 x 128 (neither side
of the matrix is a multiple), FP8 with one scale a row, and NVFP4.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, QuantizationStrategy, QuantizationType
from compressed_tensors.quantization.utils.helpers import generate_gparam

ROWS, COLS, BLOCK = 136, 144, 128


def main() -> None:
    """Writes the file beside this script."""
    weight = torch.tensor(np.random.default_rng(0).normal(0, 0.05, (ROWS, COLS)), dtype=torch.float32)
    weight[3] *= 30  # a scale of its own
    arrays = {**named("block", fp8_block(weight)), **named("channel", fp8_channel(weight)),
              **named("nvfp4", nvfp4(weight))}
    np.savez_compressed(Path(__file__).parent / "scaled.npz", **arrays)


def named(prefix: str, arrays: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {f"{prefix}.{name}": to_numpy(tensor) for name, tensor in arrays.items()}


def to_numpy(tensor: torch.Tensor) -> Any:
    """8-bit floats as their codes, BF16 as its upper half."""
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8).numpy()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def fp8_block(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    padded = torch.nn.functional.pad(weight, (0, -COLS % BLOCK, 0, -ROWS % BLOCK))
    blocks = padded.reshape(padded.shape[0] // BLOCK, BLOCK, -1, BLOCK)
    scale = blocks.abs().amax(dim=(1, 3)) / 448
    args = QuantizationArgs(num_bits=8, type=QuantizationType.FLOAT, strategy=QuantizationStrategy.BLOCK,
                            block_structure=[BLOCK, BLOCK])
    return there_and_back(weight, scale, args)


def fp8_channel(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    args = QuantizationArgs(num_bits=8, type=QuantizationType.FLOAT, strategy=QuantizationStrategy.CHANNEL)
    return there_and_back(weight, weight.abs().amax(dim=1, keepdim=True) / 448, args)


def there_and_back(weight: torch.Tensor, scale: torch.Tensor, args: QuantizationArgs) -> dict[str, torch.Tensor]:
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    small = NaiveQuantizationCompressor.compress({"weight": weight, "weight_scale": scale}, scheme)
    again = NaiveQuantizationCompressor.decompress(small, scheme)["weight"]
    assert again.dtype == torch.float32
    return {"weight": small["weight"], "weight_scale": small["weight_scale"], "numbers": again.to(torch.bfloat16)}


def nvfp4(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    args = QuantizationArgs(num_bits=4, type=QuantizationType.FLOAT, strategy=QuantizationStrategy.TENSOR_GROUP,
                            group_size=16, symmetric=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    whole = generate_gparam(weight.min().reshape(1), weight.max().reshape(1))
    groups = weight.reshape(ROWS, -1, 16).abs().amax(dim=2)
    scale = (whole * groups / 6).to(torch.float8_e4m3fn).to(torch.float32)
    small = NVFP4PackedCompressor.compress(
        {"weight": weight, "weight_scale": scale, "weight_global_scale": whole}, scheme)
    again = NVFP4PackedCompressor.decompress(small, scheme)["weight"]
    return {name: small[name] for name in ("weight_packed", "weight_scale", "weight_global_scale")} | {
        "numbers": again.to(torch.bfloat16)}


if __name__ == "__main__":
    main()
