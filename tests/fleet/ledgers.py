"""A ledger of one roll-out for tests, and its fold, by a clock of the test's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from brise.fleet import advance, rollout
from brise.fleet.advance import NextStep
from brise.fleet.offers import TrialTerms
from brise.fleet.rollout import FleetState, RolloutProgress, RolloutTerms
from brise.switch.state import Action
from brise.traffic import ledger
from brise.traffic.records import LedgerEntry

TERMS = RolloutTerms("r1", "a" * 64, "classifier 2", "salt", deadline_s=7200.0, trial=TrialTerms(hours=1))


class Chain:
    """A ledger and its fold, by a clock of the test's own."""

    def __init__(self, terms: RolloutTerms = TERMS, devices: int = 10_000) -> None:
        self.lines, self.state, self.now_s = list[LedgerEntry](), FleetState(), 1000.0
        self.names = [f"d{number}" for number in range(devices)]
        self.order = advance.in_order(terms.salt, self.names)
        self.append("rollout-begin", terms=terms.body(), user="anna", reason="")

    @property
    def progress(self) -> RolloutProgress:
        return self.state.rollouts["r1"]

    @property
    def within(self) -> Sequence[str]:
        return self.order.within(self.progress.share)

    def append(self, kind: str, **body: Any) -> None:
        last = (self.lines[-1].number, self.lines[-1].digest) if self.lines else None
        self.lines.append(ledger.next_entry(last, self.now_s, kind, {"rollout": "r1", **body}))
        self.state = rollout.fold(self.lines[-1:], self.state)

    def took(self, began: Iterable[str] = (), committed: Iterable[str] = (), failed: Iterable[str] = ()) -> None:
        self._do(advance.devices_line("r1", began, [*((one, "committed", "") for one in committed),
                                                    *((one, "failed", "vetoes") for one in failed)]))

    def step(self) -> NextStep:
        found = advance.next_step(self.progress, self.order, self.now_s)
        for action in (*advance.silent(self.progress, self.now_s), *found.actions):
            self._do(action)
        return found

    def _do(self, action: Action) -> None:
        self.append(action.kind, **{name: value for name, value in action.body.items() if name != "rollout"})
