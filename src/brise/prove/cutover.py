"""The cutover: `run` lets the small model answer a task in the large one's place, in steps, and takes that back.

Each change is a line of the ledger, which running gateways follow at once. A certificate is checked before it acts.
"""

from __future__ import annotations

import getpass
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brise import settings
from brise.errors import EvidenceError, UnsupportedError
from brise.prove import certificates
from brise.prove.certificates import Signed
from brise.stats import certificate as forms
from brise.switch.objections import Objection, against
from brise.switch.rule import Rule
from brise.switch.state import AUDIT, SHARES, Switches, TaskState, fold
from brise.traffic import seal
from brise.traffic.seal import load_or_create_signing_key
from brise.traffic.store import TrafficStore
from brise.traffic.stores import keys_folder, open_store

# A little over what is known: an alarm is for a change, not for what was certified.
MARGIN = 0.02
FORCED_TOLERANCE = 0.05  # where nothing was certified


@dataclass(frozen=True)
class SwitchOptions:
    """One change of one `task`: to the large model (`back`), to another share, or to a small model.

    Shares are of 1: `share` of conversations, `audit` of kept answers, `tolerance` how far audits may fall. None takes
    the certificate's `small_model`, the newest `certificate` ("auto" is the same), the first share, and the tolerance
    that the rule or the certificate allows. `trust` are public keys of other machines. With `force`, which needs a
    `reason`, a switch needs no certificate and no audits. With neither a change nor a task all tasks are shown.
    """

    task: str | None = None
    small_model: str | None = None
    certificate: str | None = None
    share: float | None = None
    auto: bool = False
    audit: float = AUDIT
    tolerance: float | None = None
    use_threshold: bool = True
    trust: tuple[bytes, ...] = ()
    force: bool = False
    reason: str | None = None
    back: bool = False
    status: bool = False
    store: str | None = None


@dataclass(frozen=True)
class SwitchResult:
    """How the tasks that were asked about are switched, what a user should know of the change, and what the ledger
    knows against the small models of these tasks.
    """

    states: tuple[TaskState, ...]
    notes: tuple[str, ...] = ()
    against: Mapping[str, tuple[Objection, ...]] = field(default_factory=dict)


def run(options: SwitchOptions) -> SwitchResult:
    """Makes the change, if there is one, and says how tasks are switched."""
    changes = check(options)
    must_exist = options.task is None or options.status or not changes
    notes = list[str]()
    with closing(open_store(options.store, settings.read().home, must_exist=must_exist)) as store:
        if options.task is not None and changes and not options.status:
            notes = _change(options, options.task, store)
        entries = list(store.ledger())
    found = fold(entries)
    names = [options.task] if options.task is not None else sorted(found.tasks)
    return SwitchResult(tuple(found.tasks[name] for name in names if name in found.tasks), tuple(notes),
                        {name: known for name in names if (known := against(entries, name, options.small_model))})


def check(options: SwitchOptions) -> list[str]:
    """The options that change something; UnsupportedError for those that contradict each other."""
    changes = [name for name, is_given in (
        ("--small-model", options.small_model), ("--certificate", options.certificate), ("--share", options.share),
        ("--auto", options.auto), ("--back", options.back)) if is_given]
    if options.task is None and changes:
        raise UnsupportedError(f"{changes[0]} needs a TASK")
    if options.status and changes:
        raise UnsupportedError(f"--status changes nothing, so {changes[0]} has no place beside it")
    if options.back and len(changes) > 1:
        raise UnsupportedError(f"--back and {changes[0]} are both given, one is allowed")
    for key in options.trust:
        why = seal.why_no_key(key)
        if why is not None:
            raise UnsupportedError(f"--trust is {key.hex()}, which is no public key: {why}")
    if options.force and not options.reason:
        raise UnsupportedError("--force needs --reason TEXT: whoever reads the ledger later will ask")
    return changes


def _change(options: SwitchOptions, task: str, store: TrafficStore) -> list[str]:
    found = fold(store.ledger())
    state = found.tasks.get(task)
    if options.back:
        if state is None or state.ended is not None:
            raise EvidenceError(f"the task {task!r} is not switched")
        store.append("back", {"task": task, "by": "user", "user": _user(), "reason": options.reason or "by hand"})
        return []
    if state is not None and state.is_on and options.small_model in (None, state.candidate) and (
            options.certificate is None):
        return _step(options, task, store, state)
    return _begin(options, task, store, found)


def _step(options: SwitchOptions, task: str, store: TrafficStore, state: TaskState) -> list[str]:
    """Another share of the same switch; what it was forced against."""
    share = state.share if options.share is None else options.share
    why_not = state.why_not_up() if share > state.share else None
    if why_not is not None and not options.force:
        raise EvidenceError(f"the share of {task!r} stays at {100 * state.share:g} %: {why_not}",
                            hint="wait for audits (brise audit); or --force --reason WHY")
    known = [*([] if why_not is None else [why_not]), *_known(options, task, store, state.candidate)]
    store.append("step", {"task": task, "share": share, "auto": options.auto or state.is_auto, "by": "user",
                          "user": _user(), "reason": options.reason or "by hand", "forced": why_not is not None,
                          **({"against": known} if known else {})})
    return _forced_notes(known)


def _known(options: SwitchOptions, task: str, store: TrafficStore, candidate: str) -> list[str]:
    """What is known against this small model, where the change is forced: it goes into the line."""
    return [one.said for one in against(store.ledger(), task, candidate)] if options.force else []


def _forced_notes(known: Sequence[str]) -> list[str]:
    return [f"forced against what the ledger knows: {one}" for one in known]


def _begin(options: SwitchOptions, task: str, store: TrafficStore, found: Switches) -> list[str]:
    """A new switch; what a user should know of it."""
    signed = _certificate(options, task, store)
    small_model = options.small_model or (signed.certificate.student.name if signed is not None else None)
    if small_model is None:
        raise EvidenceError("nothing says which model is to answer", hint="--small-model MODEL")
    own = load_or_create_signing_key(keys_folder(settings.read().home)).public
    warrant = None if signed is None else warrant_of(signed, task, small_model, time.time(), {own, *options.trust})
    if signed is not None and not options.force:
        require_not_taken_back(store, signed.digest)
    fingerprint = None if signed is None else signed.certificate.student.fingerprint
    rule = found.newest_rule(task, small_model, fingerprint) if options.use_threshold else None
    if rule is not None and rule.removed_signal is not None:
        raise EvidenceError(f"the newest rule of {task!r} needs the signal {rule.removed_signal!r}, which this version "
                            "does not have", hint="certify another with brise cascade; or --no-threshold")
    share = SHARES[0] if options.share is None else options.share
    if share > SHARES[0] and not options.force:
        first = round(100 * SHARES[0])
        raise EvidenceError(f"a switch begins with {first} %, and goes up when audits are fine",
                            hint=f"--share {first}; or --force --reason WHY")
    known = _known(options, task, store, small_model)
    store.append("switch", {
        "task": task, "candidate": small_model, "share": share, "certificate": warrant,
        "rule": None if rule is None else rule.digest,
        "tolerance": tolerance(signed, rule) if options.tolerance is None else options.tolerance,
        "audit": options.audit, "auto": options.auto, "user": _user(),
        "forced": options.reason if options.force else None, "reason": options.reason or "by hand",
        **({"against": known} if known else {})})
    by_name = [f"the certificate knows {small_model!r} by its name alone: whatever is served under it may answer"]
    claim = [] if signed is None else [f"the certificate's claim: {certificates.claim_words(signed.certificate)}"]
    return [*_forced_notes(known), *(by_name if signed is not None and fingerprint is None else ()), *claim,
            _about(rule)]


def _certificate(options: SwitchOptions, task: str, store: TrafficStore) -> Signed | None:
    """The certificate to switch by; None: by force."""
    if options.certificate is None and options.force:
        return None
    if options.certificate in (None, "auto"):
        return newest(store, task, options.small_model)
    return certificates.read(Path(options.certificate))


def _about(rule: Rule | None) -> str:
    if rule is None:
        return ("no threshold: all answers are kept but those that cannot be right (brise cascade certifies one)")
    return (f"kept are answers with a confidence of {rule.threshold:.3f} or more: {100 * rule.kept:.0f} % of them, of "
            f"which at most {100 * rule.risk:g} % are wrong (certified {rule.digest[:12]}, {rule.units} answers, "
            f"{rule.method})")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, such as in a container
        return "unknown"


def newest(store: TrafficStore, task: str, small_model: str | None) -> Signed:
    """The newest certificate in the ledger for this task (and small model)."""
    found = [entry.body for entry in store.ledger() if entry.kind == certificates.KIND
             and entry.body.get("task") == task and small_model in (None, entry.body.get("student"))]
    if not found:
        who = f" and {small_model!r}" if small_model is not None else ""
        known = "".join(f"\nthe ledger knows against {one.said}" for one in against(store.ledger(), task, small_model))
        raise EvidenceError(f"the ledger has no certificate for the task {task!r}{who}{known}",
                            hint="brise prove makes one; --force --reason WHY switches without, and is recorded")
    return certificates.of_line(found[-1])


def warrant_of(signed: Signed, task: str, candidate: str, now_s: float, trusted: Collection[bytes]) -> dict[str, Any]:
    """What the switch's line keeps of the certificate; EvidenceError names what is wrong with it."""
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
    """EvidenceError if an alarm, or another large model, ended a switch by this certificate: it no longer holds."""
    by_it = set[int]()
    for entry in store.ledger():
        body = entry.body
        if entry.kind == "switch" and body["certificate"] is not None and body["certificate"]["digest"] == digest:
            by_it.add(entry.number)
        if entry.kind in ("back", "void") and body.get("by") == "gateway" and body.get("switch") in by_it:
            raise EvidenceError(f"a switch by this certificate was taken back: {body['reason']}",
                                hint="brise prove, on traffic from after that; or --force --reason WHY")


def tolerance(signed: Signed | None, rule: Rule | None) -> float:
    """How far the audited mean of D may fall before it is harm: D is -1 where the answer differs from the large one's.

    With a rule: its risk, or how often kept answers differed when it was certified, if that is more. With a certificate
    alone: how often answers differed, both right or not, and the margin that was allowed.
    """
    if rule is not None:
        return min(max(rule.risk, rule.baseline.disagreed + MARGIN), 0.99)
    if signed is not None:
        return min(signed.certificate.differing + signed.certificate.delta, 0.99)
    return FORCED_TOLERANCE
