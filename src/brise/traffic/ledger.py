"""The ledger: lines that say what was decided and when, each bound to the one before it by a digest."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from brise.dialects.bodies import Body
from brise.files.digests import text_digest
from brise.traffic.records import LedgerEntry

GENESIS = "0" * 64  # what the first line names as the digest before it


@dataclass(frozen=True)
class LedgerBreak:
    """The first line that does not fit, by the number that it should have, and the reason."""

    number: int
    reason: str


def canonical(value: object) -> str:
    """JSON text that is the same for equal values, and that every store gives back as it was."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_of(number: int, at_s: float, kind: str, body: Body, previous: str) -> str:
    """SHA-256, hexadecimal, over the canonical JSON of a line's content and the digest of the line before."""
    line = {"number": number, "at": float(at_s), "kind": kind, "body": dict(body), "previous": previous}
    return text_digest(canonical(line))


def next_entry(last: tuple[int, str] | None, at_s: float, kind: str, body: Body) -> LedgerEntry:
    """The line after the one with this number and digest; None: the first line."""
    number, previous = (1, GENESIS) if last is None else (last[0] + 1, last[1])
    kept: Body = json.loads(canonical(body))  # as a store returns it: no tuples, no other mappings
    return LedgerEntry(number, float(at_s), kind, kept, previous, digest_of(number, at_s, kind, kept, previous))


class Chain:
    """The lines that were read so far, from the first on; `fault` is the first one that does not fit."""

    def __init__(self) -> None:
        self.number, self.digest = 0, GENESIS
        self.fault: LedgerBreak | None = None

    def push(self, entry: LedgerEntry) -> LedgerBreak | None:
        """Checks the next line: whole, in order and unchanged."""
        if self.fault is None:
            self.fault = self._fault_of(entry)
            self.number, self.digest = entry.number, entry.digest
        return self.fault

    def check_end(self, end: tuple[int, str] | None) -> LedgerBreak | None:
        """Checks what the store says to be the last line: it may be a newer one, and none may have gone."""
        number, digest = end or (0, GENESIS)
        if self.fault is None and number < self.number:
            self.fault = LedgerBreak(number + 1, f"line {number + 1} is missing: there were {self.number}")
        elif self.fault is None and number == self.number and digest != self.digest:
            self.fault = LedgerBreak(number, f"line {number} was changed: its digest is {digest[:12]}, it was "
                                             f"{self.digest[:12]}")
        return self.fault

    def _fault_of(self, entry: LedgerEntry) -> LedgerBreak | None:
        number = self.number + 1
        if entry.number != number:
            return LedgerBreak(number, f"line {number} is missing: line {entry.number} follows")
        if entry.previous != self.digest:
            return LedgerBreak(number, f"line {number} names {entry.previous[:12]} as the line before, "
                                  f"which has {self.digest[:12]}")
        try:
            digest = digest_of(entry.number, entry.at_s, entry.kind, entry.body, entry.previous)
        except ValueError:
            digest = "none"
        if digest != entry.digest:
            return LedgerBreak(number, f"line {number} was changed: its digest is {digest[:12]}, it says "
                                  f"{entry.digest[:12]}")
        return None


def check_chain(entries: Iterable[LedgerEntry]) -> LedgerBreak | None:
    """None if the lines, from the first on, are whole, in order and unchanged."""
    chain = Chain()
    return next((fault for fault in map(chain.push, entries) if fault is not None), None)
