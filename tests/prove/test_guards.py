"""What must hold beside quality: each is shown where it holds, refuted or left open where it does not."""

from __future__ import annotations

import pytest

from brise.evals.example import AnsweredCall, EvalAnswer
from brise.prove import guards, scoring
from brise.prove.guards import Guard, Margins
from brise.prove.pairs import ModelAnswer, Pair
from brise.prove.scoring import complete
from brise.stats.sequential_test import NonInferiorityTest


def found(small: list[EvalAnswer], large: list[EvalAnswer], seconds: tuple[float, float] | None = None,
          margins: Margins | None = None) -> dict[str, Guard]:
    times = seconds or (None, None)
    pairs = [Pair(f"p{at}", f"log:{at}", f"u{at}", ModelAnswer(one, seconds=times[0]), ModelAnswer(other,
                                                                                                   seconds=times[1]))
             for at, (one, other) in enumerate(zip(small, large, strict=True))]
    units = complete(pairs, scoring.score(pairs, "fidelity", None))
    return {guard.name: guard for guard in guards.guards(pairs, units, margins or Margins(), NonInferiorityTest())}


def test_all_are_shown_where_both_are_alike() -> None:
    answers = [EvalAnswer('{"x": 1}')] * 400
    shown = found(answers, answers, (0.2, 0.9))
    assert {guard.verdict for guard in shown.values()} == {"promote"} and len(shown) == 4
    assert "valid JSON" in shown["valid answers"].claim


def test_broken_json_refusals_and_length_are_refuted() -> None:
    large = [EvalAnswer('{"name": "a long answer"}')] * 300
    broken = [EvalAnswer('{"x": ' if at % 5 == 0 else '{"x": 1}') for at in range(300)]
    assert found(broken, large)["valid answers"].verdict == "not good enough"
    shy = [EvalAnswer("I'm sorry, but I can't do that." if at % 5 == 0 else '{"x": 1}') for at in range(300)]
    assert found(shy, large)["refusals"].verdict == "not good enough"
    assert found([EvalAnswer("x")] * 300, large)["length"].verdict == "not good enough"


def test_without_seconds_there_is_no_latency_and_what_is_not_wanted_is_not_asked() -> None:
    answers = [EvalAnswer("yes")] * 100
    assert set(found(answers, answers)) == {"valid answers", "refusals", "length"}
    assert set(found(answers, answers, margins=Margins(valid=None, refusals=None))) == {"length"}


@pytest.mark.parametrize(("answer", "is_one"), [
    (EvalAnswer("I'm sorry, I can't help with that."), True), (EvalAnswer("As an AI I do not"), True),
    (EvalAnswer("Es tut mir leid, das geht nicht."), True), (EvalAnswer("", finish="content_filter"), True),
    (EvalAnswer("The customer is sorry."), False), (EvalAnswer("I can do that."), False),
    (EvalAnswer("Sorry", calls=(AnsweredCall("f", "{}"),)), False)])
def test_refusals_are_known_by_their_first_words(answer: EvalAnswer, is_one: bool) -> None:
    assert guards.is_refusal(answer) is is_one
    assert guards.is_refusal(EvalAnswer("nope, sir"), "^nope")
