"""What a pair is worth by each rung, and which pairs wait for somebody."""

from __future__ import annotations

import numpy as np
import pytest

from brise.evals.example import AnsweredCall, EvalAnswer
from brise.prove import scoring
from brise.prove.pairs import Judgement, ModelAnswer, Pair
from brise.prove.scoring import complete


def pair(at: int, small: EvalAnswer | str, large: EvalAnswer | str, *judgements: Judgement,
         unit: str | None = None) -> Pair:
    sides = [ModelAnswer(EvalAnswer(text) if isinstance(text, str) else text) for text in (small, large)]
    return Pair(f"p{at}", f"log:{at}", unit or f"u{at}", *sides, judgements=judgements)


@pytest.mark.parametrize(("one", "other", "are_same"), [
    (EvalAnswer("a  b\n"), EvalAnswer("a b"), True),
    (EvalAnswer('{"x": 1.0, "y": 2}'), EvalAnswer('{"y": 2, "x": 1}'), True),
    (EvalAnswer("A"), EvalAnswer("a"), False), (EvalAnswer("", error="late"), EvalAnswer(""), False),
    (EvalAnswer(calls=(AnsweredCall("f", '{"a": 1, "b": 2}'),)),
     EvalAnswer(calls=(AnsweredCall("f", '{"b": 2, "a": 1}'),)), True),
    (EvalAnswer(calls=(AnsweredCall("f", "{}"),)), EvalAnswer(calls=(AnsweredCall("g", "{}"),)), False)])
def test_answers_are_the_same_if_they_say_the_same(one: EvalAnswer, other: EvalAnswer, are_same: bool) -> None:
    assert scoring.same(one, other) is are_same


def test_the_best_rung_that_speaks_of_all_pairs_that_differ_is_taken() -> None:
    same = pair(0, "a", "a")
    outcome, human = Judgement("outcome", 1, 0), Judgement("human", 0, 1)
    found = scoring.score([same, pair(1, "a", "b", outcome)], None, None)
    assert found.label_source == "outcome" and found.differences.tolist() == [0, 1]
    mixed = scoring.score([same, pair(1, "a", "b", outcome), pair(2, "a", "b", human), pair(3, "a", "b")], None, None)
    assert mixed.label_source == "human" and mixed.differences[:3].tolist() == [0, 1, -1] and mixed.is_open.tolist()[3]
    assert scoring.score([same, pair(1, "a", "b")], None, None).label_source == "fidelity"
    assert scoring.score([same], None, None).label_source == "fidelity", "no program looked, though nothing differs"
    assert scoring.score([pair(0, "a", "a", outcome)], None, None).label_source == "outcome"


def test_units_behind_an_open_pair_wait() -> None:
    human = Judgement("human", 1, 1)
    pairs = [pair(0, "a", "a", unit="x"), pair(1, "a", "b", human, unit="y"), pair(2, "a", "b", unit="z"),
             pair(3, "a", "a", unit="x"), pair(4, "a", "a", unit="w")]
    units = complete(pairs, scoring.score(pairs, "human", None))
    assert units.names == ("x", "y") and units.rows.tolist() == [0, 1, 3] and units.waiting == 2


def test_a_judge_counts_with_the_people_who_correct_it() -> None:
    judge, human = Judgement("judge", 1, 0), Judgement("human", 0, 1)
    asked = [pair(at, "a", "b", judge, human) for at in range(400)]
    found = scoring.score(asked, "judge", None, share=0.5)
    drawn = np.array([scoring.is_drawn(one, 0.5) for one in asked])
    assert 150 < drawn.sum() < 250 and found.bound == 3
    assert found.differences.tolist() == [1 - 2 / 0.5 if one else 1 for one in drawn]
    alone = scoring.score([pair(at, "a", "b", judge) for at in range(400)], "judge", None, share=0.5)
    assert (alone.is_open == drawn).all(), "only the drawn ones wait for people"
