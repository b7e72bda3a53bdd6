"""Opens the store that a path or a URL means; by default the one in the home folder."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from brise.errors import MissingExtraError, StoreError, UnsupportedError
from brise.traffic import prices
from brise.traffic.audits_waiting import AuditsWaiting
from brise.traffic.conversations import Conversations
from brise.traffic.key_budgets import KeyBudgets
from brise.traffic.keys import KeyRing
from brise.traffic.prices import Prices
from brise.traffic.rate_buckets import RateBuckets
from brise.traffic.schema import ALL, KEYS, TRAFFIC, Database, store_id
from brise.traffic.seal import MASTER_FILE, derived, load_or_create_master_key
from brise.traffic.servers import SeenServer, Servers
from brise.traffic.sql_store import SqlStore
from brise.traffic.sqlite_store import SqliteDatabase
from brise.traffic.virtual_keys import VirtualKeys

POSTGRES = ("postgresql://", "postgres://")
FILLED_BY = "brise serve --upstream URL makes it and fills it; or brise log import FILE"


def default_place(home: Path) -> Path:
    """The store's file, unless the user names another."""
    return home / "gateway" / "traffic.sqlite"


def keys_folder(home: Path) -> Path:
    """The folder of this machine's keys, whatever the store."""
    return home / "gateway" / "keys"


def open_store(place: str | Path | None, home: Path, *, must_exist: bool = False, made_by: str = FILLED_BY,
               clock: Callable[[], float] = time.time) -> SqlStore:
    """The store at a path or postgresql:// URL, by default the one in `home`; made if it is not there.

    `must_exist`: for commands that only read: a mistyped path is an error then, and makes no empty file; `made_by` is
    its hint. `clock` gives the times of the ledger's lines.
    """
    folder = keys_folder(home)
    if isinstance(place, str) and "://" in place:
        if not place.startswith(POSTGRES):
            raise UnsupportedError(f"the store {place.partition('://')[0]}://... is of no kind that is known; allowed "
                                   "are a path and postgresql://...")
        return _postgres(place, load_or_create_master_key(folder), clock)
    path = Path(place) if place is not None else default_place(home)
    if must_exist and not path.is_file():
        raise StoreError(f"there is no store at {str(path)!r}",
                         hint=made_by)
    if path.is_file() and path.stat().st_size and not (folder / MASTER_FILE).exists():
        raise StoreError(f"the store {str(path)!r} is there, but not the key to it, {str(folder / MASTER_FILE)!r}",
                         hint="put the folder with the keys back, from where the store was filled")
    master = load_or_create_master_key(folder)
    database = SqliteDatabase(path, TRAFFIC)
    try:
        return SqlStore(database, KeyRing(SqliteDatabase(folder / "subjects.sqlite", KEYS), master,
                                          store_id(database), str(path.resolve())), clock)
    except BaseException:
        database.close()
        raise


def open_virtual_keys(place: str | Path | None, home: Path, *, must_exist: bool = False
                      ) -> tuple[VirtualKeys, KeyBudgets]:
    """The virtual keys of a store, and what they have used. They have connections of their own, so that no request
    waits for captured traffic to be written; closing the keys closes them.
    """
    made_by = "brise keys add NAME" + (f" --store {shlex.quote(str(place))}" if place is not None else "")
    open_store(place, home, must_exist=must_exist,  # makes it, and its keys, if it is not there
               made_by=f"{made_by} makes it, with its first key").close()
    database = _database(place, home)
    return VirtualKeys(database), KeyBudgets(database)


def open_servers(place: str | Path | None, home: Path, *, must_exist: bool = False) -> Servers:
    """The servers that share a store, over a connection of their own."""
    open_store(place, home, must_exist=must_exist).close()
    return Servers(_database(place, home))


def open_rate_buckets(place: str | Path | None, home: Path) -> RateBuckets:
    """The rate limits that the servers of a store keep together, over a connection of their own."""
    return RateBuckets(_database(place, home))


def open_audits_waiting(place: str, home: Path) -> AuditsWaiting:
    """The audits that the servers of a store are still to make, over a connection of their own."""
    return AuditsWaiting(_database(place, home))


def shared_prices(file: Path | None, place: str | Path | None, home: Path) -> Prices | None:
    """What tokens cost: by the file, or the one in `home`; without either, by that of the server that shares the store
    and had one when it started last."""
    own = prices.read_if_there(file, home)
    if not (isinstance(place, str) and place.startswith(POSTGRES)):
        return own
    with closing(_database(place, home)) as database:
        if own is not None and own.path is not None:
            with database.transaction() as transaction:
                transaction.run("INSERT INTO meta (name, value) VALUES ('prices', ?) ON CONFLICT (name) "
                                "DO UPDATE SET value = excluded.value", (own.path.read_text(encoding="utf-8"),))
            return own
        rows = database.rows("SELECT value FROM meta WHERE name = 'prices'")
    return prices.parse_prices(str(rows[0][0]), Path("the store's prices.toml")) if rows else None


def seen_servers(place: str, home: Path) -> list[SeenServer]:
    """The servers that share a store, those that are gone too. A file is for one server, so it has none."""
    if not place.startswith(POSTGRES):
        raise UnsupportedError(f"the store {place!r} is for one server; several share one in PostgreSQL",
                               hint="--store postgresql://USER@HOST/DATABASE")
    with closing(open_servers(place, home, must_exist=True)) as servers:
        return servers.all()


def _database(place: str | Path | None, home: Path) -> Database:
    """The tables of a store that is there, without its keys."""
    if isinstance(place, str) and "://" in place:
        from brise.traffic.postgres_store import PostgresDatabase  # noqa: PLC0415, psycopg is an extra
        return PostgresDatabase(place, ALL)
    return SqliteDatabase(Path(place) if place is not None else default_place(home), TRAFFIC)


def _postgres(url: str, master: bytes, clock: Callable[[], float]) -> SqlStore:
    """Several gateways share the rows, the ledger and the wrapped keys; each of them has the same master key."""
    try:
        from brise.traffic.postgres_store import PostgresDatabase  # noqa: PLC0415, psycopg is an extra
    except ModuleNotFoundError as error:
        if error.name != "psycopg":
            raise
        raise MissingExtraError("psycopg", "postgres", "a store in PostgreSQL") from None
    database = PostgresDatabase(url, ALL)
    try:
        return SqlStore(database, KeyRing(database, master, store_id(database)), clock)
    except BaseException:
        database.close()
        raise


def request_key(home: Path) -> bytes:
    """The key of digests that name requests; gateways that share a store share it."""
    return derived(load_or_create_master_key(keys_folder(home)), "requests")


def open_threads(store: SqlStore, home: Path) -> Conversations:
    """Finds the conversations of exchanges that are written to this store."""
    return Conversations(store, derived(load_or_create_master_key(keys_folder(home)), "threads"))
