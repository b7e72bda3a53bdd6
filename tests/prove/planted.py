"""Stores with a known truth: traffic of a task, shadows, labels, a switch and an outage."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brise.dialects.bodies import Usage
from brise.switch.rule import Rule, RuleBaseline, to_body
from brise.traffic.prices import Hardware, Price, Prices
from brise.traffic.records import Exchange, Label, Mode, RecordedAnswer
from brise.traffic.sql_store import SqlStore
from brise.traffic.stores import open_store

START_S = 1_790_000_000.0
TASK = "car"
PRICES = Prices({"big-1": Price(2.0, 10.0)}, Hardware(1000.0, 4.0, 50.0, 0.3, 0.5))


class Planted:
    """A store in a folder, filled step by step: each request comes `every_s` after the one before."""

    def __init__(self, folder: Path, every_s: float = 100.0, seed: int = 0, home: Path | None = None) -> None:
        self.store: SqlStore = open_store(folder / "traffic.sqlite", home or folder)
        self.every_s, self.now_s = every_s, START_S
        self._random, self._count = random.Random(seed), 0

    def requests(self, count: int, mode: Mode = "hosted", *, right: float | None = 0.95, shadow: float | None = None,
                 rung: str = "outcome", status: int = 200, audit: float = 0.0, seconds: float = 1.0,
                 small_seconds: float = 0.1, task: str = TASK) -> None:
        """`count` conversations of one request. `right` and `shadow` are the rates at which labels say 1; None: no
        labels, and no shadow.
        """
        exchanges, answers, labels = list[Exchange](), list[RecordedAnswer](), list[Label]()
        for _ in range(count):
            self._count += 1
            self.now_s += self.every_s
            id = f"{self._count:08d}"
            is_slow = mode in ("hosted", "escalated")
            exchanges.append(self._exchange(id, mode, status, seconds if is_slow else small_seconds, task))
            score = None if right is None else float(self._random.random() < right)
            if shadow is not None:
                answers.append(RecordedAnswer(f"s{id}", id, self.now_s, "shadow", "mine", usage=Usage(200, 20),
                                              total_s=small_seconds))
            if audit and self._random.random() < audit:
                answers.append(RecordedAnswer(f"a{id}", id, self.now_s, "audit", "big-1", usage=Usage(200, 20),
                                              total_s=seconds,
                                              probability=audit))
            if score is not None:
                labels.append(Label(f"l{id}", id, self.now_s, rung, "test", score,  # type: ignore[arg-type]
                                    f"s{id}" if shadow is not None else None,
                                    float(self._random.random() < shadow) if shadow is not None else None))
        self.store.add(exchanges, answers, labels)

    def _exchange(self, id: str, mode: Mode, status: int, seconds: float, task: str) -> Exchange:
        is_hosted = mode in ("hosted", "escalated")
        jitter = 0.5 + self._random.random()
        return Exchange(id, self.now_s, task, "chat", "/v1/chat/completions", "big", mode, status, f"talk-{id}",
                        served_by="big-1" if is_hosted else "mine" if mode != "failed" else None,
                        usage=Usage(200, 20) if mode != "failed" else None, streamed=True,
                        first_token_s=seconds * jitter / 2, total_s=seconds * jitter, subject="someone")

    def proof(self, verdict: str, gap: float = 0.0, *, baselines: Sequence[Mapping[str, Any]] = (),
              expires_s: float | None = None) -> None:
        """A line as brise prove writes it."""
        self.store.append("proof", {
            "task": TASK, "verdict": verdict, "reason": "by test", "delta": 0.02,
            "plan": {"anytime_units": 1000, "have_units": 400},
            "scores": {"difference": {"estimate": gap, "low": gap - 0.01, "high": gap + 0.01, "interval": "Tango"}},
            "gate": {"level": 20.0, "decided_at": 3, "at": [1, 2, 3], "path": [1.0, 5.0, 25.0],
                     "futility_path": [1.0, 0.5, 0.2]},
            "baselines": list(baselines)})
        if expires_s is not None:
            self.store.append("certificate", {"task": TASK, "digest": "ab" * 32, "expires_at_s": expires_s})

    def rule(self, kept: float, risk: float = 0.05) -> None:
        """A line as brise cascade writes it, as far as a report reads it."""
        rule = Rule(TASK, "mine", (), 0.0, 0.5, 0.6, risk, 0.05, kept, risk, "sgr", 500, 500, START_S, self.now_s,
                    "outcome", "call", RuleBaseline((), (), 0.0, 1 - kept, 0.0, 500))
        self.store.append("cascade", to_body(rule))

    def switch(self, share: float = 1.0, *, audits: int = 0, back: str | None = None) -> None:
        """Lines as brise switch and a gateway write them."""
        self.store.append("switch", {"task": TASK, "candidate": "mine", "share": share, "user": "me",
                                     "tolerance": 0.02, "certificate": None, "forced": None, "rule": None,
                                     "audit": 0.05, "auto": False, "reason": "by hand"})
        for _ in range(audits):
            self.store.append("audit", {"task": TASK, "difference": 0.0, "probability": 0.05})
        if back is not None:
            self.store.append("back", {"task": TASK, "by": "gateway", "reason": back})
