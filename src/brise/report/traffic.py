"""A task's traffic as the report needs it: who answered, when, how fast, in how many tokens; without contents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from brise.errors import EvidenceError
from brise.traffic.records import Exchange, Label, LedgerEntry, RecordedAnswer, not_written
from brise.traffic.store import Query, TrafficStore

_AT_ONCE = 500


class Counting(TrafficStore, Protocol):
    """A store that says what the capture did not keep."""

    def skipped(self) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class TrafficOverview:
    """All of it in the order of time. `since_s` and `until_s` are of the first request and the last."""

    task: str
    exchanges: tuple[Exchange, ...]
    answers: tuple[RecordedAnswer, ...] = ()
    labels: tuple[Label, ...] = ()
    ledger: tuple[LedgerEntry, ...] = ()  # lines of this task
    pending: int = 0  # requests, of any task, that wait for the large model's answer
    skipped: Mapping[str, int] = field(default_factory=dict)  # why the capture kept nothing of so many, of any task

    @property
    def seconds(self) -> float:
        """From the first request to the end of the last."""
        return max((row.at_s + row.total_s for row in self.exchanges), default=0.0) - self.exchanges[0].at_s

    @property
    def conversations(self) -> int:
        return len({row.conversation for row in self.exchanges})

    def of(self, *modes: str) -> list[Exchange]:
        """Exchanges that were answered in one of these ways."""
        return [row for row in self.exchanges if row.mode in modes]

    def answers_as(self, *roles: str) -> list[RecordedAnswer]:
        """Other answers, in these roles."""
        return [answer for answer in self.answers if answer.role in roles]


def read(store: Counting, task: str | None, since_s: float | None = None,
         until_s: float | None = None) -> TrafficOverview:
    """The traffic of `task`, or of the only one that there is; EvidenceError if that is not clear, or there is none."""
    rows = [_light(row) for row in store.exchanges(Query(task=task, since_s=since_s, until_s=until_s))]
    tasks = Counter(row.task for row in rows)
    if not rows:
        known = Counter(row.task for row in store.exchanges(Query(limit=10_000)))
        raise EvidenceError("no requests were captured" + (f" of the task {task!r}" if task is not None else "")
                            + (" in this time" if since_s is not None or until_s is not None else ""),
                            hint=f"tasks are: {_counted(known)}" if known else
                            "brise serve --upstream URL captures them")
    if len(tasks) > 1:
        raise EvidenceError(f"the store has traffic of {len(tasks)} tasks: {_counted(tasks)}",
                            hint="choose one with --task")
    name = next(iter(tasks))
    ids = [row.id for row in rows]
    parts = [ids[at:at + _AT_ONCE] for at in range(0, len(ids), _AT_ONCE)]
    return TrafficOverview(
        name, tuple(rows), tuple(replace(answer, response=None) for part in parts for answer in store.answers(part)),
        tuple(label for part in parts for label in store.labels(part)),
        tuple(entry for entry in store.ledger() if entry.body.get("task") == name),
        len(store.pending(10_000)), not_written(store.skipped()))


def _light(row: Exchange) -> Exchange:
    return replace(row, request=None, response=None)


def _counted(tasks: Counter[str]) -> str:
    return ", ".join(f"{task} ({count})" for task, count in tasks.most_common(10))
