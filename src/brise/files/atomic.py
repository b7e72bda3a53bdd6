"""Writes files and folders that appear whole or not at all: under another name, synced, then renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from brise.errors import OutputError


@contextmanager
def staged_file(path: Path, size: int, *, mode: int | None = None) -> Iterator[BinaryIO]:
    """A file to write `size` bytes to, which gets its name at the end. An error leaves nothing. `mode` holds whatever
    the umask.

    After a power cut or SIGKILL the unfinished file `.NAME.part` may remain; the next try overwrites it.
    """
    refuse_existing(path)
    part = path.with_name(f".{path.name}.part")
    with output_errors(path):
        _check_space(path, size)
        with open(part, "ab", opener=partial(os.open, mode=0o666 if mode is None else mode)) as file:
            _lock(file, path)
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            try:
                file.truncate(0)
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.rename(part, path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        _sync(path.parent)


@contextmanager
def staged_folder(path: Path, size: int) -> Iterator[Path]:
    """A folder to fill with about `size` bytes, which gets its name at the end. An error leaves nothing."""
    refuse_existing(path)
    part = path.with_name(f".{path.name}.part")
    with output_errors(path):
        _check_space(path, size)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            yield part
            for file in part.iterdir():
                _sync(file)
            _sync(part)
            os.rename(part, path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        _sync(path.parent)


def private(path: str, flags: int) -> int:
    """An opener for `open`: a file that is made is for its owner only, whatever the umask."""
    return os.open(path, flags, 0o600)


def private_folder(path: Path) -> None:
    """Makes a folder, and those around it that are missing, for its owner only."""
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)


def refuse_existing(path: Path) -> None:
    """Raises OutputError if something is there already, or no folder to write into."""
    with output_errors(path):
        if os.path.lexists(path):
            raise OutputError(f"{str(path)!r} is there already", hint="remove it first, or give another name")
        if not path.parent.is_dir():
            raise OutputError(f"there is no folder {str(path.parent)!r} to write {path.name!r} into")


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turns errors of the disk into OutputError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(f"no space left on the disk while writing {str(path)!r}; nothing of it was kept",
                              hint="make room, or write to another disk") from error
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror}") from error


def _check_space(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise OutputError(f"{str(path)!r} needs {size} bytes, its disk has {free} free",
                          hint="make room, or write to another disk")


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(f"another brise is writing {str(path)!r}") from None


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
