"""The committed SPIR-V as instructions. Numbers are those of the SPIR-V specification."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from brise.models.weights import Array

ROOT = Path(__file__).resolve().parents[3]
SPIRV = ROOT / "native" / "vulkan" / "spirv"
MODULES = sorted(SPIRV.glob("*.spv"))
OP_DECORATE = 71


def instructions(module: Path) -> list[Array]:
    """The words of each instruction; the first one's low half is its operation."""
    words = np.fromfile(module, "<u4")
    out, at = [], 5
    while at < len(words):
        size = int(words[at]) >> 16
        out.append(words[at:at + size])
        at += size
    return out
