"""What must hold beside quality: each is shown where it holds, refuted or left open where it does not."""

from __future__ import annotations

import pytest

from brise.evals.example import Answer, Call
from brise.evidence import guards, scoring
from brise.evidence.guards import Guard, Margins
from brise.evidence.pairs import Pair, Side
from brise.evidence.units import complete
from brise.proof.gate import Gate


def found(small: list[Answer], large: list[Answer], seconds: tuple[float, float] | None = None,
          margins: Margins | None = None) -> dict[str, Guard]:
    times = seconds or (None, None)
    pairs = [Pair(f"p{at}", f"log:{at}", f"u{at}", Side(one, seconds=times[0]), Side(other, seconds=times[1]))
             for at, (one, other) in enumerate(zip(small, large, strict=True))]
    units = complete(pairs, scoring.score(pairs, "fidelity", None))
    return {guard.name: guard for guard in guards.guards(pairs, units, margins or Margins(), Gate())}


def test_all_are_shown_where_both_are_alike() -> None:
    answers = [Answer('{"x": 1}')] * 400
    shown = found(answers, answers, (0.2, 0.9))
    assert {guard.verdict for guard in shown.values()} == {"promote"} and len(shown) == 4
    assert "valid JSON" in shown["valid answers"].claim


def test_broken_json_refusals_and_length_are_refuted() -> None:
    large = [Answer('{"name": "a long answer"}')] * 300
    broken = [Answer('{"x": ' if at % 5 == 0 else '{"x": 1}') for at in range(300)]
    assert found(broken, large)["valid answers"].verdict == "not good enough"
    shy = [Answer("I'm sorry, but I can't do that." if at % 5 == 0 else '{"x": 1}') for at in range(300)]
    assert found(shy, large)["refusals"].verdict == "not good enough"
    assert found([Answer("x")] * 300, large)["length"].verdict == "not good enough"


def test_without_seconds_there_is_no_latency_and_what_is_not_wanted_is_not_asked() -> None:
    answers = [Answer("yes")] * 100
    assert set(found(answers, answers)) == {"valid answers", "refusals", "length"}
    assert set(found(answers, answers, margins=Margins(valid=None, refusals=None))) == {"length"}


@pytest.mark.parametrize(("answer", "is_one"), [
    (Answer("I'm sorry, I can't help with that."), True), (Answer("As an AI I do not"), True),
    (Answer("Es tut mir leid, das geht nicht."), True), (Answer("", finish="content_filter"), True),
    (Answer("The customer is sorry."), False), (Answer("I can do that."), False),
    (Answer("Sorry", calls=(Call("f", "{}"),)), False)])
def test_refusals_are_known_by_their_first_words(answer: Answer, is_one: bool) -> None:
    assert guards.is_refusal(answer) is is_one
    assert guards.is_refusal(Answer("nope, sir"), "^nope")
