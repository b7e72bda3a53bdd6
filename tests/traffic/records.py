"""Exchanges and what belongs to them, for tests of whatever reads or writes a store."""

from __future__ import annotations

from dataclasses import replace

from brise.dialects.bodies import Usage
from brise.traffic.records import Exchange, Label, RecordedAnswer

FULL = Exchange(
    id="full", at_s=1000.25, task="triage", kind="chat", path="/v1/chat/completions", model="gpt-x", mode="hosted",
    status=200, conversation="talk", parent="before", subject="anna", labels={"route": "a", "team": "b\"c"},
    served_by="gpt-x-2026", fingerprint="fp_1", context_digest="ab" * 32, error=None, streamed=True,
    usage=Usage(12, 3, 4), cost_usd=0.00125, first_token_s=0.25, total_s=1.5, signals={"margin": 0.75},
    audit_probability=0.125, request={"model": "gpt-x", "messages": [{"role": "user", "content": "Grüße\n\"x\""}]},
    response={"choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}]})
PLAIN = Exchange("plain", 1.0, "t", "other", "/v1/x", "m", "failed", 502, "c")


def exchange(id: str, at_s: float = 1.0, **changes: object) -> Exchange:
    """A small exchange with content; `changes` are fields."""
    made = replace(PLAIN, id=id, at_s=at_s, conversation=id, kind="chat", mode="hosted", status=200,
                   request={"messages": [{"role": "user", "content": f"question {id}"}]},
                   response={"choices": [{"message": {"role": "assistant", "content": f"answer {id}"}}]})
    return replace(made, **changes)  # type: ignore[arg-type]


def answer(id: str, exchange: str, at_s: float = 2.0, **changes: object) -> RecordedAnswer:
    """The candidate's answer in the shadow."""
    made = RecordedAnswer(id, exchange, at_s, "shadow",
                          response={"choices": [{"message": {"content": f"shadow {id}"}}]})
    return replace(made, **changes)  # type: ignore[arg-type]


def label(id: str, exchange: str, at_s: float = 3.0, **changes: object) -> Label:
    """A person's."""
    return replace(Label(id, exchange, at_s, "human", "eva", 1.0, note="well said"),
                   **changes)  # type: ignore[arg-type]
