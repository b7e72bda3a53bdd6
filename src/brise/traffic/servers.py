"""The servers that share a store: who is there, which of them leads, what all of them load, and what time it is.

Each server writes a row every `BEAT_S`; one that is older than `GONE_S` is of a server that died. All times are the
database's, so the clocks of the machines do not matter.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from brise.traffic.schema import Database

BEAT_S = 2.0
GONE_S = 10.0  # five beats
FORGOTTEN_S = 3600.0  # rows of servers that are gone are shown so long
Status = Literal["ready", "degraded", "failed", "draining"]


@dataclass(frozen=True)
class ServerReport:
    """What a server says of itself with each beat."""

    version: str
    address: str
    status: Status = "ready"
    reasons: Sequence[str] = ()
    fingerprints: Mapping[str, str] = field(default_factory=dict)  # of its models and adapters, by name
    prices: str = ""  # a digest of what tokens cost there
    running: int = 0  # requests
    waiting: int = 0  # answers that wait for their turn in an engine
    tokens_per_s: float = 0.0
    leads: bool = False


@dataclass(frozen=True)
class SeenServer:
    """A server that shares the store, as its last beat described it."""

    id: str
    name: str
    started_s: float
    seen_s: float
    age_s: float  # of the last beat
    report: ServerReport

    @property
    def is_gone(self) -> bool:
        """Whether its beats have stopped. One that ends in order leaves no row."""
        return self.age_s > GONE_S

    @property
    def counts(self) -> bool:
        """Whether others compare themselves with it."""
        return not self.is_gone and self.report.status != "draining"


@dataclass(frozen=True)
class SharedAdapter:
    """An adapter that all servers of a store load, or that they have to unload."""

    name: str
    model: str
    path: str
    digest: str
    any_base: bool = False
    is_removed: bool = False


class Membership:
    """What a server knows of the store that it shares. One that shares it with nobody leads, by its own clock."""

    def __init__(self) -> None:
        self._leads, self._ahead_s, self.num_servers = True, 0.0, 1
        self.id, self.living = "", frozenset[str]()  # this server's, and those of all that are there

    def leads(self) -> bool:
        """Whether it does what one of all is to do: advancing switches, deleting what is old, asking again."""
        return self._leads

    def now_s(self) -> float:
        """The store's time, by which certificates and keys expire."""
        return time.time() + self._ahead_s

    def update(self, *, leads: bool, now_s: float | None = None) -> None:
        """After an answer of the store, which says what time it is there."""
        self._leads = leads
        if now_s is not None:
            self._ahead_s = now_s - time.time()


class Servers:
    """The rows in a database. What a call writes is durable when it returns."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def now_s(self) -> float:
        """The database's time."""
        return self._database.now_s()

    def lead(self) -> bool:
        """Whether this server does what one of all is to do."""
        return self._database.lead()

    def beat(self, id: str, name: str, report: ServerReport) -> None:
        """Says that the server is there."""
        now_s = self.now_s()
        with self._database.transaction() as transaction:
            transaction.run("INSERT INTO servers (id, name, started_s, seen_s, state) VALUES (?, ?, ?, ?, ?) "
                            "ON CONFLICT (id) DO UPDATE SET seen_s = excluded.seen_s, state = excluded.state",
                            (id, name, now_s, now_s, json.dumps(asdict(report), sort_keys=True)))

    def all(self) -> list[SeenServer]:
        """Every server that has a row, by name."""
        now_s = self.now_s()
        return [SeenServer(id, name, started_s, seen_s, max(now_s - seen_s, 0.0), _report(json.loads(state)))
                for id, name, started_s, seen_s, state in self._database.rows(
                    "SELECT id, name, started_s, seen_s, state FROM servers ORDER BY name, id")]

    def leave(self, id: str) -> None:
        """Takes the row away: the server ends in order."""
        with self._database.transaction() as transaction:
            transaction.run("DELETE FROM servers WHERE id = ?", (id,))

    def forget_gone(self) -> None:
        """Takes the rows away of those that died long ago."""
        before_s = self.now_s() - FORGOTTEN_S
        if self._database.rows("SELECT 1 FROM servers WHERE seen_s < ? LIMIT 1", (before_s,)):
            with self._database.transaction() as transaction:
                transaction.run("DELETE FROM servers WHERE seen_s < ?", (before_s,))

    def adapters(self) -> list[SharedAdapter]:
        """What all servers load, and what they have to unload, in the order in which that was said."""
        return [SharedAdapter(name, model, path, digest, bool(any_base), bool(removed))
                for name, model, path, digest, any_base, removed in self._database.rows(
                    "SELECT name, model, path, digest, any_base, removed FROM shared_adapters ORDER BY at_s, name")]

    def share_adapter(self, adapter: SharedAdapter) -> None:
        """Has all servers load an adapter, or unload it; the last word on a name counts."""
        now_s = self.now_s()
        with self._database.transaction() as transaction:
            transaction.run(
                "INSERT INTO shared_adapters (name, model, path, digest, any_base, removed, at_s) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET model = excluded.model, "
                "path = excluded.path, digest = excluded.digest, any_base = excluded.any_base, "
                "removed = excluded.removed, at_s = excluded.at_s",
                (adapter.name, adapter.model, adapter.path, adapter.digest, int(adapter.any_base),
                 int(adapter.is_removed), now_s))

    def ledger_end(self) -> tuple[int, str] | None:
        """Number and digest of the ledger's last line."""
        rows = self._database.rows("SELECT number, digest FROM ledger ORDER BY number DESC LIMIT 1")
        return (int(rows[0][0]), str(rows[0][1])) if rows else None

    def close(self) -> None:
        self._database.close()


def odd_models(own_id: str, own: Mapping[str, str], servers: Iterable[SeenServer], started_s: float
               ) -> dict[str, Mapping[str, int]]:
    """The models whose fingerprint here is not the one that most servers have: how many have each, by model.

    Where as many have one as another, the one that was there first counts.
    """
    odd = dict[str, Mapping[str, int]]()
    peers = [server for server in servers if server.counts and server.id != own_id]
    for model, fingerprint in own.items():
        number, first_s = defaultdict[str, int](int), dict[str, float]()
        for since_s, other in [(started_s, fingerprint), *(
                (peer.started_s, peer.report.fingerprints[model]) for peer in peers
                if model in peer.report.fingerprints)]:
            number[other] += 1
            first_s[other] = min(since_s, first_s.get(other, since_s))
        usual = min(number, key=lambda other: (-number[other], first_s[other], other))
        if usual != fingerprint:
            odd[model] = dict(number)
    return odd


def _report(state: Mapping[str, Any]) -> ServerReport:
    """A row that another version may have written: what is not known here is left out."""
    known = {name: value for name, value in state.items() if name in ServerReport.__dataclass_fields__}
    return ServerReport(**{"version": "", "address": "", **known})
