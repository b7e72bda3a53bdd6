"""How a bundle is served: the words of `brise serve`, and the lines of the ledger by which its rule acts.

The certificate and the rule are of the adapter as it was trained. The bundle's is the same in bf16, whose parity was
gated when it was shipped, and the release key signed that: so both hold here for the bundle's own fingerprint. The
switch begins at a share of 1, because the share was earned where the bundle comes from; while it is on trial, half of
what the small model keeps is audited, as far as there is a large model.

When the certificate expires away from a large model, the switch goes on by a stricter rule: what it would keep in
caution (`tight`) is kept, everything else escalates, and waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from brise.checkpoint.adapters.lineage import base_digest
from brise.checkpoint.adapters.peft_settings import CONFIG_FILE
from brise.engine.adapter_loading import rank_in
from brise.errors import BriseError
from brise.files.digests import Located
from brise.fleet.bundle import Bundle
from brise.fleet.install_state import InstalledBundle
from brise.fleet.refusals import UnfitError
from brise.fleet.supervisor import ServerOrder
from brise.hub.locate import find_model
from brise.hub.store import ModelStore
from brise.prove import certificates, cutover
from brise.prove.certificates import Signed
from brise.settings import Settings
from brise.switch import rule as rules
from brise.switch.rule import Rule
from brise.switch.state import AUDIT, TaskState, fold
from brise.traffic.records import LedgerEntry
from brise.traffic.store import Query, TrafficStore

BASE, OTHER_BASE = "base", "base-model"  # what the base model is called, unless the bundle itself is called so
ADAPTER_FOLDER, BASE_FOLDER = "adapter", "base"
EXPIRED = "the certificate has expired"  # as switch/state.py says it
STRICT = "strict"


@dataclass(frozen=True)
class ServingOptions:
    """What all servers of a device are started with. `store` is where their traffic goes, `more` further options of
    `brise serve`; `upstream` are those of the large model."""

    settings: Settings
    store: Path
    upstream: Sequence[str] = ("--upstream", "none")
    more: Sequence[str] = ()

    @property
    def has_large_model(self) -> bool:
        return tuple(self.upstream) != ("--upstream", "none")


def order_of(installed: InstalledBundle, bundle: Bundle, place: Path, options: ServingOptions) -> ServerOrder:
    """The server of a bundle in its folder; UnfitError if its base model is not on this machine."""
    base, plan = find_base(bundle, place, options.settings), bundle.plan
    words = ["serve"]
    if bundle.adapter:
        name = OTHER_BASE if bundle.name == BASE else BASE
        words += [f"{name}={base}", "--adapter", f"{bundle.name}={place / ADAPTER_FOLDER}", "--max-adapters", "1"]
        if any(blob.path == f"{ADAPTER_FOLDER}/{CONFIG_FILE}" for blob in bundle.adapter):  # as it was planned
            words += ["--adapter-rank", str(rank_in(place / ADAPTER_FOLDER))]
    else:
        words += [f"{bundle.name}={base}"]
    words += ["--memory", f"{plan.memory}B", "--context", str(plan.context), "--parallel", str(plan.parallel),
              "--cache", plan.cache, *(() if plan.weights is None else ("--weights", plan.weights)),
              *options.upstream, "--fallback", bundle.name, "--store", str(options.store), *options.more]
    return ServerOrder(installed, tuple(words), plan.memory)


def find_base(bundle: Bundle, place: Path, settings: Settings) -> Path:
    """The base model: the bundle's own files, or the one in this machine's store with the digest that was signed."""
    blobs = bundle.base.blobs
    if blobs:
        return place / blobs[0].path if len(blobs) == 1 else place / BASE_FOLDER
    store = ModelStore(settings.home)
    for name in store.names():
        entry = store.get(name)
        if entry.digest == bundle.base.digest:
            return store.path(entry)
    try:
        located = find_model(bundle.base.name, settings)
        digest = base_digest(Located(located.name, located.path, located.digest))
    except BriseError:
        located, digest = None, ""
    if located is None or digest != bundle.base.digest:
        raise UnfitError(f"the base model of {bundle.name} {bundle.version}, {bundle.base.name} with the digest "
                         f"{bundle.base.digest[:12]}, is not on this machine",
                         hint=f"brise pull {bundle.base.name}; or ship the bundle with its base: --with-base")
    return located.path


def settle_switch(store: TrafficStore, bundle: Bundle, place: Path, now_s: float, *, in_trial: bool) -> None:
    """Lets the bundle's certificate and rule act in this device's store, unless they do already; and ends the switches
    of bundles that were here before."""
    entries = list(store.ledger())
    task = bundle.task
    for name, state in fold(entries).tasks.items():
        if name != task and state.is_on and _bundle_of(entries, state) is not None:
            store.append("back", {"task": name, "by": "node", "reason": f"{bundle.name} {bundle.version} answers now"})
    if task is None or bundle.certificate is None and bundle.rule is None:
        return
    if any(entry.kind == "switch" and entry.body.get("bundle") == bundle.digest and entry.body.get("task") == task
           for entry in entries) and _is_newest(entries, task, bundle.digest):
        return
    signed = None if bundle.certificate is None else certificates.read(place / bundle.certificate.path)
    warrant = None if signed is None else _warrant(signed, bundle, now_s)
    rule = None if bundle.rule is None else _as_served(rules.from_body(bundle.rule), bundle,
                                                       is_strict=signed is not None and warrant is None)
    if signed is not None and warrant is not None:
        assert bundle.certificate is not None
        certificates.record(store, signed, place / bundle.certificate.path)
    _begin(store, bundle, task, warrant, rule, cutover.tolerance(signed, rule),
           STRICT if signed is not None and warrant is None else "")
    if in_trial:
        store.append("raise", {"task": task, "by": "node", "reason": f"{bundle.name} {bundle.version} is on trial"})


def keep_on_strictly(store: TrafficStore, bundle: Bundle) -> bool:
    """After the certificate of this bundle expired: its rule goes on, and keeps only what it kept in caution. False if
    nothing has expired, or there is no rule."""
    entries, task = list(store.ledger()), bundle.task
    state = None if task is None else fold(entries).tasks.get(task)
    if task is None or state is None or bundle.rule is None or state.ended != EXPIRED:
        return False
    if _bundle_of(entries, state) != bundle.digest:
        return False
    strict = _as_served(rules.from_body(bundle.rule), bundle, is_strict=True)
    _begin(store, bundle, task, None, strict, cutover.tolerance(None, strict), STRICT)
    return True


def end_strict(store: TrafficStore, bundle: Bundle) -> bool:
    """A large model is within reach again: it answers, because the certificate has expired. False if no strict switch
    of this bundle is on."""
    entries, task = list(store.ledger()), bundle.task
    state = None if task is None else fold(entries).tasks.get(task)
    if task is None or state is None or not state.is_on or not is_strict(entries, state):
        return False
    store.append("back", {"task": task, "by": "node", "reason": f"{EXPIRED}, and a large model answers again"})
    return True


def is_away(store: TrafficStore, has_large_model: bool) -> bool:
    """Whether no large model is within reach: there is none, or the last request that needed it was not answered."""
    if not has_large_model:
        return True
    needed = Query(modes=("hosted", "escalated", "degraded", "failed"), newest_first=True, limit=1, content=False)
    last = next(iter(store.exchanges(needed)), None)
    return last is not None and last.mode in ("degraded", "failed")


def is_strict(entries: Iterable[LedgerEntry], state: TaskState) -> bool:
    """Whether the switch goes on by the stricter rule."""
    return any(entry.number == state.number and entry.body.get("mode") == STRICT for entry in entries)


def _begin(store: TrafficStore, bundle: Bundle, task: str, warrant: Mapping[str, Any] | None, rule: Rule | None,
           tolerance: float, mode: str) -> None:
    if rule is not None:
        store.append("cascade", rules.to_body(rule))
    why = (f"{EXPIRED} away from a large model: only the surest answers are kept" if mode == STRICT
           else f"shipped in {bundle.name} {bundle.version}")
    store.append("switch", {
        "task": task, "candidate": bundle.name, "share": 1.0, "certificate": warrant,
        "rule": None if rule is None else rule.digest, "tolerance": tolerance, "audit": AUDIT, "auto": False,
        "user": "node", "forced": why if warrant is None else None, "reason": why, "bundle": bundle.digest,
        "mode": mode})


def _warrant(signed: Signed, bundle: Bundle, now_s: float) -> Mapping[str, Any] | None:
    """What the switch takes from the certificate, for the fingerprint of the bundle; None if it has expired already:
    then the stricter rule acts. Its signer is trusted because the release key signed the bundle."""
    found = signed.certificate
    if now_s >= found.expires_at_s:
        return None
    warrant = cutover.warrant_of(signed, found.task, found.student.name, now_s, {signed.public_key})
    return {**warrant, "fingerprint": bundle.fingerprint}


def _as_served(rule: Rule, bundle: Bundle, *, is_strict: bool) -> Rule:
    """The rule for the bundle's own name and fingerprint, with its digest."""
    threshold = max(rule.threshold, rule.tight) if is_strict else rule.threshold
    served = replace(rule, candidate=bundle.name, fingerprint=bundle.fingerprint, threshold=threshold)
    return rules.from_body(rules.to_body(served))


def _bundle_of(entries: Iterable[LedgerEntry], state: TaskState) -> str | None:
    """The bundle whose switch this is; None if a user switched."""
    found = next((entry.body.get("bundle") for entry in entries if entry.number == state.number), None)
    return found if isinstance(found, str) else None


def _is_newest(entries: Iterable[LedgerEntry], task: str, bundle: str) -> bool:
    """Whether the last switch of the task is this bundle's."""
    found = [entry.body.get("bundle") for entry in entries
             if entry.kind == "switch" and entry.body.get("task") == task]
    return bool(found) and found[-1] == bundle
