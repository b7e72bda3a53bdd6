"""Outcome labels of the demo: every answer is compared with what was meant, once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brise.demo import outcomes
from brise.demo.drive import TASK
from brise.demo.stand_in import truth_of
from brise.demo.workload import Workload
from brise.traffic.records import Exchange, RecordedAnswer
from brise.traffic.stores import open_store

TALK = next(talk for talk in Workload(1).talks(100, held_out=0.0) if len(talk.turns) > 1)


def said(text: str) -> Mapping[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


def exchange(id: str, number: int, text: str, request: Mapping[str, Any] | None = None) -> Exchange:
    body = request or {"messages": TALK.messages(number, ["whatever"])}
    return Exchange(id, 100.0 + number, TASK, "chat", "/v1/chat/completions", "m", "hosted", 200, TALK.id, request=body,
                    response=said(text))


def test_own_and_other_answers_get_a_score_once(tmp_path: Path) -> None:
    store = open_store(tmp_path / "traffic.sqlite", tmp_path)
    right = [turn.call.text() for turn in TALK.turns]
    store.add([exchange("one", 0, right[0]), exchange("two", 1, "I am sorry"),
               exchange("other", 0, "x", {"messages": [{"role": "user", "content": "who are you"}]})],
              [RecordedAnswer("shadow-one", "one", 100.0, "shadow", response=said("{}")),
               RecordedAnswer("shadow-two", "two", 101.0, "shadow", response=said(right[1]))])
    truth = truth_of([TALK])
    assert outcomes.write(store, truth, 0.0) == 4
    outcomes.write(store, truth, 0.0)
    labels = list(store.labels(["one", "two", "other"]))
    assert {(label.exchange, label.score) for label in labels if label.answer is None} == {("one", 1.0), ("two", 0.0)}
    assert {(label.answer, label.answer_score) for label in labels if label.answer} == {
        ("shadow-one", 0.0), ("shadow-two", 1.0)}
    store.close()
