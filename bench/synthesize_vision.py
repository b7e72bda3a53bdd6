"""Writes Ministral 3's vision tower with random weights as the `mmproj` file that stands beside a GGUF.

    python bench/synthesize_vision.py --text-width 3072 mmproj-ministral3-3b.gguf
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGUFWriter


@dataclass(frozen=True)
class Tower:
    """Sizes of a Pixtral encoder; the defaults are those of all three Ministral 3."""

    width: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    ffn_width: int = 4096
    patch_size: int = 14
    image_size: int = 1540
    merge: int = 2


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("path", type=Path, help="the file to write")
    arguments.add_argument("--text-width", type=int, default=3072, help="width of the text model (default: 3072)")
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    write(options.path, Tower(), options.text_width, options.seed)
    sys.stdout.write(f"{options.path}: {options.path.stat().st_size / 1e6:.0f} MB\n")
    return 0


def write(path: Path, tower: Tower, text_width: int, seed: int) -> None:
    """Matrices in F16, norms in F32, as converters write them; a file cut short keeps the name `.part`."""
    writer = GGUFWriter(path.with_suffix(".part"), "clip")
    _add_metadata(writer, tower, text_width)
    tensors = list(_tensors(tower, text_width))
    for name, shape in tensors:
        kind = np.dtype(np.float32 if len(shape) == 1 else np.float16)
        writer.add_tensor_info(name, shape, kind, int(np.prod(shape)) * kind.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(seed)
    for name, shape in tensors:
        values = random.standard_normal(shape, np.float32)
        if len(shape) > 1:
            writer.write_tensor_data((0.02 * values).astype(np.float16))
        else:
            spread, center = (0.02, 0.0) if name.endswith("img_break") else (0.1, 1.0)
            writer.write_tensor_data(center + np.float32(spread) * values)
    writer.close()
    path.with_suffix(".part").replace(path)


def _tensors(tower: Tower, text_width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    width = tower.width
    yield "v.patch_embd.weight", (width, 3, tower.patch_size, tower.patch_size)
    yield "v.pre_ln.weight", (width,)
    for layer in range(tower.num_layers):
        for norm in ("ln1", "ln2"):
            yield f"v.blk.{layer}.{norm}.weight", (width,)
        for matrix in ("attn_q", "attn_k", "attn_v", "attn_out"):
            yield f"v.blk.{layer}.{matrix}.weight", (width, width)
        for matrix in ("ffn_gate", "ffn_up"):
            yield f"v.blk.{layer}.{matrix}.weight", (tower.ffn_width, width)
        yield f"v.blk.{layer}.ffn_down.weight", (width, tower.ffn_width)
    yield "mm.input_norm.weight", (width,)
    yield "mm.patch_merger.weight", (width, width * tower.merge**2)
    yield "mm.1.weight", (text_width, width)
    yield "mm.2.weight", (text_width, text_width)
    yield "v.token_embd.img_break", (text_width,)


def _add_metadata(writer: GGUFWriter, tower: Tower, text_width: int) -> None:
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_name("Synthetic Ministral 3 vision tower")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "pixtral")
    writer.add_bool("clip.use_silu", True)
    for key, value in {
            "image_size": tower.image_size, "patch_size": tower.patch_size, "embedding_length": tower.width,
            "feed_forward_length": tower.ffn_width, "block_count": tower.num_layers, "projection_dim": text_width,
            "attention.head_count": tower.num_heads, "spatial_merge_size": tower.merge}.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.48145466, 0.4578275, 0.40821073])
    writer.add_array("clip.vision.image_std", [0.26862954, 0.26130258, 0.27577711])


if __name__ == "__main__":
    raise SystemExit(main())
