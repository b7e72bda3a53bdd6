"""The host's memory, as backends ask for it."""

from __future__ import annotations

import os
from pathlib import Path


def available_bytes() -> int:
    """Bytes that programs can have without swapping: the kernel's MemAvailable, or all there is where it says none."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
