"""`brise prove --verify`: is a certificate genuine, does its path replay, and do the data still say the same?"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass

from brise import settings
from brise.cli import prove_sources, terminal
from brise.errors import BriseError, EvidenceError
from brise.prove import certificates, scoring
from brise.prove.certificates import Signed
from brise.prove.clusters import complete
from brise.prove.pairs import digest_of_units
from brise.prove.scorer import scorer_of
from brise.report.document import time_words
from brise.stats.certificate import Certificate, ReplayMismatch, replay
from brise.traffic import seal, stores
from brise.traffic.store import TrafficStore


@dataclass(frozen=True)
class _Check:
    """One thing that was looked at; `passed` is None where it could not be."""

    name: str
    passed: bool | None
    said: str


def run(args: argparse.Namespace) -> int:
    """Exit status 0 if nothing is wrong, 3 if something is."""
    signed = certificates.read(args.verify)
    found = signed.certificate
    path = _replayed("path", replay(found), f"K_t of {found.n:,} units is the same, bit for bit")
    checks = [_signature(signed), path, _in_time(found)]
    if args.task is None and args.pairs is None:
        args.task = found.task
    if args.pairs is not None or _has_store(args):
        with prove_sources.opened(args) as store:
            if store is not None:
                wrong = certificates.in_ledger(store, signed)
                checks.append(_Check("ledger", wrong is None, wrong or "its chain is whole and holds the certificate"))
            checks.append(_data(args, found, store))
    if args.json:
        terminal.result(json.dumps({"certificate": str(args.verify), "digest": signed.digest, "checks": [
            {"check": check.name, "passed": check.passed, "said": check.said} for check in checks]}, indent=2))
    else:
        for check in checks:
            sign = {True: "ok", False: "WRONG", None: "not looked at"}[check.passed]
            terminal.result(f"{check.name}: {sign}: {check.said}")
    return 3 if any(check.passed is False for check in checks) else 0


def _has_store(args: argparse.Namespace) -> bool:
    return args.store is not None or stores.default_place(settings.read().home).is_file()


def _signature(signed: Signed) -> _Check:
    """Genuine, and by this machine's key where it has one."""
    if not signed.is_genuine:
        return _Check("signature", False, "the certificate was changed after it was signed")
    folder = stores.keys_folder(settings.read().home)
    if not (folder / seal.SIGNING_FILE).is_file():
        return _Check("signature", True, f"whole, by the key {signed.public_key.hex()[:16]} (this machine has none)")
    if seal.load_or_create_signing_key(folder).public != signed.public_key:
        return _Check("signature", False, f"whole, but by another machine's key ({signed.public_key.hex()[:16]})")
    return _Check("signature", True, "whole, by this machine's key")


def _in_time(found: Certificate) -> _Check:
    return _Check("time", time.time() < found.expires_at_s, f"good until {time_words(found.expires_at_s)}")


def _replayed(name: str, result: ReplayMismatch, good: str) -> _Check:
    return _Check(name, result.is_equal, good if result.is_equal else result.reason)


def _data(args: argparse.Namespace, found: Certificate, store: TrafficStore | None) -> _Check:
    """The differences computed again from log or store, under the selection that the certificate names."""
    try:
        differences, names = _differences(args, found, store)
    except BriseError as error:
        return _Check("data", None, f"the pairs cannot be read any more: {error.args[0]}")
    result = replay(found, differences[:found.n])
    if result.is_equal and digest_of_units(names[:found.n]) != found.window.units_digest:
        return _Check("data", False, "the differences are the same, but they are of other units")
    return _replayed("data", result, f"the same {found.n:,} units give the same differences")


def _differences(args: argparse.Namespace, found: Certificate, store: TrafficStore | None
                 ) -> tuple[list[float], tuple[str, ...]]:
    chosen = found.selection
    args.student = None if args.pairs is not None else chosen["student"]
    unit = chosen["unit"]
    settle_s = chosen["settle_s"]
    if not isinstance(settle_s, float) or not (unit is None or isinstance(unit, str)):
        raise EvidenceError("the certificate does not say how its pairs were selected")
    args.since, args.until, args.any_context = found.window.since_s, None, not found.contexts
    source = prove_sources.find(args, store, unit=unit, settle_s=settle_s, last_s=found.window.until_s,
                                fingerprint=found.student.fingerprint)
    pairs = source.chosen.pairs
    names = {name: chosen[name] for name in ("score", "scorer", "figure", "rung")}
    scorer = scorer_of(_text(names["score"]), _text(names["scorer"]), pairs)
    rung = next(known for known in scoring.RUNGS if known == found.labels)
    draw = chosen["draw"]
    if not isinstance(draw, float):
        raise EvidenceError("the certificate does not say how pairs were drawn for people")
    scored = scoring.score(pairs, rung, scorer, _text(names["figure"]), draw)
    units = complete(pairs, scored)
    return units.means(scored.differences).tolist(), units.names


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
