"""Writes files and folders that appear whole or not at all: under another name, synced, then renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from brise.errors import OutputError


@contextmanager
def staged_file(path: Path, size: int, *, mode: int | None = None, replaces: bool = False,
                syncs: bool = True) -> Iterator[BinaryIO]:
    """A file to write `size` bytes to, which gets its name at the end. An error leaves nothing. `mode` holds whatever
    the umask. With `replaces` it takes the place of one that is there. Without `syncs` a power cut may leave the name
    with other bytes: for a file whose reader finds that out.

    After a power cut or SIGKILL the unfinished file `.NAME.RANDOM.part` may remain; the next try removes it. It is
    made anew under a name that nobody can guess, so no link in a shared folder leads the writing elsewhere.
    """
    if not replaces:
        refuse_existing(path)
    with output_errors(path):
        _check_space(path, size)
        part = _new_part(path)
        with open(part, "xb", opener=partial(_open_new, mode=0o666 if mode is None else mode)) as file:
            _lock(file.fileno(), path)
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            try:
                yield file
                file.flush()
                if syncs:
                    os.fsync(file.fileno())
                os.rename(part, path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        if syncs:
            sync(path.parent)


@contextmanager
def staged_folder(path: Path, size: int) -> Iterator[Path]:
    """A folder to fill with about `size` bytes, which gets its name at the end. An error leaves nothing."""
    refuse_existing(path)
    with output_errors(path):
        _check_space(path, size)
        part = _new_part(path)
        part.mkdir()
        lock = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            _lock(lock, path)
            yield part
            for file in part.iterdir():
                sync(file)
            sync(part)
            os.rename(part, path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        finally:
            os.close(lock)
        sync(path.parent)


def is_part(name: str, of: str) -> bool:
    """Whether this is the name of an unfinished file or folder that is to be called `of`."""
    return re.fullmatch(rf"\.{re.escape(of)}(\.[0-9a-f]{{16}})?\.part", name) is not None


def remove_left_parts(folder: Path, names: re.Pattern[str]) -> None:
    """Removes what unfinished tries of this user left of files with such names, unless somebody writes them."""
    for name in os.listdir(folder):
        of = re.fullmatch(r"\.(.+)\.[0-9a-f]{16}\.part", name)
        if of is not None and names.fullmatch(of[1]):
            with suppress(FileNotFoundError, OutputError):
                _remove_left(folder / name, folder / of[1])


def _new_part(path: Path) -> Path:
    """A name for the unfinished file. What an earlier try of this user left is removed, unless somebody writes it."""
    for name in os.listdir(path.parent):
        if is_part(name, path.name):
            with suppress(FileNotFoundError):  # it got its name just now
                _remove_left(path.parent / name, path)
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")


def _remove_left(part: Path, path: Path) -> None:
    if os.lstat(part).st_uid != os.geteuid():
        return
    if part.is_symlink():
        part.unlink()
        return
    number = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        _lock(number, path)
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
    finally:
        os.close(number)


def _open_new(path: str, flags: int, mode: int) -> int:
    return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, mode)


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


def _lock(number: int, path: Path) -> None:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(f"another brise is writing {str(path)!r}") from None


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk and outlive a power cut."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
