"""Sizes of memory as people write them: 4GB, 3.5GiB, 800MB."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

UNITS: Mapping[str, int] = MappingProxyType({
    "": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40})
_PARTS = ("vram", "ram")
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) ?([A-Za-z]*)")


@dataclass(frozen=True)
class TwoLimits:
    """A limit for a GPU's memory and one for the host's, in bytes: vram=4GB,ram=8GB."""

    vram: int
    ram: int


def parse_memory(text: str) -> int | TwoLimits:
    """Bytes of one limit (4GB), or both of vram=4GB,ram=8GB; ValueError says what is allowed."""
    if "=" not in text:
        return parse_size(text)
    parts = [part.strip().partition("=") for part in text.split(",")]
    if sorted(name for name, _, _ in parts) != sorted(_PARTS):
        raise ValueError(f"{text!r}: a size such as 4GB, or two such as vram=4GB,ram=8GB, is allowed")
    sizes = {name: parse_size(size) for name, _, size in parts}
    return TwoLimits(sizes["vram"], sizes["ram"])


def memory_text(memory: int | TwoLimits) -> str:
    """A limit as `parse_memory` reads it."""
    if isinstance(memory, TwoLimits):
        return f"vram={exact_size(memory.vram)},ram={exact_size(memory.ram)}"
    return exact_size(memory)


def exact_size(nbytes: int) -> str:
    """A size as `parse_size` reads it, without rounding: 4GB, 3500MB, 4GiB, 12345B."""
    units = ("TB", "GB", "MB", "GiB", "MiB", "kB", "KiB", "B")
    unit = next(unit for unit in units if nbytes % UNITS[unit] == 0)
    return f"{nbytes // UNITS[unit]}{unit}"


def parse_size(text: str) -> int:
    """Bytes of 4GB (4 * 10^9), 3.5GiB (3.5 * 2^30), 800MB; ValueError says what is allowed."""
    size = _SIZE.fullmatch(text.strip())
    if size is None or size[2] not in UNITS or not (value := int(float(size[1]) * UNITS[size[2]])):
        raise ValueError(f"{text!r}: a size such as 4GB, 3.5GiB or 800MB is allowed")
    return value
