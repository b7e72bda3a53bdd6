"""Maps a file as read-only memory, and says which file it was."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from brise.errors import CheckpointError


@dataclass(frozen=True)
class SourceFile:
    """A file as it was when it was opened. A file with other bytes differs in one of these numbers."""

    path: str
    size: int
    modified_ns: int
    changed_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path, status: os.stat_result | None = None) -> SourceFile:
        """The file as it is now, or of this status; OSError if it is not there."""
        found = path.stat() if status is None else status
        return cls(str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)

    @property
    def is_current(self) -> bool:
        """Whether the file is there and has not been changed since."""
        try:
            return SourceFile.of(Path(self.path)) == self
        except OSError:
            return False


class FileMap(mmap.mmap):
    """The bytes of a whole file, and which file that is."""

    source: SourceFile


def map_file(path: Path, least_bytes: int) -> FileMap:
    """The whole file; CheckpointError if it cannot be opened, or is empty (`least_bytes` is what it should have)."""
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:  # an empty file cannot be mapped
                raise CheckpointError(f"{path.name}: the file is empty", field="size of the file", value=0,
                                      limit=f"at least {least_bytes} bytes", hint="download it again")
            mapped = FileMap(file.fileno(), 0, access=mmap.ACCESS_READ)
            mapped.source = SourceFile.of(path, os.fstat(file.fileno()))
            return mapped
    except OSError as error:
        raise CheckpointError(f"cannot open {path}: {error.strerror}", field="path", value=path) from error
