"""Captured traffic whose truth was planted: the rows of a log, as a gateway would have written them down."""

from __future__ import annotations

from collections.abc import Sequence

from brise.traffic.records import Exchange, Label, RecordedAnswer
from brise.traffic.store import TrafficStore
from tests.prove.logs import Row

TASK = "tickets"


def fill(store: TrafficStore, rows: Sequence[Row], *, labelled: bool = True, task: str = TASK,
         fingerprint: str | None = None) -> None:
    """Exchanges with the large model's answer, shadows with the small one's; outcomes of both if `labelled`."""
    store.add([_exchange(row, task) for row in rows], [_shadow(row, fingerprint) for row in rows],
              [label for row in rows for label in _outcomes(row)] if labelled else [])


def body(text: str, model: str) -> dict[str, object]:
    """A chat completion."""
    return {"model": model, "choices": [{"index": 0, "finish_reason": "stop",
                                         "message": {"role": "assistant", "content": text}}]}


def _exchange(row: Row, task: str) -> Exchange:
    large = row["large"]
    return Exchange(
        id=row["id"], at_s=row["at"], task=task, kind="chat", path="/v1/chat/completions", model="big", mode="hosted",
        status=200, conversation=row["conversation"], labels=row["labels"], served_by="big",
        fingerprint=large["fingerprint"], context_digest=row.get("context"), total_s=large["seconds"],
        request={"model": "big", "messages": [{"role": "user", "content": row["prompt"]}]},
        response=body(large["content"], "big"))


def _shadow(row: Row, fingerprint: str | None) -> RecordedAnswer:
    small = row["small"]
    return RecordedAnswer(id=f"s-{row['id']}", exchange=row["id"], at_s=row["at"], role="shadow",
                          served_by=small["model"],
                          fingerprint=fingerprint, total_s=small["seconds"], response=body(small["content"],
                                                                                           small["model"]))


def _outcomes(row: Row) -> list[Label]:
    """In two lines: what the user did with the answer is known at another time than what a test run gave."""
    about = {"exchange": row["id"], "at_s": row["at"] + 1, "rung": "outcome", "who": "tests"}
    return [Label(id=f"l1-{row['id']}", score=float(row["large"]["content"] == row["reference"]), **about),
            Label(id=f"l2-{row['id']}", answer=f"s-{row['id']}",
                  answer_score=float(row["small"]["content"] == row["reference"]), **about)]
