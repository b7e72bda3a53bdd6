"""The hub: enrols devices, takes their reports, leads roll-outs by lines of the ledger, and signs what devices read.

It chooses who gets which signed bundle and when. It can make no device run what the release key has not signed.
Its methods may be called from any thread; one at a time changes something.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from brise.errors import FleetError, StoreError
from brise.files.digests import DIGEST, hash_draw
from brise.fleet import advance, rollout
from brise.fleet.advance import EnrolledDevices
from brise.fleet.enrolment import Enrolment
from brise.fleet.offers import RolloutList
from brise.fleet.received import FAILED_STATES, TAKEN_BACK, DeviceMove, ReceivedBatch, ReceivedRecords
from brise.fleet.rollout import RolloutProgress, RolloutTerms
from brise.fleet.sealed_records import subject_digest
from brise.stats import failure_rate
from brise.switch.state import Action
from brise.traffic.ledger import check_chain
from brise.traffic.schema import Database
from brise.traffic.sql_store import SqlStore

SIGN_AGAIN_S = 86400.0  # of the seven days for which a timestamp is good
EXPIRE_EVERY_S = 3600.0
MOST_FORGOTTEN = 10_000  # of one file that each device reads (strict_json.MOST_ITEMS)
MOST_ROLLOUTS = 10_000
MOST_POINTS, MOST_SHOWN, MOST_SHOWN_ROLLOUTS = 120, 1e12, 30  # of a path that is shown


class RolloutPublisher(Protocol):
    """Signs the list of roll-outs, and a fresh timestamp (repository.Repository with the hub's key)."""

    def publish(self, rollouts: RolloutList | None) -> None:
        """Signs this list, or the last one again."""


@dataclass(frozen=True)
class HubParts:
    """What a hub is made of. `ledger` holds roll-outs beside the switches of the same store."""

    database: Database
    ledger: SqlStore
    publisher: RolloutPublisher
    enrolment: Enrolment
    received: ReceivedRecords
    seal_key: bytes = field(repr=False)
    now: Callable[[], float] = time.time


class FleetHub:
    """One fleet. `tick` does what is due; it is called every second."""

    def __init__(self, parts: HubParts) -> None:
        self._parts, self._lock = parts, threading.RLock()
        self.fleet = _fleet_id(parts.database)
        lines = list(parts.ledger.ledger())
        broken = check_chain(lines)
        if broken is not None:
            raise StoreError(f"the ledger is broken at line {broken.number}: {broken.reason}",
                             hint="put a copy back; brise audit --store PLACE examines it")
        self.state = rollout.fold(lines)
        self._orders: dict[str, EnrolledDevices] = {}
        self._published: RolloutList | None = None
        self._signed_s = self._expired_s = -1e18
        self.waits: Mapping[str, str] = {}

    @property
    def enrolment(self) -> Enrolment:
        return self._parts.enrolment

    @property
    def received(self) -> ReceivedRecords:
        return self._parts.received

    @property
    def seal_key(self) -> bytes:
        return self._parts.seal_key

    def now_s(self) -> float:
        """The hub's time."""
        return self._parts.now()

    def enrolled_changed(self) -> None:
        """A device came or was revoked: the order of draws is computed again."""
        with self._lock:
            self._orders.clear()

    def keep(self, batches: Sequence[ReceivedBatch]) -> list[str]:
        """Keeps reports, durably, and returns the id up to which each device's records are here."""
        return self._parts.received.keep(batches)

    def tick(self) -> None:
        """Writes down what devices reported, lets roll-outs take their next step, and signs what has changed."""
        with self._lock:
            while moves := self._parts.received.moves():
                self._write(moves)
                self._parts.received.settle(moves[-1].number)
            now_s, waits = self._parts.now(), dict[str, str]()
            for name in list(self.state.rollouts):
                if self.state.rollouts[name].state != "back":
                    self._append(advance.silent(self.state.rollouts[name], now_s))
                if self.state.rollouts[name].is_open:
                    step = advance.next_step(self.state.rollouts[name], self.order(name), now_s)
                    self._append(step.actions)
                    waits[name] = step.waits
            self.waits = waits
            self._publish(now_s)
            if now_s >= self._expired_s + EXPIRE_EVERY_S:
                self._expired_s = now_s
                self._parts.received.expire()

    def begin(self, terms: RolloutTerms, user: str, reason: str) -> None:
        """Begins a roll-out. FleetError if its name was used, or another one of the same bundle's name still runs."""
        with self._lock:
            if terms.rollout in self.state.rollouts or len(self.state.rollouts) >= MOST_ROLLOUTS:
                raise FleetError(f"there was a roll-out {terms.rollout!r} already", hint="give it another name")
            running = [one.terms for one in self.state.rollouts.values() if one.is_open]
            if other := next((one for one in running if _name_of(one) == _name_of(terms)), None):
                raise FleetError(f"the roll-out {other.rollout!r} of {other.label!r} has not ended",
                                 hint=f"brise fleet back {other.rollout}, or wait until it has")
            self._append([Action("rollout-begin", {"rollout": terms.rollout, "terms": terms.body(), "user": user,
                                                   "reason": reason})])
        self.tick()

    def change(self, name: str, action: str, user: str, reason: str) -> None:
        """`pause`, `resume` or `back`."""
        with self._lock:
            found = self.rollout(name)
            allowed = {"pause": ("running",), "resume": ("paused",),
                       "back": ("running", "paused", "halted", "complete")}
            if action not in allowed:
                raise FleetError(f"a roll-out has no action {action[:40]!r}; there are {', '.join(allowed)}")
            if found.state not in allowed[action]:
                raise FleetError(f"the roll-out {name!r} is {found.state}: it cannot {action}")
            self._append([Action(f"rollout-{action}", {"rollout": name, "user": user, "reason": reason})])
        self.tick()

    def forget(self, subject: str | None, digest: str | None, user: str) -> str:
        """Destroys what the hub has of a subject, and tells all devices to do so; returns its digest."""
        found = digest if subject is None else subject_digest(self.fleet, subject)
        if found is None or DIGEST.fullmatch(found) is None:
            raise FleetError("name the subject, or give its digest of 64 hexadecimal digits")
        with self._lock:
            if len(self.state.forgotten.digests) >= MOST_FORGOTTEN:
                raise FleetError(f"{MOST_FORGOTTEN} subjects were forgotten, no more are allowed in one fleet",
                                 hint="begin a new fleet: its devices enrol again")
            if found not in self.state.forgotten.digests:
                self._append([Action("fleet-forget", {"digests": [found], "user": user})])
            self._parts.received.forget(found)
        self.tick()
        return found

    def rollout(self, name: str) -> RolloutProgress:
        """The roll-out of this name."""
        found = self.state.rollouts.get(name)
        if found is None:
            raise FleetError(f"there is no roll-out {name[:64]!r}; there are "
                             f"{', '.join(list(self.state.rollouts)[-8:]) or 'none'}")
        return found

    def order(self, name: str) -> EnrolledDevices:
        """The devices in the order of their draws for a roll-out."""
        if name not in self._orders:
            self._orders = {key: one for key, one in self._orders.items() if self.state.rollouts[key].is_open}
            salt = self.state.rollouts[name].terms.salt
            self._orders[name] = advance.in_order(salt, self._parts.enrolment.names())
        return self._orders[name]

    def close(self) -> None:
        """Closes the database and the ledger."""
        self._parts.database.close()
        self._parts.ledger.close()

    def _append(self, actions: Iterable[Action]) -> None:
        for action in actions:
            entry = self._parts.ledger.append(action.kind, action.body)
            if entry.number != self.state.number + 1:  # a gateway that shares the store has written lines, too
                for missed in self._parts.ledger.ledger(self.state.number):
                    if missed.number < entry.number:
                        self.state = rollout.next_state(self.state, missed)
            self.state = rollout.next_state(self.state, entry)

    def _publish(self, now_s: float) -> None:
        offered = self.state.offered()
        if offered != self._published:
            self._parts.publisher.publish(offered)
        elif now_s >= self._signed_s + SIGN_AGAIN_S:
            self._parts.publisher.publish(None)
        else:
            return
        self._published, self._signed_s = offered, now_s

    def _write(self, moves: Sequence[DeviceMove]) -> None:
        """A line for each roll-out with what is new: who began, and who ended how."""
        for name in dict.fromkeys(move.rollout for move in moves):
            found = self.state.rollouts.get(name)
            if found is None:  # of an older hub, or invented
                continue
            began, ended = dict[str, None](), dict[str, tuple[str, str, str]]()
            for move in moves:
                if move.rollout == name and _counts(found, move):
                    known = found.devices.get(move.device)
                    if known is None:
                        began[move.device] = None
                    end = _end_of(move)
                    if end and (known is None or known.end is None or (known.end, end) == ("committed", "failed")):
                        if end == "failed" or move.device not in ended:
                            ended[move.device] = (move.device, end, move.reason if end == "failed" else "")
            if began or ended:
                self._append([advance.devices_line(name, began, ended.values())])


def _counts(found: RolloutProgress, move: DeviceMove) -> bool:
    """Whether the step is of this bundle and of a device that was let in; no device has a say otherwise."""
    if move.bundle != found.terms.bundle:
        return False
    return move.device in found.devices or hash_draw(f"{found.terms.salt}:{move.device}") < found.share


def _end_of(move: DeviceMove) -> str:
    if move.state == "committed":
        return "committed"
    return "failed" if move.state in FAILED_STATES and TAKEN_BACK.match(move.reason) is None else ""


def _name_of(terms: RolloutTerms) -> str:
    """The bundle's name in its label, which is NAME VERSION."""
    return terms.label.partition(" ")[0]


def _fleet_id(database: Database) -> str:
    """The name of the fleet, drawn once: who does not know it cannot try subjects against their digests."""
    with database.transaction() as transaction:
        transaction.run("INSERT INTO meta (name, value) VALUES ('fleet', ?) ON CONFLICT DO NOTHING",
                        (secrets.token_hex(16),))
        return str(transaction.rows("SELECT value FROM meta WHERE name = 'fleet'")[0][0])


def status(hub: FleetHub, now_s: float) -> dict[str, Any]:
    """What `brise fleet status --json` prints."""
    state = hub.state
    count, size = hub.received.numbers()
    names = hub.enrolment.names()
    return {"fleet": hub.fleet, "at_s": now_s, "devices": len(names), "records": count, "record_bytes": size,
            "tally": asdict(hub.enrolment.tally()), "forgotten": len(state.forgotten.digests),
            "ledger_line": state.number,
            "rollouts": [rollout_json(hub, one) for one in list(state.rollouts.values())[-MOST_SHOWN_ROLLOUTS:]]}


def rollout_json(hub: FleetHub, found: RolloutProgress) -> dict[str, Any]:
    """One roll-out as JSON."""
    terms, order = found.terms, hub.order(found.terms.rollout)
    evidence, unknown = found.evidence, advance.unknown_of(found, order)
    reasons: dict[str, int] = {}
    for one in found.devices.values():
        if one.end == "failed":
            reasons[one.reason or "no reason"] = reasons.get(one.reason or "no reason", 0) + 1
    worst = sorted(reasons.items(), key=lambda item: -item[1])[:10]
    return {"rollout": terms.rollout, "label": terms.label, "bundle": terms.bundle, "state": found.state,
            "reason": found.reason, "waits": hub.waits.get(terms.rollout, ""), "user": found.user,
            "since_s": found.since_s, "ended_s": found.ended_s, "stage": found.stage + 1, "stages": list(terms.stages),
            "share": found.share, "in": len(order.within(found.share)), "enrolled": len(order),
            "began": len(found.devices), "committed": found.count("committed"), "failed": found.count("failed"),
            "pending": found.count(None), "unknown": unknown if found.unknown is None else found.unknown,
            "has_statistic": advance.has_statistic(found, len(order)),
            "test": {"f0": terms.test.tolerated, "f1": terms.test.refuted, "alpha": terms.test.alpha,
                     "harm": evidence.harm, "safety": evidence.safety, "level": terms.test.level,
                     "verdict": evidence.verdict},
            "path": _path(found), "steps": [asdict(one) for one in found.steps],
            "reasons": [{"reason": reason, "devices": number} for reason, number in worst]}


def _path(found: RolloutProgress) -> dict[str, Any]:
    """The evidence over the devices in the order in which they began, at up to MOST_POINTS of them."""
    if not found.devices:
        return {"devices": [], "harm": [], "safety": []}
    outcomes, test, number = found.outcomes, found.terms.test, len(found.devices)
    at = sorted({round(index * (number - 1) / (MOST_POINTS - 1)) for index in range(MOST_POINTS)})
    harm, safety = failure_rate.harm(outcomes, test), failure_rate.safety(outcomes, test)
    return {"devices": [index + 1 for index in at], "harm": [min(float(harm[index]), MOST_SHOWN) for index in at],
            "safety": [min(float(safety[index]), MOST_SHOWN) for index in at]}
