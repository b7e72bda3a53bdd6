"""Sums up a store: how much traffic, of which tasks and models, how fast, at what cost."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from brise.traffic.records import Exchange


@dataclass(frozen=True)
class TaskSummary:
    """One task. Times are in seconds, of answers that came; None if there are none."""

    task: str
    exchanges: int
    conversations: int
    modes: Mapping[str, int]
    errors: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None  # None if no exchange has a price
    p50_s: float | None
    p95_s: float | None
    first_p50_s: float | None


@dataclass(frozen=True)
class Summary:
    """All tasks, the busiest first, and the time span."""

    tasks: Sequence[TaskSummary]
    first_at_s: float | None
    last_at_s: float | None

    @property
    def exchanges(self) -> int:
        return sum(task.exchanges for task in self.tasks)


class _Task:
    """Counts of one task as they grow."""

    def __init__(self) -> None:
        self.modes, self.conversations = Counter[str](), set[str]()
        self.errors = self.prompt = self.completion = 0
        self.costs, self.totals, self.firsts = list[float](), list[float](), list[float]()

    def add(self, exchange: Exchange) -> None:
        self.modes[exchange.mode] += 1
        self.conversations.add(exchange.conversation)
        if exchange.error is not None or exchange.status >= 400:
            self.errors += 1
        else:
            if exchange.total_s > 0:  # imported rows may have none
                self.totals.append(exchange.total_s)
            if exchange.first_token_s is not None:
                self.firsts.append(exchange.first_token_s)
        if exchange.usage is not None:
            self.prompt += exchange.usage.prompt_tokens or 0
            self.completion += exchange.usage.completion_tokens or 0
        if exchange.cost_usd is not None:
            self.costs.append(exchange.cost_usd)

    def summary(self, name: str) -> TaskSummary:
        return TaskSummary(name, sum(self.modes.values()), len(self.conversations), dict(self.modes), self.errors,
                           self.prompt, self.completion, sum(self.costs) if self.costs else None,
                           _quantile(self.totals, 0.5), _quantile(self.totals, 0.95), _quantile(self.firsts, 0.5))


def summarise(exchanges: Iterable[Exchange]) -> Summary:
    """Reads the exchanges once."""
    tasks: defaultdict[str, _Task] = defaultdict(_Task)
    first = last = None  # type: float | None
    for exchange in exchanges:
        tasks[exchange.task].add(exchange)
        first = exchange.at_s if first is None else min(first, exchange.at_s)
        last = exchange.at_s if last is None else max(last, exchange.at_s)
    summaries = [task.summary(name) for name, task in tasks.items()]
    return Summary(sorted(summaries, key=lambda task: (-task.exchanges, task.task)), first, last)


def _quantile(values: Sequence[float], share: float) -> float | None:
    return float(np.quantile(values, share)) if values else None
