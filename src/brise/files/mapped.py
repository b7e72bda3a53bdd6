"""Maps a file as read-only memory."""

from __future__ import annotations

import mmap
from pathlib import Path

from brise.errors import CheckpointError


def map_file(path: Path, least_bytes: int) -> mmap.mmap:
    """The whole file; CheckpointError if it cannot be opened, or is empty (`least_bytes` is what it should have)."""
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:  # an empty file cannot be mapped
                raise CheckpointError(f"{path.name}: the file is empty", field="size of the file", value=0,
                                      limit=f"at least {least_bytes} bytes", hint="download it again")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"cannot open {path}: {error.strerror}", field="path", value=path) from error
