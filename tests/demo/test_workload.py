"""The workload: one meaning for each request, what is held out stays out, noise changes no value."""

from __future__ import annotations

import json
from collections import Counter

from brise.demo import workload
from brise.demo.slots import SLOTS
from brise.demo.workload import SHARES, Workload


def test_the_same_seed_gives_the_same_conversations() -> None:
    assert Workload(7).talks(50, held_out=0.5) == Workload(7).talks(50, held_out=0.5)
    assert Workload(7).talks(50, held_out=0.5) != Workload(8).talks(50, held_out=0.5)


def test_no_request_has_two_meanings_and_none_comes_twice() -> None:
    talks = Workload(1).talks(3000, held_out=0.3)
    first = Counter(talk.turns[0].text.lower() for talk in talks)
    assert max(first.values()) == 1
    assert len({talk.id for talk in talks}) == len(talks)


def test_there_are_hundreds_of_phrasings_and_a_fifth_is_held_out() -> None:
    seen, held_out = workload.num_phrasings()
    assert seen > 200 and 0.15 < held_out / (seen + held_out) < 0.25


def test_training_traffic_has_no_held_out_value() -> None:
    held_out = {words for slot in SLOTS.values() if slot.is_open for words, _ in slot.held_out}
    said = [str(value) for talk in Workload(2).talks(2000, held_out=0.0) for turn in talk.turns
            for value in turn.call.arguments.values()]
    assert not held_out & set(said)
    assert not any(turn.is_held_out for talk in Workload(2).talks(100, held_out=0.0) for turn in talk.turns)


def test_values_that_are_copied_stand_in_the_request_letter_by_letter() -> None:
    copied = {slot.argument for slot in SLOTS.values() if slot.is_open}
    for talk in Workload(3).talks(2000, held_out=0.5):
        for name, value in talk.turns[0].call.arguments.items():
            if name in copied:
                assert str(value).lower() in talk.turns[0].text.lower()


def test_every_function_comes_with_its_arguments_in_order() -> None:
    calls = [json.loads(turn.call.text()) for talk in Workload(4).talks(3000, held_out=0.3) for turn in talk.turns]
    assert {call["name"] for call in calls} == set(SHARES) == set(workload.ARGUMENTS)
    for call in calls:
        allowed = workload.ARGUMENTS[call["name"]]
        assert [name for name in allowed if name in call["arguments"]] == list(call["arguments"])
        assert set(allowed) - set(call["arguments"]) <= {"avoid"}
        assert f"{call['name']}(" in workload.SYSTEM


def test_a_second_request_goes_on_from_the_first() -> None:
    talk = next(talk for talk in Workload(5).talks(500, held_out=0.0) if len(talk.turns) > 1)
    roles = [message["role"] for message in talk.messages(1, [talk.turns[0].call.text()])]
    assert roles == ["system", "user", "assistant", "user"]
    assert talk.turns[1].call.function == talk.turns[0].call.function
