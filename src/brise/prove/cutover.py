"""What must be true of a certificate before a task is switched by it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from brise.errors import EvidenceError
from brise.prove import certificates
from brise.prove.certificates import Signed
from brise.stats import certificate as forms
from brise.switch.rule import Rule
from brise.traffic.store import TrafficStore

# A little over what is known: an alarm is for a change, not for what was certified.
MARGIN = 0.02
FORCED_TOLERANCE = 0.05  # where nothing was certified


def newest(store: TrafficStore, task: str, candidate: str | None) -> Signed:
    """The certificate of this task (and candidate) that came last into the ledger."""
    found = [entry.body for entry in store.ledger() if entry.kind == certificates.KIND
             and entry.body.get("task") == task and candidate in (None, entry.body.get("student"))]
    if not found:
        who = f" and {candidate!r}" if candidate is not None else ""
        raise EvidenceError(f"the ledger has no certificate for the task {task!r}{who}",
                            hint="brise prove makes one; --force --reason WHY switches without, and is recorded")
    return certificates.parse(found[-1])


def warrant(signed: Signed, task: str, candidate: str, now_s: float, trusted: Collection[bytes]) -> dict[str, Any]:
    """What the switch's line holds of the certificate; EvidenceError that names what is wrong with it."""
    found = signed.certificate
    if not signed.is_genuine:
        raise EvidenceError("the certificate's signature is not of its content: somebody changed it")
    if signed.public_key not in trusted:
        raise EvidenceError(f"the certificate is signed with the key {signed.public_key.hex()}, which is not this "
                            "machine's", hint="if you know whose it is: --trust KEY")
    if found.task != task or found.student.name != candidate:
        raise EvidenceError(f"the certificate is for the task {found.task!r} and {found.student.name!r}, "
                            f"not for {task!r} and {candidate!r}")
    if now_s >= found.expires_at_s:
        raise EvidenceError(f"the certificate expired {(now_s - found.expires_at_s) / 86400:.1f} days ago",
                            hint="brise prove, on newer traffic")
    replayed = forms.replay(found)
    if not replayed.is_equal:
        raise EvidenceError(f"the certificate does not prove what it says: {replayed.reason}")
    return {"digest": signed.digest, "expires_s": found.expires_at_s, "teachers": list(found.teachers),
            "contexts": list(found.contexts), "dimensions": list(found.dimensions), "proven": list(found.proven),
            "fingerprint": found.student.fingerprint}


def require_not_taken_back(store: TrafficStore, digest: str) -> None:
    """EvidenceError if an alarm, or another hosted model, ended a switch by this certificate: it speaks of what was."""
    by_it = set[int]()
    for entry in store.ledger():
        body = entry.body
        if entry.kind == "switch" and body["certificate"] is not None and body["certificate"]["digest"] == digest:
            by_it.add(entry.number)
        if entry.kind in ("back", "void") and body.get("by") == "gateway" and body.get("switch") in by_it:
            raise EvidenceError(f"a switch by this certificate was taken back: {body['reason']}",
                                hint="brise prove, on traffic from after that; or --force --reason WHY")


def tolerance(signed: Signed | None, rule: Rule | None) -> float:
    """How far the audited mean of D may fall before it is harm: D is -1 where the answer differs from the hosted one's.

    With a rule: its risk, or how often kept answers differed when it was certified, if that is more. With a certificate
    alone: how often answers differed, both right or not, and the margin that was allowed.
    """
    if rule is not None:
        return min(max(rule.risk, rule.baseline.disagreed + MARGIN), 0.99)
    if signed is not None:
        return min(signed.certificate.differing + signed.certificate.delta, 0.99)
    return FORCED_TOLERANCE
