"""The car that knows its state: utterances of several calls, what is held out, and what its rules hold back."""

from __future__ import annotations

import json

from brise.api.answers import ToolCall
from brise.demo.car_talk import SEATS, SYSTEM, CarTalk, car_rules


def test_the_same_seed_gives_the_same_utterances_and_none_comes_twice() -> None:
    first, again = (CarTalk(5).utterances(200, is_held_out=True) for _ in range(2))
    assert first == again
    assert len({each.text.lower() for each in first}) == 200


def test_utterances_have_up_to_three_requests_of_functions_that_the_prompt_names() -> None:
    made = CarTalk(1).utterances(600, is_held_out=False)
    counts = {len({call.function for call in each.calls}) for each in made}
    assert counts == {1, 2, 3}
    assert all(f"{call.function}(" in SYSTEM for each in made for call in each.calls)
    assert all(json.loads(each.answer())[0]["name"] == each.calls[0].function for each in made)


def test_the_same_words_mean_other_calls_in_another_state() -> None:
    made = [each for each in CarTalk(2).utterances(1500, is_held_out=False) if "who is here" in each.text]
    heated = {frozenset(str(call.arguments["seat"]) for call in each.calls if call.function == "seat_heating"):
              each.state for each in made}
    assert len(heated) > 3 and all(seats == set(state.seats) for seats, state in heated.items())
    assert all(set(state.seats) <= set(SEATS) for state in heated.values())


def test_held_out_phrasings_are_in_no_training_row() -> None:
    seen = " ".join(each.text.lower() for each in CarTalk(3).utterances(1500, is_held_out=False))
    held_out = " ".join(each.text.lower() for each in CarTalk(4).utterances(300, is_held_out=True))
    for words in ("make the unused seats flat", "replan it around", "whoever sits here", "and then"):
        assert words in held_out and words not in seen


def test_the_rules_hold_back_every_dangerous_call_of_the_right_answers() -> None:
    rules, refused, confirmed = car_rules(), 0, 0
    for each in CarTalk(6).utterances(800, is_held_out=False):
        state = each.state.values()
        for call in each.calls:
            judged = rules.judge(ToolCall("", call.function, json.dumps(call.arguments)), state)
            opens = call.function == "door" and call.arguments["action"] != "lock"
            moves = call.function == "recline" and call.arguments["seat"] == "driver"
            if (opens or moves) and each.state.speed_kmh > 0:
                assert judged.decision == "refuse"
                refused += 1
            elif opens or call.function == "message":
                assert judged.decision == "confirm"
                confirmed += 1
    assert refused > 20 and confirmed > 20
