"""`brise hub`: opens the hub's folder and the repository, and serves until it is told to end.

    FOLDER/hub.sqlite      devices, tokens, records (received.py); one file, and its log beside it
    FOLDER/operator.key    what `brise fleet` and the page's reader must know; made at the first start
    FOLDER/seal.key        opens the devices' records: without it they are lost
    FOLDER/peers.pem       signs certificates by which devices know each other; made with the extra `peers` only
    BRISE_HOME/gateway/traffic.sqlite (--store)    the ledger, with roll-outs beside the switches of this machine
    BRISE_HOME/fleet/repository, fleet/keys/hub.key    what `brise ship` and `brise fleet keys` made
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import uvicorn

from brise.errors import FleetError, UnsupportedError
from brise.files.atomic import private_folder, staged_file
from brise.fleet import hub_operations
from brise.fleet.enrolment import Enrolment
from brise.fleet.hub import FleetHub, HubParts
from brise.fleet.hub_operations import SignedBundle
from brise.fleet.hub_routes import HubService, create_app
from brise.fleet.offers import RolloutList
from brise.fleet.peer_certificates import FleetAuthority
from brise.fleet.received import SCHEMA, ReceivedRecords
from brise.fleet.sealed_records import new_seal_key
from brise.serve import sparse_log
from brise.serve.access import is_loopback, read_keys
from brise.serve.app import BACKLOG, KEEP_ALIVE_S, QuietServer, bind
from brise.serve.serving import ServeSettings
from brise.serve.uvicorn_protocol import GuardedProtocol
from brise.traffic.seal import SigningKey
from brise.traffic.sqlite_store import SqliteDatabase
from brise.traffic.stores import open_store

PORT = 8484
OPERATOR_KEY, SEAL_KEY, AUTHORITY, DATABASE = "operator.key", "seal.key", "peers.pem", "hub.sqlite"
FLUSH_S = 5


@dataclass(frozen=True)
class HubOptions:
    """The defaults are those of `brise hub`; paths of None are in `home`. `store` is the file with the ledger.

    `device_bytes` of records are kept for each device and `record_bytes` for all, for `keep_s` seconds.
    """

    home: Path
    folder: Path | None = None
    repository: Path | None = None
    key: Path | None = None
    host: str = "127.0.0.1"
    port: int = PORT
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    allow_insecure_bind: bool = False
    store: str | None = None
    record_bytes: int = 1 << 30
    device_bytes: int = 16 << 20
    keep_s: float = 90 * 86400.0

    @property
    def place(self) -> Path:
        return self.folder or self.home / "fleet" / "hub"


class HubPublisher:
    """Signs with the hub's key into a repository on this machine."""

    def __init__(self, folder: Path, key: SigningKey, now: Callable[[], float]) -> None:
        from brise.fleet.repository import Repository  # noqa: PLC0415, tuf is an extra
        self._repository, self._key = Repository(folder, now), key

    def publish(self, rollouts: RolloutList | None) -> None:
        """Signs this list and a timestamp; None: only a newer timestamp."""
        self._repository.sign_hub(self._key, rollouts=rollouts)

    def root(self) -> bytes:
        """The newest root."""
        return self._repository.root_bytes

    def bundles(self) -> list[SignedBundle]:
        """The bundles that the release key has signed, in the order of names and versions."""
        found = list[SignedBundle]()
        for name, target in self._repository.targets.targets.items():
            if name.startswith("bundles/"):
                _, bundle, version = name.removesuffix(".json").split("/")
                found.append(SignedBundle(bundle, int(version), target.hashes["sha256"]))
        return sorted(found, key=lambda one: (one.name, one.version))


@dataclass(frozen=True)
class OpenedHub:
    """A hub whose files are open; closing `service.hub` closes them."""

    service: HubService
    publisher: HubPublisher


def open_hub(options: HubOptions, log: TextIO, now: Callable[[], float] = time.time) -> OpenedHub:
    """Opens, and makes, what the hub needs. FleetError if there is no repository, or another key is its hub's."""
    from brise.fleet.signing import read_key  # noqa: PLC0415, tuf is an extra
    if options.store is not None and "://" in options.store:
        raise UnsupportedError(f"the store {options.store.partition('://')[0]}://... is not for a hub: its ledger is a "
                               "file")
    folder = options.place
    repository = options.repository or options.home / "fleet" / "repository"
    key = read_key(options.key or options.home / "fleet" / "keys" / "hub.key")
    publisher = HubPublisher(repository, key, now)
    private_folder(folder)
    _make(folder / OPERATOR_KEY, lambda: f"brise-fleet-{secrets.token_urlsafe(32)}\n")
    _make(folder / SEAL_KEY, lambda: new_seal_key().hex() + "\n")
    with ExitStack() as opened:
        database = opened.enter_context(closing(SqliteDatabase(folder / DATABASE, SCHEMA)))
        ledger = opened.enter_context(closing(open_store(options.store, options.home, clock=now)))
        received = ReceivedRecords(database, now, options.record_bytes, options.device_bytes, options.keep_s)
        hub = FleetHub(HubParts(database, ledger, publisher, Enrolment(database, now), received,
                                _seal_key(folder / SEAL_KEY), now))
        service = HubService(hub, repository, publisher.root, read_keys(folder / OPERATOR_KEY), log,
                             FleetAuthority.of(folder / AUTHORITY, hub.fleet, time.time()))  # TLS has no other clock
        hub.tick()  # a hub that cannot sign says so before it listens
        opened.pop_all()
    return OpenedHub(service, publisher)


def run_hub(options: HubOptions, log: TextIO | None = None) -> int:
    """Serves until SIGINT or SIGTERM. Returns the exit status."""
    _check_bind(options)
    opened = open_hub(options, log or sys.stderr)
    with closing(opened.service.hub), bind(ServeSettings(options.host, options.port)) as listener:
        listener.listen(BACKLOG)
        asyncio.run(serve(opened, options, listener))
    return 0


async def serve(opened: OpenedHub, options: HubOptions, listener: socket.socket) -> None:
    """Listens, and does what is due, until it is signalled."""
    service = opened.service
    sparse_log.install()
    is_secure = options.tls_certificate is not None
    server = QuietServer(uvicorn.Config(
        create_app(service, hub_operations.routes(service, opened.publisher.bundles)),
        http="h11" if is_secure else GuardedProtocol, ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_S, backlog=BACKLOG,
        timeout_graceful_shutdown=FLUSH_S, ssl_certfile=options.tls_certificate, ssl_keyfile=options.tls_key))
    work = [asyncio.create_task(service.keep_reports()), asyncio.create_task(service.tick())]
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: setattr(server, "should_exit", True))
    scheme, port = "https" if is_secure else "http", listener.getsockname()[1]
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(f"brise hub of {len(service.hub.enrolment.names())} devices at {scheme}://{host}:{port}\n"
          f"its page is at {scheme}://{host}:{port}/fleet; the password is in {options.place / OPERATOR_KEY}",
          file=service.log, flush=True)
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)


def _check_bind(options: HubOptions) -> None:
    if (options.tls_certificate is None) != (options.tls_key is None):
        raise UnsupportedError("--tls-certificate and --tls-key belong together: one of them is missing")
    if options.tls_certificate is None and not is_loopback(options.host) and not options.allow_insecure_bind:
        raise UnsupportedError(f"refusing to listen on {options.host!r} without TLS: the operator's key and the tokens "
                               "of devices would cross the network in the clear",
                               hint="give --tls-certificate and --tls-key, or listen on 127.0.0.1 behind a proxy, or "
                                    "force it with --allow-insecure-bind")


def _make(path: Path, text: Callable[[], str]) -> None:
    if not path.exists():
        data = text().encode()
        with staged_file(path, len(data), mode=0o600) as file:
            file.write(data)


def _seal_key(path: Path) -> bytes:
    if path.stat().st_mode & 0o077:
        raise FleetError(f"the key {str(path)!r} is open to others than its owner", hint=f"chmod 600 {path}")
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except ValueError:
        key = b""
    if len(key) != 32:
        raise FleetError(f"{str(path)!r} holds no key of 64 hexadecimal digits",
                         hint="put the file back from your backup; records of devices cannot be read without it")
    return key
