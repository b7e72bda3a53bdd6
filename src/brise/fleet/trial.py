"""The trial of a bundle: real requests, under the vetoes and audits of its switch, before it is committed.

It ends well after so many requests or hours, whichever comes first. It ends badly, at any time, when the gateway took
the switch back (the alarm of audits), when more answers are vetoed than when the rule was certified, when answers fail
in the engine, or when the server ends by itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from brise.fleet.bundle import Bundle
from brise.fleet.offers import TrialTerms
from brise.switch import rule as rules
from brise.switch.drift import LEVEL, fisher
from brise.switch.rule import VETO
from brise.switch.state import TaskState, fold
from brise.traffic.store import Query, TrafficStore

MOST_CRASHES = 3
FAILED_SHARE, LEAST_FAILED = 0.02, 3  # of answers that fail in the engine: fewer than the second say nothing
ANSWERING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings",
                       "/api/chat", "/api/generate"})
_SAMPLE = re.compile(r'brise_requests_total\{endpoint="([^"]*)",status="(\d+)"\} ([0-9.e+]+)')


@dataclass(frozen=True)
class TrialSignals:
    """What is known of a trial. `vetoed` of `judged` answers of the switch; `taken_back` says why the gateway ended it.
    """

    requests: int = 0
    failed: int = 0
    vetoed: int = 0
    judged: int = 0
    crashes: int = 0
    taken_back: str | None = None


@dataclass(frozen=True)
class TrialVerdict:
    """How a trial stands: it goes on unless it is passed, or a reason stands against the bundle."""

    is_passed: bool = False
    against: str | None = None


def judge(signals: TrialSignals, terms: TrialTerms, elapsed_s: float, bundle: Bundle) -> TrialVerdict:
    """Whether the bundle is committed, goes back, or is tried on."""
    against = _against(signals, bundle)
    if against is not None:
        return TrialVerdict(against=against)
    return TrialVerdict(signals.requests >= terms.requests or elapsed_s >= 3600 * terms.hours)


def of_store(store: TrafficStore, bundle: Bundle, since_s: float) -> TrialSignals:
    """What the ledger and the captured traffic say of the bundle's switch since the trial began."""
    task = bundle.task
    if task is None:
        return TrialSignals()
    state = fold(store.ledger()).tasks.get(task)
    judged = vetoed = 0
    for exchange in store.exchanges(Query(task=task, modes=("small", "escalated", "degraded"), since_s=since_s,
                                          content=False)):
        if VETO in exchange.signals:
            judged, vetoed = judged + 1, vetoed + (exchange.signals[VETO] > 0)
    return TrialSignals(vetoed=vetoed, judged=judged, taken_back=_taken_back(state, bundle, since_s))


class RequestCount:
    """Adds up the requests of servers that come and go, from what each says in its metrics."""

    def __init__(self, requests: int = 0) -> None:
        self._before, self._failed_before = requests, 0
        self._last, self._last_failed = 0, 0

    def saw(self, metrics: str) -> None:
        """The metrics of the server that answers, in Prometheus' format."""
        requests, failed = counted(metrics)
        if requests < self._last or failed < self._last_failed:  # another process
            self._before, self._failed_before = self.requests, self.failed
        self._last, self._last_failed = requests, failed

    @property
    def requests(self) -> int:
        return self._before + self._last

    @property
    def failed(self) -> int:
        return self._failed_before + self._last_failed


def counted(metrics: str) -> tuple[int, int]:
    """Requests that were answered or failed in the server itself, and how many failed. Requests that were refused, such
    as malformed ones, say nothing of a bundle."""
    requests = failed = 0
    for endpoint, status, value in _SAMPLE.findall(metrics):
        if endpoint in ANSWERING and (status.startswith("2") or status == "500"):
            requests += int(float(value))
            failed += int(float(value)) if status == "500" else 0
    return requests, failed


def _against(signals: TrialSignals, bundle: Bundle) -> str | None:
    if signals.taken_back is not None:
        return f"the gateway took it back: {signals.taken_back}"
    if signals.crashes >= MOST_CRASHES:
        return f"its server ended by itself {signals.crashes} times"
    if signals.failed >= max(LEAST_FAILED, FAILED_SHARE * signals.requests):
        return f"{signals.failed} of {signals.requests} answers failed in the engine"
    if bundle.rule is not None:
        was = rules.from_body(bundle.rule).baseline
        if fisher(signals.vetoed, signals.judged, round(was.vetoed * was.units), was.units) < LEVEL:
            return (f"{signals.vetoed} of {signals.judged} answers were vetoed, {100 * was.vetoed:.1f} % were when the "
                    "rule was certified")
    return None


def _taken_back(state: TaskState | None, bundle: Bundle, since_s: float) -> str | None:
    """Why the gateway ended the bundle's switch; that a certificate ran out is not against the bundle."""
    if state is None or state.candidate != bundle.name or state.since_s < since_s:
        return None
    if state.alarm.rings:
        return f"the evidence that answers are worse than tolerated reached {state.alarm.evidence:.0f}"
    return state.ended if state.ended is not None and state.ended.startswith("alarm") else None

