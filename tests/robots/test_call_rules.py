"""Rules about calls: state and arguments decide, whatever a model writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.api.answers import ToolCall
from brise.errors import RequestError, UnsupportedError
from brise.robots.call_rules import Condition, ConfirmationDesk, parse_call_rules, read_call_rules

RULES = parse_call_rules("""
functions = ["door", "light", "say"]
[[rules]]
function = "door"
arguments = { action = { not = ["lock"] } }
state = { speed_kmh = { over = 0 } }
then = "refuse"
because = "the car moves"
[[rules]]
function = "door"
arguments = { action = { not = ["lock"] } }
then = "confirm"
because = "somebody may stand there"
[[rules]]
function = "light"
arguments = { level = { over = 5, under = 100 } }
state = { seats = ["rear"] }
then = "confirm"
because = "somebody sleeps"
""")
STANDS, MOVES = {"speed_kmh": 0, "seats": ["driver"]}, {"speed_kmh": 30, "seats": ["driver", "rear"]}


def call(name: str, arguments: str) -> ToolCall:
    return ToolCall("1", name, arguments)


@pytest.mark.parametrize(("name", "arguments", "state", "decision"), [
    ("door", '{"action": "open"}', STANDS, "confirm"), ("door", '{"action": "open"}', MOVES, "refuse"),
    ("door", '{"action": " LOCK "}', MOVES, "run"), ("door", '{"action": "Ouvrir"}', MOVES, "refuse"),
    ("door", '{"action": 1}', MOVES, "refuse"), ("door", "{}", MOVES, "refuse"),
    ("door", '{"action": "open"}', {}, "refuse"),
    ("door", '{"action": "open"}', {"speed_kmh": "0"}, "refuse"),
    ("door", '{"action": "open"}', {"speed_kmh": True}, "refuse"),
    ("door", '{"action": "lock", "action": "open"}', STANDS, "refuse"), ("door", '["open"]', STANDS, "refuse"),
    ("door", '{"action": "op', STANDS, "refuse"), ("trunk", "{}", STANDS, "refuse"), ("say", "{}", MOVES, "run"),
    ("light", '{"level": 7}', MOVES, "confirm"), ("light", '{"level": 7}', STANDS, "run"),
    ("light", '{"level": 5}', MOVES, "run"), ("light", '{"level": "7"}', MOVES, "confirm"),
    ("light", '{"level": 7}', {"speed_kmh": 0}, "confirm"), ("light", '{"level": 7}', {"seats": []}, "run")])
def test_the_strictest_rule_decides_and_what_is_not_known_is_dangerous(name: str, arguments: str,
                                                                       state: dict[str, object], decision: str) -> None:
    judged = RULES.judge(call(name, arguments), state)
    assert judged.decision == decision and bool(judged.because) == (decision != "run")


@given(st.text(max_size=40), st.dictionaries(st.text(max_size=8), st.one_of(st.text(), st.integers(), st.booleans())))
def test_no_words_open_a_door_of_a_car_that_moves(text: str, more: dict[str, object]) -> None:
    arguments = '{"action": "open", "confirmed": true}' if not more else text
    assert RULES.judge(call("door", arguments), {**more, "speed_kmh": 30}).decision == "refuse"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_confirmation_is_for_one_call_for_a_while_and_for_the_state_at_that_time() -> None:
    clock = Clock()
    desk = ConfirmationDesk(RULES, 10.0, clock)
    opening = call("door", '{"action": "open"}')
    calls = [opening, call("say", "{}"), call("trunk", "{}"), opening]
    submitted = desk.submit(calls, STANDS)
    assert [each.name for each in submitted.run] == ["say"] and [each.name for each in submitted.refused] == ["trunk"]
    first, second = submitted.to_confirm
    assert desk.confirm(first, STANDS).decision == "run"
    with pytest.raises(RequestError, match=f"confirmation {first}"):
        desk.confirm(first, STANDS)
    assert desk.confirm(second, MOVES).decision == "refuse"  # it has begun to drive
    (third,) = desk.submit(calls[:1], STANDS).to_confirm
    (fourth,) = desk.submit(calls[:1], STANDS).to_confirm
    desk.decline(third)
    clock.now = 10.1
    for number in (third, fourth, 99):
        with pytest.raises(RequestError, match="no call waits"):
            desk.confirm(number, STANDS)


def test_the_file_says_how_long_a_confirmation_is_good_for() -> None:
    clock, rules = Clock(), 'seconds = 3\n[[rules]]\nfunction = "door"\nthen = "confirm"\nbecause = "wind"\n'
    desk = ConfirmationDesk(parse_call_rules(rules), clock=clock)
    (number,) = desk.submit([call("door", "{}")], {}).to_confirm
    assert desk.waiting(number) is not None and 100_000 <= number < 1_000_000
    clock.now = 3.1
    assert desk.waiting(number) is None


@pytest.mark.parametrize(("text", "named"), [
    ("seconds = 0", "'seconds' is 0"), ("seconds = true", "'seconds' is True"),
    ("rules = 3", "'rules'"), ("functions = 'a'", "'functions'"), ("rule = []", "no 'rule'"), ("[[rules]", "no TOML"),
    ('[[rules]]\nfunction="a"\nthen="ask"\nbecause="b"', "'ask'"),
    ('[[rules]]\nthen="refuse"\nbecause="b"', "'function'"),
    ('[[rules]]\nfunction="a"\nthen="refuse"', "'because'"),
    ('functions=["b"]\n[[rules]]\nfunction="a"\nthen="refuse"\nbecause="c"', "one of b"),
    ('[[rules]]\nfunction="a"\nthen="refuse"\nbecause="c"\nstate={x={above=1}}', "no 'above'"),
    ('[[rules]]\nfunction="a"\nthen="refuse"\nbecause="c"\nstate={x={over="1"}}', "take a number"),
    ('[[rules]]\nfunction="a"\nthen="refuse"\nbecause="c"\nstate={x={}}', "take a number"),
    ('[[rules]]\nfunction="a"\nthen="refuse"\nbecause="c"\narguments={x=[]}', "nor a list")])
def test_a_file_that_says_something_else_is_refused_by_name(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    with pytest.raises(UnsupportedError, match=named):
        read_call_rules(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="absent.toml"):
        read_call_rules(tmp_path / "absent.toml")


def test_a_condition_without_limits_holds_for_nothing_else() -> None:
    assert Condition(is_one_of=("a",)).holds("A") and not Condition(is_one_of=("a",)).holds("b")
    assert Condition(over=1, is_none_of=(5,)).holds(2) and not Condition(over=1, is_none_of=(5,)).holds(5)
