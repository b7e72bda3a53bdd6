"""What the proof that nothing leaves found: the steps of the golden path, and every attempt by its destination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from brise.doctor.airgap.witness import Attempt

Confinement = Literal["namespace", "seccomp", "none"]
Verdict = Literal["clean", "attempts", "incomplete", "unproven"]


@dataclass(frozen=True)
class WalkedStep:
    """One step: the commands that it ran, and how it ended. `why` says what failed, or what a skipped step needs."""

    name: str
    commands: tuple[str, ...]
    state: Literal["done", "skipped", "failed"]
    why: str
    seconds: float


@dataclass(frozen=True)
class CountedAttempt:
    """An attempt, and how often it was made."""

    attempt: Attempt
    count: int


@dataclass(frozen=True)
class AirgapReport:
    """How the commands were confined, what ran, and what tried to leave."""

    confinement: Confinement
    reason: str  # why not in a namespace, or why not at all
    model: str
    steps: Sequence[WalkedStep]
    attempts: Sequence[CountedAttempt]

    @property
    def verdict(self) -> Verdict:
        """`unproven` where attempts cannot be counted, `incomplete` where a step failed."""
        if self.confinement == "none":
            return "unproven"
        if self.attempts:
            return "attempts"
        return "incomplete" if any(step.state == "failed" for step in self.steps) else "clean"

    def to_json(self) -> dict[str, object]:
        """As --json prints it."""
        return {"verdict": self.verdict, "confinement": self.confinement, "reason": self.reason, "model": self.model,
                "steps": [asdict(step) for step in self.steps],
                "attempts": [{**asdict(one.attempt), "count": one.count} for one in self.attempts]}
