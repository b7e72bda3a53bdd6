"""A throw-away PostgreSQL server, where its programs are installed; it listens on a socket in its own folder only."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def folder_of_programs() -> Path | None:
    """Where initdb and postgres are; Debian keeps them out of the PATH."""
    found = shutil.which("initdb")
    candidates = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((path for path in candidates if (path / "postgres").exists() and (path / "pg_ctl").exists()), None)


def is_possible() -> bool:
    """The server refuses to run as root, so root needs another user for it."""
    return folder_of_programs() is not None and (os.getuid() != 0 or _user() is not None)


@contextmanager
def server() -> Iterator[str]:
    """The URL of its database."""
    programs = folder_of_programs()
    assert programs is not None
    folder = Path(tempfile.mkdtemp(prefix="brise-pg-", dir="/tmp"))  # a socket's path has 107 letters at most
    user = _user() if os.getuid() == 0 else None
    try:
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)
        _run(user, programs / "initdb", "-D", folder / "data", "-U", "brise", "-A", "trust", "-E", "UTF8", "-N",
             "--locale=C")
        _run(user, programs / "pg_ctl", "-D", folder / "data", "-w", "-t", "60", "-l", folder / "log", "-o",
             f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c shared_buffers=16MB", "start")
        try:
            yield f"postgresql://brise@/postgres?host={folder}"
        finally:
            _run(user, programs / "pg_ctl", "-D", folder / "data", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _user() -> pwd.struct_passwd | None:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def _run(user: pwd.struct_passwd | None, *words: object) -> None:
    made = subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.STDOUT, cwd="/", check=False, user=user and user.pw_uid,
                          group=user and user.pw_gid, extra_groups=[] if user else None)
    assert made.returncode == 0, words
