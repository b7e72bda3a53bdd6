"""Sizes of memory as people write them: 4GB, 3.5GiB, 800MB."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

UNITS: Mapping[str, int] = MappingProxyType({
    "": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40})
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) ?([A-Za-z]*)")


def parse_size(text: str) -> int:
    """Bytes of 4GB (4 * 10^9), 3.5GiB (3.5 * 2^30), 800MB; ValueError says what is allowed."""
    size = _SIZE.fullmatch(text.strip())
    if size is None or size[2] not in UNITS or not (value := int(float(size[1]) * UNITS[size[2]])):
        raise ValueError(f"{text!r}: a size such as 4GB, 3.5GiB or 800MB is allowed")
    return value
