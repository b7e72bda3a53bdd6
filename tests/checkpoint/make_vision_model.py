"""A tiny model that sees, and pictures for it: a GGUF file with the golden encoder beside it as an mmproj file."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brise.models.weights import Dense
from tests.checkpoint import make_gguf
from tests.checkpoint.make_gguf_vision import write_mmproj
from tests.goldens.vision import read_vision

WIDTH = make_gguf.sizes("mistral3").width


def write_seeing(folder: Path) -> Path:
    """A Mistral 3 with random weights; its encoder's file brings a row of its own for breaks."""
    golden = read_vision()
    rng = np.random.default_rng(5)

    def draw(*shape: int) -> Dense:
        return Dense("F32", shape, rng.normal(0, 0.2, shape).astype(np.float32))

    wide = replace(golden, config=replace(golden.config, text_width=WIDTH),
                   weights=replace(golden.weights, w_in=draw(WIDTH, 64), w_out=draw(WIDTH, WIDTH)),
                   text=replace(golden.text, weights=replace(golden.text.weights, tok_embeddings=draw(97, WIDTH))))
    write_mmproj(folder / "mmproj-tiny.gguf", wide)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_gguf, "CONTROL", (*make_gguf.CONTROL, "[IMG]", "[IMG_BREAK]", "[IMG_END]"))
        make_gguf.write_tiny(folder / "tiny.gguf", "mistral3", vocab=make_gguf.VOCAB_SIZE + 3)
    return folder / "tiny.gguf"


def picture(seed: int = 0, width: int = 30, height: int = 20) -> bytes:
    """A PNG of noise."""
    import PIL.Image  # noqa: PLC0415 - an extra

    numbers = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    PIL.Image.fromarray(numbers).save(out, "PNG")
    return out.getvalue()
