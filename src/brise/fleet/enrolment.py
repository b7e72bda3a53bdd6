"""Who belongs to the fleet: tokens with which devices enrol, and the devices with their public keys.

    bf-ID-SECRET    a token as the operator hands it out; it is shown once, when it is made

The database has the SHA-256 of the whole text: a secret of 256 random bits needs no slower hash. A name belongs to the
key that took it first: nobody else can take it over, and a device that is revoked keeps its row, so that its name stays
taken. How many devices there may be, and what each says of itself, is bounded.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from brise.errors import FleetError
from brise.fleet.sealed_records import check_device
from brise.traffic.schema import Database, Row
from brise.traffic.seal import why_no_key

PREFIX = "bf-"
MOST_USES, MOST_TOKENS, MOST_DEVICES = 1_000_000, 1000, 200_000
MOST_FACTS, MOST_FACT = 16, 200
MOST_LABEL = 64
TABLES: Sequence[str] = (
    """CREATE TABLE IF NOT EXISTS tokens (
        id TEXT PRIMARY KEY, digest TEXT NOT NULL, label TEXT NOT NULL, created_s DOUBLE PRECISION NOT NULL,
        expires_s DOUBLE PRECISION NOT NULL, uses_left BIGINT NOT NULL, used BIGINT NOT NULL,
        revoked BIGINT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS devices (
        name TEXT PRIMARY KEY, public_key TEXT NOT NULL, token TEXT NOT NULL, enrolled_s DOUBLE PRECISION NOT NULL,
        facts TEXT NOT NULL, revoked BIGINT NOT NULL, seen_s DOUBLE PRECISION, mark TEXT NOT NULL, rollout TEXT,
        bundle TEXT, state TEXT, reason TEXT, state_s DOUBLE PRECISION, running TEXT, dropped TEXT NOT NULL)""",
    "CREATE TABLE IF NOT EXISTS certificates (serial TEXT PRIMARY KEY, device TEXT NOT NULL, "
    "ends_s DOUBLE PRECISION NOT NULL)")
_TEXT = re.compile(rf"{PREFIX}([0-9a-f]{{12}})-[A-Za-z0-9_-]{{43}}")
_DEVICE_COLUMNS = ("name, public_key, token, enrolled_s, facts, revoked, seen_s, mark, rollout, bundle, state, reason, "
                   "state_s, running, dropped")


class EnrolmentError(FleetError):
    """A device may not enrol: its token is not good, or its name belongs to another."""


@dataclass(frozen=True)
class EnrolmentToken:
    """A token without its secret. `uses_left` devices may still enrol with it."""

    id: str
    label: str
    created_s: float
    expires_s: float
    uses_left: int
    used: int
    is_revoked: bool

    def why_not(self, now_s: float) -> str | None:
        """Why it is not good; None if it is."""
        if self.is_revoked:
            return "is revoked"
        if now_s >= self.expires_s:
            return "has expired"
        return None if self.uses_left else "is used up"


@dataclass(frozen=True)
class FleetDevice:
    """A device as the hub knows it. `running` is the digest of the bundle that it committed last; `mark` the id of the
    newest record that the hub has of it.
    """

    name: str
    public_key: bytes = field(repr=False)
    token: str = ""
    enrolled_s: float = 0.0
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    is_revoked: bool = False
    seen_s: float | None = None
    mark: str = ""
    rollout: str | None = None
    bundle: str | None = None
    state: str | None = None
    reason: str | None = None
    state_s: float | None = None
    running: str | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class DeviceTally:
    """Devices by the state of their last update and by the bundle that they run; "" is none."""

    states: Mapping[str, int]
    running: Mapping[str, int]
    quiet: int  # not heard of for a day
    revoked: int


class Enrolment:
    """The tokens and devices of one hub. May be called from any thread."""

    def __init__(self, database: Database, now: Callable[[], float]) -> None:
        self._database, self._now = database, now

    def add_token(self, label: str, uses: int = 1, valid_s: float = 86400.0) -> tuple[str, EnrolmentToken]:
        """Makes a token for so many devices, and returns its text, which is kept nowhere."""
        if not 1 <= uses <= MOST_USES:
            raise FleetError(f"a token for {uses} devices is not allowed; 1 to {MOST_USES} are")
        if not 1 <= valid_s <= 10 * 366 * 86400.0:
            raise FleetError(f"a token that is good for {valid_s:g} s is not allowed; 1 s to ten years are")
        if not label.isprintable() or not 1 <= len(label) <= MOST_LABEL:
            raise FleetError(f"the label must have 1 to {MOST_LABEL} printable characters, got {label[:80]!r}")
        id, now_s = secrets.token_hex(6), self._now()
        text = f"{PREFIX}{id}-{secrets.token_urlsafe(32)}"
        with self._database.transaction() as transaction:
            transaction.run("DELETE FROM tokens WHERE expires_s < ? OR uses_left = 0", (now_s - 366 * 86400.0,))
            if transaction.rows("SELECT count(*) FROM tokens")[0][0] >= MOST_TOKENS:
                raise FleetError(f"there are {MOST_TOKENS} tokens, no more are allowed",
                                 hint="one token can be for many devices: --devices N")
            transaction.run("INSERT INTO tokens (id, digest, label, created_s, expires_s, uses_left, used, revoked) "
                            "VALUES (?, ?, ?, ?, ?, ?, 0, 0)",
                            (id, _digest(text), label, now_s, now_s + valid_s, uses))
        return text, EnrolmentToken(id, label, now_s, now_s + valid_s, uses, 0, is_revoked=False)

    def tokens(self) -> list[EnrolmentToken]:
        """All tokens, the newest first."""
        return [_token(row) for row in self._database.rows(
            "SELECT id, label, created_s, expires_s, uses_left, used, revoked FROM tokens ORDER BY created_s DESC, id")]

    def revoke_token(self, id: str) -> None:
        """No device enrols with it any more; those that have stay."""
        with self._database.transaction() as transaction:
            if not transaction.run("UPDATE tokens SET revoked = 1 WHERE id = ?", (id,)):
                raise FleetError(f"there is no token {id[:64]!r}", hint="brise fleet tokens lists them")

    def enrol(self, token: str, name: str, public: bytes, facts: Mapping[str, Any]) -> FleetDevice:
        """Takes a device into the fleet. The same device with the same key may enrol again, and uses nothing up."""
        check_device(name)
        why = why_no_key(public)
        if why is not None:
            raise EnrolmentError(f"the device's public key is not allowed: {why}")
        kept, now_s = checked_facts(facts), self._now()
        if not self._database.rows("SELECT 1 FROM tokens WHERE id = ? AND digest = ?", (_id_of(token), _digest(token))):
            raise EnrolmentError("this token is not good", hint="the operator makes one: brise fleet token")
        with self._database.transaction() as transaction:
            row = next(iter(transaction.rows(
                "SELECT id, label, created_s, expires_s, uses_left, used, revoked, digest FROM tokens WHERE id = ?",
                (_id_of(token),))), None)
            if row is None or not hmac.compare_digest(row[7], _digest(token)):  # it was deleted meanwhile
                raise EnrolmentError("this token is not good", hint="the operator makes one: brise fleet token")
            known = next(iter(transaction.rows("SELECT public_key, revoked FROM devices WHERE name = ?", (name,))),
                         None)
            if known is not None and (known[0] != public.hex() or known[1]):
                raise EnrolmentError(f"the name {name!r} is taken" if not known[1] else f"{name!r} is revoked",
                                     hint="choose another name, or remove the old device: brise fleet revoke")
            reason = _token(row[:7]).why_not(now_s)
            if known is None and reason is not None or known is not None and row[6]:
                raise EnrolmentError(f"this token {reason or 'is revoked'}",
                                     hint="the operator makes one: brise fleet token")
            if known is None:
                if transaction.rows("SELECT count(*) FROM devices")[0][0] >= MOST_DEVICES:
                    raise EnrolmentError(f"the fleet has {MOST_DEVICES} devices, no more are allowed")
                transaction.run("UPDATE tokens SET uses_left = uses_left - 1, used = used + 1 WHERE id = ?", (row[0],))
                transaction.run("INSERT INTO devices (name, public_key, token, enrolled_s, facts, revoked, mark, "
                                "dropped) VALUES (?, ?, ?, ?, ?, 0, '', '{}')",
                                (name, public.hex(), row[0], now_s, json.dumps(kept)))
            else:
                transaction.run("UPDATE devices SET facts = ? WHERE name = ?", (json.dumps(kept), name))
        return FleetDevice(name, public, row[0], now_s, kept)

    def device(self, name: str) -> FleetDevice | None:
        """What is known of a device."""
        return next((_device(row) for row in self._database.rows(
            f"SELECT {_DEVICE_COLUMNS} FROM devices WHERE name = ?", (name,))), None)

    def devices(self, after: str = "", limit: int = 100, state: str | None = None) -> list[FleetDevice]:
        """Devices in the order of their names, a page at a time; `state` is one of those that they report."""
        condition, values = ("", ()) if state is None else (" AND state = ?", (state,))
        return [_device(row) for row in self._database.rows(
            f"SELECT {_DEVICE_COLUMNS} FROM devices WHERE name > ?{condition} ORDER BY name LIMIT ?",
            (after, *values, limit))]

    def tally(self) -> DeviceTally:
        """How many devices are in each state, run each bundle, and were not heard of for a day."""
        states = self._database.rows("SELECT coalesce(state, ''), count(*) FROM devices WHERE revoked = 0 "
                                     "GROUP BY 1 ORDER BY 2 DESC, 1")
        running = self._database.rows("SELECT coalesce(running, ''), count(*) FROM devices WHERE revoked = 0 "
                                      "GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 20")
        quiet = self._database.rows("SELECT count(*) FROM devices WHERE revoked = 0 AND coalesce(seen_s, 0) < ?",
                                    (self._now() - 86400.0,))
        revoked = self._database.rows("SELECT count(*) FROM devices WHERE revoked = 1")
        return DeviceTally({str(name): int(count) for name, count in states},
                           {str(name): int(count) for name, count in running}, int(quiet[0][0]), int(revoked[0][0]))

    def names(self) -> list[str]:
        """The devices that take part in roll-outs."""
        return [str(row[0]) for row in self._database.rows("SELECT name FROM devices WHERE revoked = 0 ORDER BY name")]

    def revoke(self, name: str) -> None:
        """The hub takes nothing more of this device, and its certificate is in the list of revoked ones. What it has
        installed it keeps: it may be out of reach."""
        with self._database.transaction() as transaction:
            if not transaction.run("UPDATE devices SET revoked = 1 WHERE name = ?", (name,)):
                raise FleetError(f"there is no device {name[:64]!r}", hint="brise fleet devices lists them")

    def add_certificate(self, device: str, serial: int, ends_s: float) -> None:
        """Remembers a certificate that a device got for other devices, for the list of revoked ones."""
        with self._database.transaction() as transaction:
            transaction.run("DELETE FROM certificates WHERE ends_s < ?", (self._now(),))
            transaction.run("INSERT INTO certificates (serial, device, ends_s) VALUES (?, ?, ?)",
                            (f"{serial:x}", device, ends_s))

    def revoked_certificates(self) -> list[int]:
        """The serial numbers of the certificates of revoked devices that have not ended."""
        return [int(row[0], 16) for row in self._database.rows(
            "SELECT serial FROM certificates JOIN devices ON devices.name = certificates.device "
            "WHERE devices.revoked = 1 AND ends_s >= ? ORDER BY serial", (self._now(),))]


def checked_facts(facts: Mapping[str, Any]) -> Mapping[str, str | int | float]:
    """What a device says of itself: few names, with short texts or numbers."""
    if len(facts) > MOST_FACTS:
        raise EnrolmentError(f"a device says {len(facts)} facts of itself, {MOST_FACTS} are allowed")
    for name, value in facts.items():
        is_text = isinstance(value, str) and len(value) <= MOST_FACT and value.isprintable()
        is_number = type(value) in (int, float) and abs(value) <= 2**53
        if not (is_text or is_number) or not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", str(name)):
            raise EnrolmentError(f"the fact {str(name)[:40]!r} is not allowed: short names, and texts of up to "
                                 f"{MOST_FACT} characters or numbers")
    return dict(facts)


def _id_of(text: str) -> str:
    found = _TEXT.fullmatch(text)
    return "" if found is None else found[1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _token(row: Row) -> EnrolmentToken:
    return EnrolmentToken(row[0], row[1], row[2], row[3], row[4], row[5], bool(row[6]))


def _device(row: Row) -> FleetDevice:
    named = dict(zip(_DEVICE_COLUMNS.split(", "), row, strict=True))
    revoked = bool(named.pop("revoked"))
    return FleetDevice(**{**named, "public_key": bytes.fromhex(named["public_key"]),
                          "facts": json.loads(named["facts"]), "dropped": json.loads(named["dropped"])},
                       is_revoked=revoked)
