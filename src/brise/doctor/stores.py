"""What brise keeps on this machine: the model store, captured traffic with its ledger, and keys. Nothing is changed."""

from __future__ import annotations

import importlib
import json
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from brise.doctor.findings import Finding
from brise.errors import BriseError
from brise.hub.packed import PackedFolder
from brise.hub.pull import damaged_file
from brise.hub.store import ModelStore
from brise.traffic.ledger import check_chain
from brise.traffic.records import LedgerEntry
from brise.traffic.schema import VERSION
from brise.traffic.seal import MASTER_FILE, SIGNING_FILE
from brise.traffic.stores import default_place, keys_folder
from brise.watch import size_text

CONNECT_S = 10
_LINES = "SELECT number, at_s, kind, body, previous, digest FROM ledger ORDER BY number"
OTHERS = 0o077  # bits of a mode that let others in
_MODELS_HINT = "brise models remove NAME, then pull it again"


def examine(home: Path, place: str | None, *, digests: bool) -> Iterator[Finding]:
    """Permissions, models, and the store of traffic at `place`, by default the one in `home`."""
    yield from _home(home)
    yield from _models(home, digests=digests)
    yield from _packed(PackedFolder.in_home(home))
    if place is not None and "://" in place:
        yield Finding("traffic", "store", "NOTE", f"{place.partition('://')[0]}://... is on a server, which is asked "
                      "with --reach only")
    else:
        yield from _traffic(Path(place) if place is not None else default_place(home), must_exist=place is not None)
    yield from _keys(keys_folder(home))


def _home(home: Path) -> Iterator[Finding]:
    if not home.exists():
        yield Finding("permissions", "BRISE_HOME", "NOTE", f"{home} is made when something is kept")
        return
    yield _private("BRISE_HOME", home, area="permissions", severe=False)
    others = [path for path in sorted(home.iterdir()) if path.stat().st_uid != os.geteuid()]
    if others:
        yield Finding("permissions", "owner", "WARN", f"{others[0]} belongs to user {others[0].stat().st_uid}, "
                      f"this is user {os.geteuid()}", f"chown -R $(id -un) {home}")
    else:
        yield Finding("permissions", "owner", "PASS", f"everything in {home} is ours")


def _models(home: Path, *, digests: bool) -> Iterator[Finding]:
    store = ModelStore(home)
    try:
        names = store.names()
    except BriseError as error:
        yield Finding("models", "store", "FAIL", str(error).partition("\n")[0])
        return
    if not names:
        yield Finding("models", "store", "NOTE", "empty", "brise pull smollm2")
    for name in names:
        try:
            entry = store.get(name)
            store.path(entry)
            wrong = damaged_file(store, entry, lambda what, done, total: None) if digests else None
        except (BriseError, OSError) as error:
            text, _, hint = str(error).partition("\nhint: ")
            yield Finding("models", name, "FAIL", text, hint or _MODELS_HINT)
            continue
        if wrong is not None:
            yield Finding("models", name, "FAIL", wrong, f"brise pull {entry.source} --name {name}")
        else:
            yield Finding("models", name, "PASS", f"{size_text(entry.size)}, " + (
                f"SHA-256 {entry.digest[:12]} computed anew" if digests else "there and as long as it should be; "
                "--digests reads it whole"))


def _packed(folder: PackedFolder) -> Iterator[Finding]:
    """What is kept so that models start sooner."""
    files = folder.files()
    useless = [file for file in files if file.problem]
    size = f"{size_text(sum(file.nbytes for file in files))} of {len(files)} model{'s' * (len(files) > 1)}"
    if useless:
        yield Finding("models", "packed weights", "NOTE", f"{size}, {len(useless)} of no use: "
                      f"{useless[0].problem}", "brise models prune")
    elif files:
        yield Finding("models", "packed weights", "PASS", f"{size}, for faster starts")


def _traffic(path: Path, *, must_exist: bool) -> Iterator[Finding]:
    if not path.is_file():
        yield Finding("traffic", "store", "FAIL" if must_exist else "NOTE", f"there is none at {path}")
        return
    yield _private("store", path, area="traffic", severe=True)
    yield _private("folder", path.parent, area="traffic", severe=False)
    try:
        # Without a write-ahead log nobody has it open, and SQLite would make one even to read.
        mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "mode=ro&immutable=1"
        with closing(sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True, timeout=5.0)) as connection:
            yield from _database(connection)
    except sqlite3.Error as error:
        yield Finding("traffic", "database", "FAIL", f"{path}: {error}", "put back a backup, and move this file away")


def examine_server(url: str) -> Iterator[Finding]:
    """The store in a PostgreSQL server, by a connection that may only read."""
    try:
        psycopg = importlib.import_module("psycopg")
    except ModuleNotFoundError:
        yield Finding("traffic", "server", "FAIL", "the package 'psycopg' is not installed",
                      "pip install 'brise[postgres]'")
        return
    try:
        with closing(psycopg.connect(url, connect_timeout=CONNECT_S, options="-c default_transaction_read_only=on")
                     ) as connection:
            yield Finding("traffic", "server", "PASS", f"{without_secrets(url)} is PostgreSQL "
                          f"{connection.info.server_version // 10000}")
            yield from _server(connection)
    except psycopg.Error as error:
        yield Finding("traffic", "server", "FAIL", f"{without_secrets(url)}: {str(error).strip()}",
                      "is the server there, and may this user read the database?")


def without_secrets(url: str) -> str:
    """The URL without user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else url


def _server(connection: Any) -> Iterator[Finding]:
    if connection.execute("SELECT to_regclass('meta')").fetchone() == (None,):
        yield Finding("traffic", "schema", "NOTE", "no store yet; the first server makes it")
        return
    row = connection.execute("SELECT value FROM meta WHERE name = 'version'").fetchone()
    version = int(row[0]) if row else 0
    yield _layout(version)
    if 0 < version <= VERSION:
        yield _ledger(connection.execute(_LINES))


def _database(connection: sqlite3.Connection) -> Iterator[Finding]:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    yield _layout(version)
    if version > VERSION:
        return
    problems = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
    if problems != ["ok"]:
        yield Finding("traffic", "database", "FAIL", f"SQLite finds: {'; '.join(problems)}", "put back a backup")
        return
    if version == 0:
        return
    count = int(connection.execute("SELECT count(*) FROM exchanges").fetchone()[0])
    yield Finding("traffic", "database", "PASS", f"whole, {count} requests")
    yield _ledger(connection.execute(_LINES))


def _layout(version: int) -> Finding:
    if version > VERSION:
        return Finding("traffic", "schema", "FAIL", f"layout {version}, this brise knows up to {VERSION}",
                       "update brise")
    if version < VERSION:
        return Finding("traffic", "schema", "NOTE", f"layout {version}; the next command that opens it brings it to "
                       f"{VERSION}")
    return Finding("traffic", "schema", "PASS", f"layout {version}")


def _ledger(rows: Iterable[Sequence[Any]]) -> Finding:
    try:
        lines = [LedgerEntry(int(number), float(at_s), kind, json.loads(body), previous, digest)
                 for number, at_s, kind, body, previous, digest in rows]
    except (ValueError, TypeError) as error:
        return Finding("traffic", "ledger", "FAIL", f"a line cannot be read: {error}", "compare with a backup")
    broken = check_chain(lines)
    if broken is not None:
        return Finding("traffic", "ledger", "FAIL", broken.reason, "nothing from that line on can be relied on; "
                       "compare with a backup (brise audit)")
    return Finding("traffic", "ledger", "PASS", f"whole, {len(lines)} lines")


def _keys(folder: Path) -> Iterator[Finding]:
    if not folder.is_dir():
        yield Finding("keys", "folder", "NOTE", f"there is none at {folder} yet")
        return
    yield _private("folder", folder, area="keys", severe=True)
    for name in (MASTER_FILE, SIGNING_FILE, "subjects.sqlite"):
        if (folder / name).is_file():
            yield _private(name, folder / name, area="keys", severe=True)
    master = folder / MASTER_FILE
    if not master.is_file():
        yield Finding("keys", MASTER_FILE, "WARN", "not there", "without it captured bodies cannot be read; "
                      "put it back")


def _private(name: str, path: Path, *, area: str, severe: bool) -> Finding:
    """Whether only its owner can get at a file or folder."""
    try:
        found = path.stat()
    except OSError as error:
        return Finding(area, name, "FAIL", f"{path}: {error.strerror}")
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid() and os.geteuid() != 0:
        return Finding(area, name, "FAIL", f"{path} belongs to user {found.st_uid}", f"chown $(id -un) {path}")
    if mode & OTHERS:
        right = "700" if path.is_dir() else "600"
        return Finding(area, name, "FAIL" if severe else "WARN", f"{path} has mode {mode:03o}: others get at it",
                       f"chmod {right} {path}")
    return Finding(area, name, "PASS", f"{path} has mode {mode:03o}")
