"""What the ledger says of a task: the newest proof, the newest rule of a cascade, the switch as it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brise.dialects.bodies import Body
from brise.errors import StoreError
from brise.prove import analyses, cascade, certificates
from brise.report.advice import Kept, Proven, Switched
from brise.switch import state as switch
from brise.traffic.records import LedgerEntry


@dataclass(frozen=True)
class SwitchTimeline:
    """`proof` is the newest line as it was written, `alarms` counts switches that an alarm took back."""

    proven: Proven | None
    kept: Kept | None
    switched: Switched | None
    proof: Body | None = None
    proof_at_s: float | None = None
    certificate: str | None = None  # its digest
    expires_s: float | None = None
    alarms: int = 0
    audits: tuple[tuple[float, float], ...] = ()  # difference and probability of each
    steps: tuple[tuple[float, float], ...] = ()  # when, and the share from then on


def history(ledger: Sequence[LedgerEntry], now_s: float) -> SwitchTimeline:
    """From the lines of one task, in order."""
    proof = next((entry for entry in reversed(ledger) if entry.kind == analyses.ANALYSIS), None)
    signed = next((entry for entry in reversed(ledger) if entry.kind == certificates.KIND), None)
    rule = next((entry for entry in reversed(ledger) if entry.kind == cascade.RULE), None)
    began = next((entry for entry in reversed(ledger) if entry.kind == "switch"), None)
    kept = None if rule is None else Kept(float(rule.body["kept"]), float(rule.body["risk"]))
    expires_s = None if signed is None else float(signed.body["expires_at_s"])
    proven = None if proof is None else _proven(proof.body, expires_s is not None and now_s >= expires_s)
    state = _switched(ledger)
    if state is not None and state.ended is not None and proof is not None and began is not None:
        ended_at = max((entry.at_s for entry in ledger if entry.kind in ("void", "back")), default=began.at_s)
        state = None if proof.at_s > ended_at else state  # what was proven since says more
    return SwitchTimeline(
        proven, kept, state, None if proof is None else proof.body, None if proof is None else proof.at_s,
        None if signed is None else str(signed.body["digest"]), expires_s,
        sum(entry.kind == "back" and str(entry.body.get("reason", "")).startswith("alarm") for entry in ledger),
        tuple((float(entry.body["difference"]), float(entry.body["probability"])) for entry in ledger
              if entry.kind == "audit"),
        tuple((entry.at_s, 0.0 if entry.kind in ("void", "back") else float(entry.body["share"])) for entry in ledger
              if entry.kind in ("switch", "step", "void", "back")))


def _switched(ledger: Sequence[LedgerEntry]) -> Switched | None:
    states = switch.fold(ledger).tasks
    if not states:
        return None
    state = next(iter(states.values()))
    return Switched(state.candidate, state.share, state.audits, state.forced is not None, state.ended)


def _proven(body: Body, is_expired: bool) -> Proven:
    try:
        difference: Mapping[str, Any] = body["scores"]["difference"]
        missing = int(body["plan"]["anytime_units"]) - int(body["plan"]["have_units"])
        classical = (str(found["name"]) for found in body["baselines"] if found["verdict"] == "promote")
        return Proven(body["verdict"], float(body["delta"]), difference["estimate"], difference["low"],
                      difference["high"], str(body["reason"]), is_expired, next(classical, None),
                      missing if missing > 0 else None)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"a proof in the ledger cannot be read: {error!r}",
                         hint="brise audit says whether the ledger is as it was written") from None
