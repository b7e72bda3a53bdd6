"""The simulated large model: right at its stated rate, otherwise when asked again, the same for the same seed."""

from __future__ import annotations

import json
from statistics import median

from brise.demo.stand_in import Nature, StandIn, truth_of
from brise.demo.workload import SYSTEM, Talk, Workload

TALKS = Workload(1).talks(2000, held_out=0.2)


def ask(stand_in: StandIn, talk: Talk) -> str:
    return stand_in.answer(talk.messages(0, [])).text


def test_it_is_right_at_the_stated_rate() -> None:
    stand_in = StandIn(truth_of(TALKS), Nature(accuracy=0.9))
    right = sum(ask(stand_in, talk) == talk.turns[0].call.text() for talk in TALKS)
    assert abs(right / len(TALKS) - 0.9) < 0.02


def test_a_mistake_is_never_the_right_answer() -> None:
    stand_in = StandIn(truth_of(TALKS), Nature(accuracy=0.0))
    answers = [(ask(stand_in, talk), talk.turns[0].call) for talk in TALKS]
    assert not [call for text, call in answers
                if text[0] == "{" and json.loads(text) == {"name": call.function, "arguments": dict(call.arguments)}]
    assert any(text[0] != "{" for text, _ in answers)


def test_the_same_seed_makes_the_same_mistakes_and_asking_again_makes_others() -> None:
    first, second = (StandIn(truth_of(TALKS), Nature(accuracy=0.5)) for _ in range(2))
    answers = [ask(first, talk) for talk in TALKS[:200]]
    assert answers == [ask(second, talk) for talk in TALKS[:200]]
    assert answers != [ask(first, talk) for talk in TALKS[:200]]


def test_a_second_request_is_known_after_any_first_answer() -> None:
    talk = next(talk for talk in TALKS if len(talk.turns) > 1)
    spoken = StandIn(truth_of(TALKS), Nature(accuracy=1.0)).answer(talk.messages(1, ["whatever"]))
    assert spoken.text == talk.turns[1].call.text()


def test_what_is_not_of_the_workload_is_no_function() -> None:
    spoken = StandIn({}, Nature(accuracy=1.0)).answer([{"role": "user", "content": "hm"}])
    assert json.loads(spoken.text)["name"] == "none"


def test_it_is_slow_and_counts_tokens() -> None:
    stand_in = StandIn(truth_of(TALKS), Nature(median_s=0.6))
    spoken = [stand_in.answer(talk.messages(0, [])) for talk in TALKS]
    assert 0.55 < median(each.wait_s for each in spoken) < 0.65
    assert all(each.prompt_tokens > len(SYSTEM) // 4 and each.completion_tokens > 5 for each in spoken)
