"""Computes SHA-256 digests of text, files and folders, makes draws of them, and explains disk errors."""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from brise.errors import StoreError

CHUNK_BYTES = 1 << 20
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredFile:
    """One file of a model that has several."""

    name: str
    digest: str
    size: int


@dataclass(frozen=True)
class Located:
    """A model file or folder on disk, the name to show for it, and its SHA-256 if it is in the store.

    `note` says what the user should know of how it was found.
    """

    name: str
    path: Path
    digest: str | None = None
    note: str = ""


def text_digest(text: str) -> str:
    """SHA-256 of the text as UTF-8, lone surrogates included: 64 hexadecimal digits."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def hash_draw(text: str) -> float:
    """A number from 0 to 1 that depends on the text alone and is as good as random."""
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


def blake_draw(*names: str) -> float:
    """The same for a switch, a shadow and an audit, whose decisions stand in ledgers: so it keeps its own hash."""
    digest = hashlib.blake2b("\0".join(names).encode(errors="surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def list_digest(files: Sequence[StoredFile]) -> str:
    """SHA-256 of a model of several files: of their digests and names, as sha256sum lists them."""
    lines = sorted(f"{file.digest}  {file.name}\n" for file in files)
    return text_digest("".join(lines))


def file_digest(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file; `progress` is called with the bytes done."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done)
    return digest.hexdigest()


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Turns errors of the disk into StoreError. Nothing is lost: the old state remains."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreError(f"no space left on the disk of {root}",
                             hint="make room (`brise models remove NAME`) or set BRISE_HOME to another disk; "
                                  "the next pull resumes where this one stopped") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(f"may not write to {error.filename or root}: {error.strerror}",
                             hint="set BRISE_HOME to a folder of your own") from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG):
            raise StoreError(f"cannot use {error.filename or root}: {error.strerror}",
                             hint=f"set BRISE_HOME to a usable folder; it is {root}") from error
        raise
