"""Sums up a store: how much traffic, of which tasks and models, how fast, at what cost."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from brise.traffic.records import CLIENT_GONE, Exchange, KnownSum


@dataclass(frozen=True)
class TaskSummary:
    """One task. Times are in seconds, of answers that came; None if there are none."""

    task: str
    exchanges: int
    conversations: int
    modes: Mapping[str, int]
    errors: int
    prompt_tokens: int  # of those that are known: a lower bound if `tokens_known` is less than `answered`
    completion_tokens: int
    cost_usd: float | None  # a lower bound if `cost_known` is less than `answered`, None if it is 0
    p50_s: float | None
    p95_s: float | None
    first_p50_s: float | None
    answered: int  # requests of which the client got an answer, or a part of one
    tokens_known: int  # of those
    cost_known: int
    other: Mapping[str, KnownSum]  # by role, what was asked besides: audits, shadows, repeated requests

    @property
    def cost(self) -> KnownSum:
        """Of the answers that clients got."""
        return KnownSum(self.cost_usd, self.cost_known, self.answered)


@dataclass(frozen=True)
class Summary:
    """All tasks, the busiest first, and the time span."""

    tasks: Sequence[TaskSummary]
    first_at_s: float | None
    last_at_s: float | None

    @property
    def exchanges(self) -> int:
        return sum(task.exchanges for task in self.tasks)

    @property
    def cost(self) -> KnownSum:
        """Of all tasks."""
        known = [task.cost_usd for task in self.tasks if task.cost_usd is not None]
        return KnownSum(sum(known) if known else None, sum(task.cost_known for task in self.tasks),
                        sum(task.answered for task in self.tasks))


class _Task:
    """Counts of one task as they grow."""

    def __init__(self) -> None:
        self.modes, self.conversations = Counter[str](), set[str]()
        self.errors = self.prompt = self.completion = self.answered = self.tokens_known = 0
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
        usage, usd = exchange.usage, exchange.cost_usd
        if usage is not None:
            self.prompt += usage.prompt_tokens or 0
            self.completion += usage.completion_tokens or 0
        if is_answered(exchange) or usd is not None:
            self.answered += 1
            self.tokens_known += usage is not None and usage.total_tokens is not None
            if usd is None and exchange.mode == "small":  # brise 0.2 did not write it down
                usd = 0.0
            if usd is not None:
                self.costs.append(usd)

    def summary(self, name: str, other: Mapping[str, KnownSum]) -> TaskSummary:
        return TaskSummary(name, sum(self.modes.values()), len(self.conversations), dict(self.modes), self.errors,
                           self.prompt, self.completion, sum(self.costs) if self.costs else None,
                           _quantile(self.totals, 0.5), _quantile(self.totals, 0.95), _quantile(self.firsts, 0.5),
                           self.answered, self.tokens_known, len(self.costs), other)


def is_answered(exchange: Exchange) -> bool:
    """Whether somebody has to pay for an answer: errors cost nothing, and a client that left does not end the bill."""
    return exchange.status < 400 or exchange.status == CLIENT_GONE


def summarise(exchanges: Iterable[Exchange], other: Mapping[str, Mapping[str, KnownSum]] | None = None) -> Summary:
    """Reads the exchanges once. `other` is by task and role, what other answers to them cost."""
    tasks: defaultdict[str, _Task] = defaultdict(_Task)
    first = last = None  # type: float | None
    for exchange in exchanges:
        tasks[exchange.task].add(exchange)
        first = exchange.at_s if first is None else min(first, exchange.at_s)
        last = exchange.at_s if last is None else max(last, exchange.at_s)
    summaries = [task.summary(name, (other or {}).get(name, {})) for name, task in tasks.items()]
    return Summary(sorted(summaries, key=lambda task: (-task.exchanges, task.task)), first, last)


def _quantile(values: Sequence[float], share: float) -> float | None:
    return float(np.quantile(values, share)) if values else None
