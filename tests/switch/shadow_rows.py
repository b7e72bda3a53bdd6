"""Shadowed traffic with a known truth: the small model's answers, as sure as they are likely to be right."""

from __future__ import annotations

from typing import Any

import numpy as np

from brise.traffic.records import Exchange, Label, RecordedAnswer
from brise.traffic.sql_store import SqlStore
from tests.gateway.fake_answers import chat_body
from tests.stats.test_thresholds_plan import APART

Written = tuple[list[Exchange], list[RecordedAnswer], list[Label]]


def shadowed(number: int, error: float = 0.12, *, seed: int = 0, turns: int = 1, knows: bool = True) -> Written:
    """`number` conversations of `turns` requests. If it `knows`, its log-probability ranks with an AUROC of 0.90."""
    rng, exchanges, answers = np.random.default_rng(seed), list[Exchange](), list[RecordedAnswer]()
    for conversation in range(number):
        for turn in range(turns):
            wrong = rng.random() < error
            id, at_s = f"{conversation:05d}-{turn}", 1000.0 + 10 * conversation + turn
            request = {"model": "calls", "messages": [{"role": "user", "content": f"request {conversation} {turn}"}]}
            exchanges.append(Exchange(
                id, at_s, "calls", "chat", "/v1/chat/completions", "calls", "hosted", 200, f"c{conversation}",
                served_by="hosted-1", cost_usd=0.01, request=request, response=chat_body(f"right {conversation}")))
            surprise = float(rng.normal()) - APART * wrong * knows
            measured = {"veto": 0.0, "logprob": surprise, "length": float(rng.normal())}
            text = f"wrong {conversation}" if wrong else f"right {conversation}"
            answers.append(RecordedAnswer(f"a-{id}", id, at_s, "shadow", "small", signals=measured,
                                          response=chat_body(text)))
    return exchanges, answers, []


def put(store: SqlStore, written: Written) -> None:
    """Into the store."""
    store.add(*written)


def judged(written: Written, scores: dict[str, float], rung: Any = "human") -> Written:
    """With labels on these answers."""
    exchanges, answers, _ = written
    labels = [Label(f"l-{answer.id}", answer.exchange, answer.at_s, rung, "a tester", answer=answer.id,
                    answer_score=scores[answer.id]) for answer in answers if answer.id in scores]
    return exchanges, answers, labels
