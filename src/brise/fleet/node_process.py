"""`brise node` as a process: the device's folder, its server behind the port, the loop, and what both need."""

from __future__ import annotations

import fcntl
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx

from brise.errors import BriseError, FleetError
from brise.fleet import kill_points, served, trial
from brise.fleet.bundle import Bundle
from brise.fleet.device import signing_key
from brise.fleet.device_reports import DeviceReports
from brise.fleet.discovery import PeerDiscovery
from brise.fleet.gate_server import GateServer
from brise.fleet.install import MOST_STARTS, Installation
from brise.fleet.install_state import TRIAL, InstalledBundle, UpdateAttempt
from brise.fleet.local_gate import GateResult, check_needs, isa_of_this_machine
from brise.fleet.node import Node, PollSchedule
from brise.fleet.node_options import NodeOptions, enrol, hub_client, open_repository, source_of
from brise.fleet.outbox import Outbox
from brise.fleet.peer_certificates import CertificateKeeper, PeerTls
from brise.fleet.peer_servers import PeerServers
from brise.fleet.peers import Answering, PeerApp, Peers, RelayApp
from brise.fleet.served import ServingOptions
from brise.fleet.sources import HttpSource, PeerSource, Source
from brise.fleet.supervisor import Child, ServerOrder, Supervisor, bound_port, has_room
from brise.fleet.trial import RequestCount, TrialSignals
from brise.fleet.update import UpdateParts, Updates
from brise.serve.access import read_keys
from brise.traffic.sql_store import SqlStore
from brise.traffic.stores import open_store

STEP_S = 1.0
LOOK_S = 10.0  # between two readings of the whole ledger
SAFE_S = 30.0  # for the command that says whether now is a safe moment


def run_node(options: NodeOptions) -> int:
    """Runs until SIGINT or SIGTERM."""
    kill_points.arm(options.folder)
    with locked(options.folder), closing(DeviceProcess(options)) as process:
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        process.run(stopped)
    return 0


class DeviceProcess:
    """The parts of one device, put together."""

    def __init__(self, options: NodeOptions) -> None:
        self._options, self._folder, self._note = options, options.folder, options.note
        self.device = enrol(options)
        self._key = signing_key(self._folder)
        keeps = ServingOptions(options.settings, self._folder / "traffic.sqlite",
                               options.upstream or ("--upstream", "none"), (
                                   *(() if options.api_keys is None else ("--api-keys", str(options.api_keys))),
                                   *options.serve))
        self._serving = keeps
        self._source = source_of(options, self.device)
        self._repository = open_repository(options, self._source)
        self._now = self._repository.now
        self.installation = Installation(self._folder / "bundles", self._now)
        self._store: SqlStore = open_store(keeps.store, options.settings.home)
        seal_key = None if self.device.seal_key is None else bytes.fromhex(self.device.seal_key)
        self.outbox = Outbox(self._folder / "outbox.sqlite", options.outbox_bytes, self._now, fleet=self.device.fleet,
                             device=self.device.name, hub_key=seal_key)
        self._listener = bound_port(options.host, options.port)
        self._gates_alone, self._crashes = False, dict[str, int]()
        self._ordered: ServerOrder | None = None  # the last one: it is asked for ten times a second
        self._proofs_s = self._signals_s = -LOOK_S  # when the ledger was read for them last
        self._of_store = TrialSignals()
        self._count = RequestCount()
        self._counted = ""  # the bundle whose requests are counted
        self._client = httpx.Client(trust_env=False, timeout=SAFE_S)
        self.supervisor = Supervisor(
            self._choose, self._start, count_start=self.installation.count_start, is_ready=self._ready,
            has_room=has_room, on_crash=self._crashed, note=options.note, on_change=self._answers_changed)
        self.peer_address: tuple[str, int] | None = None  # where other devices may ask this one
        self._discovery: PeerDiscovery | None = None
        has_peers = options.peers or options.peer_listen or options.finds_peers
        self._peer_tls = PeerTls.of(self.device, self._folder) if has_peers else None
        self._files_of_peers = [] if self._peer_tls is None else [
            PeerSource(url, tls=self._peer_tls.client()) for url in options.peers]
        self.peers = self._peer_servers()
        self._hub = None if self.device.hub is None else hub_client(options, self.device.hub)
        self.node = self._loop()

    def _peer_servers(self) -> PeerServers | None:
        """What this device has to do with others, if it has."""
        options, tls = self._options, self._peer_tls
        if tls is None:
            return None
        keys = None if options.api_keys is None else read_keys(options.api_keys)
        peers = Peers(options.peers, tls)
        servers = PeerServers(peers, self._wanted, RelayApp(peers, self._wanted, keys), self._listener)
        servers.start()
        if options.peer_listen is not None:
            app = PeerApp(self.device.name, self._answering, self.installation.find_blob)
            self.peer_address = servers.listen(app, *options.peer_listen, tls)
            options.note(f"other devices may ask at https://{self.peer_address[0]}:{self.peer_address[1]}")
        if options.finds_peers:
            self._discovery = PeerDiscovery(self.device.fleet, self.device.name, servers.add_peer)
            self._discovery.start(self.peer_address)
        return servers

    def _wanted(self) -> Answering | None:
        """What is to answer at the device's port."""
        return self._as_answering(self.installation.state.active)

    def _answering(self) -> Answering | None:
        """What answers there now."""
        return self._as_answering(self.supervisor.answering)

    def _as_answering(self, installed: InstalledBundle | None) -> Answering | None:
        if installed is None:
            return None
        try:
            bundle = self.installation.read(installed)
        except FleetError:
            return None
        return Answering(bundle.name, bundle.fingerprint, self._own_url, self._own_key)

    def _answers_changed(self, answers: bool) -> None:
        if self.peers is not None:
            self.peers.set_answering(answers)

    def _peer_sources(self) -> Sequence[Source]:
        return self._files_of_peers

    @property
    def address(self) -> tuple[str, int]:
        """Where the device answers."""
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    def run(self, stopped: threading.Event) -> None:
        """The supervisor in a thread of its own, and the loop, until it is told to stop."""
        thread = threading.Thread(target=self.supervisor.run, name="brise-supervisor", daemon=True)
        thread.start()
        waits = "" if self.installation.state.active else "; until it has its first bundle, requests wait"
        self._note(f"{self.device.name} answers at http://{self.address[0]}:{self.address[1]}/v1{waits}")
        while not stopped.is_set():
            self.node.step()
            stopped.wait(STEP_S)
        self.supervisor.stop()
        thread.join()

    def close(self) -> None:
        """Closes what is open; the servers are stopped by then."""
        if self._discovery is not None:
            self._discovery.close()
        if self.peers is not None:
            self.peers.stop()
        self._listener.close()
        self._client.close()
        for source in (self._source, *self._files_of_peers):
            if isinstance(source, HttpSource):
                source.close()
        if self._hub is not None:
            self._hub.close()
        self.outbox.close()
        self._store.close()

    def _loop(self) -> Node:
        reports = DeviceReports(self.outbox, self._store, self.installation, self._folder, self._now,
                                fleet=self.device.fleet, moves_waiting=not self._serving.has_large_model)
        updates = Updates(UpdateParts(self.device.name, self.installation, self._gate, self._signals, self._is_safe,
                                      self._now, self._note, self._peer_sources, self._options.safe_wait_s,
                                      self._options.install))
        hub = self._hub
        return Node(self._repository, updates, reports, self.installation,
                    PollSchedule(self._options.poll_s, self._options.jitter), time.monotonic, note=self._note,
                    send=None if hub is None else lambda: hub.send(self.outbox, self.device, self._key),
                    each_step=(self._keep_proofs, *self._keeps_certificate()))

    def _keeps_certificate(self) -> Sequence[Callable[[], None]]:
        """What keeps the device's certificate for others, where it has one and a hub."""
        if self._peer_tls is None or self._hub is None or self.peers is None:
            return ()
        return (CertificateKeeper(self._peer_tls, self._hub, self._folder, self.peers.end_connections).step,)

    # What runs behind the port.

    def _choose(self) -> ServerOrder | None:
        """What is to answer. A bundle that did not start three times is left for the one before it."""
        if self._gates_alone:
            return None
        installed = self.installation.state.active
        if installed is not None and self.installation.num_starts(installed) >= MOST_STARTS:
            installed = self._leave(installed, f"it did not start {MOST_STARTS} times")
        if installed is None:
            return None
        try:
            if self._ordered is None or self._ordered.installed != installed:
                self._ordered = self._order(installed)
        except FleetError as error:
            self._leave(installed, str(error.args[0]))
            return None
        return self._ordered

    def _leave(self, installed: InstalledBundle, reason: str) -> InstalledBundle | None:
        """The bundle that answers instead of one that cannot; the same, if there is no other."""
        state = self.installation.state
        if state.attempt is not None and state.attempt.bundle == installed:
            self.installation.give_up(reason)
        elif not self.installation.go_back(reason):
            return installed
        self._note(f"{installed.name} {installed.version} goes back: {reason}")
        return self.installation.state.active

    def _order(self, installed: InstalledBundle) -> ServerOrder:
        return served.order_of(installed, self.installation.read(installed), self.installation.place(installed),
                               self._serving)

    def _start(self, order: ServerOrder) -> Child:
        self.installation.check(order.installed)
        return Child(order.words, self._listener, self._folder / "serve.log", self._options.settings.home,
                     self._options.program)

    def _ready(self, installed: InstalledBundle) -> None:
        self.installation.is_ready(installed)
        state = self.installation.state
        in_trial = state.attempt is not None and state.attempt.bundle == installed
        try:
            served.settle_switch(self._store, self.installation.read(installed), self.installation.place(installed),
                                 self._now(), in_trial=in_trial)
        except BriseError as error:
            self._note(f"the switch of {installed.name} {installed.version} does not act: {error.args[0]}")
        self._note(f"{installed.name} {installed.version} answers" + (" on trial" if in_trial else ""))

    def _crashed(self, installed: InstalledBundle) -> None:
        self._crashes[installed.bundle] = self._crashes.get(installed.bundle, 0) + 1
        self._note(f"the server of {installed.name} {installed.version} ended by itself; it is started again")

    # The gate and the trial.

    def _gate(self, installed: InstalledBundle, bundle: Bundle) -> GateResult:
        """Beside the server that answers if there is memory for both; else that one stops meanwhile."""
        check_needs(bundle, self._folder, isa_of_this_machine())
        order = self._order(installed)
        if not has_room(order.nbytes):
            self._gates_alone = True
            self.supervisor.make_room()
        try:
            return GateServer(self._folder / "gate.log", self._options.settings.home, self._headers,
                              self._options.program).run(order, bundle, self.installation.place(installed))
        finally:
            self._gates_alone = False

    def _signals(self, attempt: UpdateAttempt, bundle: Bundle) -> TrialSignals:
        if self._counted != attempt.bundle.bundle or time.monotonic() - self._signals_s >= LOOK_S:
            self._of_store, self._signals_s = trial.of_store(self._store, bundle, attempt.since_s), time.monotonic()
        if self._counted != attempt.bundle.bundle:
            self._count, self._counted = RequestCount(attempt.requests), attempt.bundle.bundle
        if self.supervisor.answering == attempt.bundle:
            with suppress(httpx.HTTPError):
                self._count.saw(self._client.get(f"{self._own_url}/metrics", headers=self._headers, timeout=5.0).text)
        return replace(self._of_store, requests=self._count.requests, failed=self._count.failed,
                       crashes=self._crashes.get(attempt.bundle.bundle, 0))

    def _is_safe(self) -> bool:
        """What the device's own program says of a swap now."""
        safe = self._options.safe
        if safe is None:
            return True
        if safe.startswith(("http://", "https://")):
            with suppress(httpx.HTTPError):
                return self._client.get(safe, timeout=SAFE_S).status_code == 200
            return False
        try:
            done = subprocess.run(shlex.split(safe), stdin=subprocess.DEVNULL, timeout=SAFE_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            self._note(f"the command for a safe moment failed: {error}")
            return False
        return done.returncode == 0

    def _keep_proofs(self) -> None:
        """A certificate that expired away from a large model: the stricter rule, as long as that is so."""
        state = self.installation.state
        installed = state.active
        if time.monotonic() - self._proofs_s < LOOK_S:
            return
        self._proofs_s = time.monotonic()
        if installed is None or state.attempt is not None and state.attempt.state == TRIAL:
            return
        bundle = self.installation.read(installed)
        if served.is_away(self._store, self._serving.has_large_model):
            if served.keep_on_strictly(self._store, bundle):
                self._note(f"the certificate of {bundle.name} {bundle.version} has expired: only the surest answers "
                           "are kept")
        elif served.end_strict(self._store, bundle):
            self._note("a large model answers again, in the place of an expired certificate")

    @property
    def _own_url(self) -> str:
        host, port = self.address
        return f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"

    @property
    def _own_key(self) -> str | None:
        """A key that the device's own server takes."""
        if self._options.api_keys is None:
            return None
        lines = self._options.api_keys.read_text(encoding="utf-8").splitlines()
        return next((line.strip() for line in lines if line.strip() and not line.strip().startswith("#")), None)

    @property
    def _headers(self) -> Mapping[str, str]:
        return {} if self._own_key is None else {"authorization": f"Bearer {self._own_key}"}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One node for a folder."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FleetError(f"another brise node runs in {str(folder)!r}") from None
        yield
