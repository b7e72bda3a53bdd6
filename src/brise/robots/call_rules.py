"""Rules that decide whether a function that a model called may run: at once, after a person has confirmed it, or never.

A TOML file has the rules. The model's words decide nothing: a rule sees the function, its arguments, and the state that
the vehicle itself reports.

    functions = ["window", "door"]     # all others are refused; without this line every function is known
    seconds = 20                       # that a confirmation is good for; this is the default

    [[rules]]
    function = "door"
    arguments = { action = "open" }    # all conditions must hold; without any the rule always does
    state = { speed_kmh = { over = 0 } }
    then = "refuse"                    # or "confirm"
    because = "the car moves"

A condition is a value, a list of values, or a table with `over`, `under` (numbers), `is` or `not` (a value or a list).
Of a state that is a list, such as the seats that are taken, it holds if it does for any item. **What is not known
counts as dangerous**: a condition on a state that was not reported, or on an argument that is not there or of another
type, holds.
"""

from __future__ import annotations

import math
import secrets
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

from brise.errors import RequestError, UnsupportedError
from brise.evals import compare

MAX_FILE_BYTES = 256 << 10
MAX_HELD = 1000
CONFIRM_S, MAX_SECONDS = 20.0, 3600  # that a confirmation is good for

Decision = Literal["run", "confirm", "refuse"]
State = Mapping[str, object]
_STRICTER: Mapping[Decision, int] = MappingProxyType({"run": 0, "confirm": 1, "refuse": 2})


class Called(Protocol):
    """A call as a model writes it: `brise.ToolCall` is one."""

    @property
    def name(self) -> str:
        """The function."""

    @property
    def arguments_json(self) -> str:
        """Its arguments, an object in JSON."""


@dataclass(frozen=True)
class Condition:
    """What a value must be. `over` and `under` are for numbers; `is_one_of` and `is_none_of` for any."""

    over: float | None = None
    under: float | None = None
    is_one_of: tuple[object, ...] | None = None
    is_none_of: tuple[object, ...] | None = None

    def holds(self, value: object) -> bool:
        """Whether it holds, or may: what is missing (None) or of another type is not known to be harmless."""
        if isinstance(value, list | tuple):
            return any(self.holds(item) for item in value)
        if self.over is not None or self.under is not None:
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                return True
            if not ((self.over is None or value > self.over) and (self.under is None or value < self.under)):
                return False
        if value is None:
            return True
        if self.is_one_of is not None and not any(_may_equal(value, each) for each in self.is_one_of):
            return False
        return self.is_none_of is None or not any(_equal(value, each) for each in self.is_none_of)


@dataclass(frozen=True)
class CallRule:
    """Of calls of `function` whose arguments and state are as it says: `then` is what happens to them."""

    function: str
    then: Decision
    because: str
    arguments: Mapping[str, Condition] = field(default_factory=lambda: MappingProxyType({}))
    state: Mapping[str, Condition] = field(default_factory=lambda: MappingProxyType({}))

    def holds(self, function: str, arguments: Mapping[str, object], state: State) -> bool:
        """Whether the rule is for this call, now."""
        return function == self.function and all(
            condition.holds(values.get(name)) for conditions, values in
            ((self.arguments, arguments), (self.state, state)) for name, condition in conditions.items())


@dataclass(frozen=True)
class JudgedCall:
    """A call, what happens to it, and why, by the rules that said so."""

    name: str
    arguments: Mapping[str, object]
    decision: Decision
    because: tuple[str, ...] = ()


@dataclass(frozen=True)
class CallRules:
    """The rules of one vehicle. `functions` are those that there are; None: any. A confirmation is good for `seconds`.
    """

    rules: tuple[CallRule, ...]
    functions: frozenset[str] | None = None
    seconds: float = CONFIRM_S

    def judge(self, call: Called, state: State) -> JudgedCall:
        """What happens to a call now; the strictest rule decides. One whose arguments are no object is refused."""
        arguments = _arguments(call.arguments_json)
        if arguments is None:
            return JudgedCall(call.name, {}, "refuse", ("its arguments are no JSON object",))
        return self._judged(call.name, arguments, state)

    def again(self, judged: JudgedCall, state: State) -> JudgedCall:
        """What happens to the same call in another state."""
        return self._judged(judged.name, judged.arguments, state)

    def _judged(self, function: str, arguments: Mapping[str, object], state: State) -> JudgedCall:
        if self.functions is not None and function not in self.functions:
            return JudgedCall(function, arguments, "refuse", ("there is no such function",))
        held = [rule for rule in self.rules if rule.holds(function, arguments, state)]
        decision: Decision = "run"
        for rule in held:
            decision = max(decision, rule.then, key=_STRICTER.__getitem__)
        return JudgedCall(function, arguments, decision, tuple(rule.because for rule in held if rule.then == decision))


@dataclass(frozen=True)
class SubmittedCalls:
    """The calls of one answer: those that run now, those that wait for a person by number, those that are refused."""

    run: tuple[JudgedCall, ...]
    to_confirm: Mapping[int, JudgedCall]
    refused: tuple[JudgedCall, ...]


class ConfirmationDesk:
    """Keeps the calls that wait for a person; `seconds` overrides the rules'. For one thread at a time.

    A confirmation comes from outside of the model, such as a button: it is good for one call, for `seconds`, and for
    the state at that time. What has become dangerous since it was asked is refused.
    """

    def __init__(self, rules: CallRules, seconds: float | None = None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        seconds = rules.seconds if seconds is None else seconds
        if not 0 < seconds <= MAX_SECONDS:
            raise UnsupportedError(f"a confirmation is good for {seconds} s, allowed is over 0, up to {MAX_SECONDS}")
        self._rules, self._seconds, self._clock = rules, seconds, clock
        self._held: dict[int, tuple[JudgedCall, float]] = {}

    def submit(self, calls: Sequence[Called], state: State) -> SubmittedCalls:
        """Judges the calls of an answer, each by itself, in the state before any of them runs."""
        judged = [self._rules.judge(call, state) for call in calls]
        to_confirm: dict[int, JudgedCall] = {}
        for call in judged:
            if call.decision == "confirm":
                number = self._new_number()
                to_confirm[number] = call
                self._held[number] = call, self._clock() + self._seconds
        for number in list(self._held)[:-MAX_HELD]:
            del self._held[number]
        return SubmittedCalls(tuple(call for call in judged if call.decision == "run"), to_confirm,
                              tuple(call for call in judged if call.decision == "refuse"))

    def _new_number(self) -> int:
        """One that nobody can know before it is shown."""
        while (number := 100_000 + secrets.randbelow(900_000)) in self._held:
            pass
        return number

    def confirm(self, number: int, state: State) -> JudgedCall:
        """The call that a person has confirmed: to run, or refused if it has become dangerous.

        RequestError if nothing waits under this number, or does no longer.
        """
        call, until = self._held.pop(number, (None, 0.0))
        if call is None or self._clock() > until:
            raise RequestError(f"no call waits for confirmation {number}", param="confirmation",
                               hint=f"a confirmation is good for {self._seconds:g} s, and once")
        judged = self._rules.again(call, state)
        return JudgedCall(call.name, call.arguments, "refuse" if judged.decision == "refuse" else "run",
                          judged.because)

    def waiting(self, number: int) -> JudgedCall | None:
        """The call that waits under this number, if one still does."""
        call, until = self._held.get(number, (None, 0.0))
        return None if self._clock() > until else call

    def decline(self, number: int) -> None:
        """Forgets a call that a person did not want; also one that does not wait."""
        self._held.pop(number, None)


def read_call_rules(path: Path) -> CallRules:
    """The rules in a TOML file; UnsupportedError names what is wrong in it."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise UnsupportedError(f"{path}: the file has over {MAX_FILE_BYTES} bytes, which no rules need")
        return parse_call_rules(data.decode(), path.name)
    except OSError as error:
        raise UnsupportedError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UnsupportedError(f"{path}: this is no TOML: {error}") from error


def parse_call_rules(text: str, name: str = "rules") -> CallRules:
    """The rules of TOML text; UnsupportedError names what is wrong in it."""
    try:
        value = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UnsupportedError(f"{name}: this is no TOML: {error}") from error
    _only(value, ("functions", "seconds", "rules"), name)
    functions, rules = value.get("functions"), value.get("rules", [])
    if functions is not None and not (isinstance(functions, list) and all(isinstance(each, str) for each in functions)):
        raise UnsupportedError(f"{name}: 'functions' is {functions!r}, a list of names is allowed")
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise UnsupportedError(f"{name}: 'rules' is no list of tables", hint="each begins with [[rules]]")
    seconds = value.get("seconds", CONFIRM_S)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= MAX_SECONDS:
        raise UnsupportedError(f"{name}: 'seconds' is {seconds!r}, allowed is over 0, up to {MAX_SECONDS}")
    known = None if functions is None else frozenset(functions)
    return CallRules(tuple(_rule(rule, f"{name}: rule {number}", known) for number, rule in enumerate(rules, 1)), known,
                     float(seconds))


def _rule(rule: Mapping[str, Any], place: str, known: frozenset[str] | None) -> CallRule:
    _only(rule, ("function", "arguments", "state", "then", "because"), place)
    function, then, because = (rule.get(name) for name in ("function", "then", "because"))
    if not isinstance(function, str) or (known is not None and function not in known):
        among = "a name" if known is None else f"one of {', '.join(sorted(known))}"
        raise UnsupportedError(f"{place}: 'function' is {function!r}, {among} is allowed")
    if then not in ("confirm", "refuse"):
        raise UnsupportedError(f"{place}: 'then' is {then!r}, allowed is 'confirm' or 'refuse'")
    if not isinstance(because, str) or not because.strip():
        raise UnsupportedError(f"{place}: 'because' is {because!r}, a reason that a person reads is needed")
    conditions = [rule.get(name, {}) for name in ("arguments", "state")]
    if not all(isinstance(each, dict) for each in conditions):
        raise UnsupportedError(f"{place}: 'arguments' and 'state' are tables of conditions by name")
    arguments, state = ({name: _condition(each, f"{place}: {name!r}") for name, each in values.items()}
                        for values in conditions)
    return CallRule(function, then, because, arguments, state)


def _condition(value: object, place: str) -> Condition:
    if not isinstance(value, dict):
        return Condition(is_one_of=_values(value, place))
    _only(value, ("over", "under", "is", "not"), place)
    limits = [value.get(name) for name in ("over", "under")]
    if not value or any(limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float)
                                               or not math.isfinite(limit)) for limit in limits):
        raise UnsupportedError(f"{place}: the condition is {value!r}; 'over' and 'under' take a number")
    over, under = limits
    return Condition(over, under, _values(value["is"], place) if "is" in value else None,
                     _values(value["not"], place) if "not" in value else None)


def _values(value: object, place: str) -> tuple[object, ...]:
    values = tuple(value) if isinstance(value, list) else (value,)
    if not values or not all(isinstance(each, str | bool | int | float) for each in values):
        raise UnsupportedError(f"{place}: {value!r} is no text, number, true or false, nor a list of them")
    return values


def _only(table: Mapping[str, object], allowed: Sequence[str], place: str) -> None:
    for name in table:
        if name not in allowed:
            raise UnsupportedError(f"{place}: there is no {name!r}, there are: {', '.join(allowed)}")


def _equal(value: object, other: object) -> bool:
    """Whether they are the same; texts without case and blanks at their ends, since a model may write them otherwise.
    """
    if isinstance(value, str) and isinstance(other, str):
        return value.strip().casefold() == other.strip().casefold()
    return _kind(value) == _kind(other) and value == other


def _may_equal(value: object, other: object) -> bool:
    """The same, and for values of different kinds, of which nobody knows what the vehicle makes of them."""
    return _equal(value, other) or _kind(value) != _kind(other)


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "truth"
    return "text" if isinstance(value, str) else "number" if isinstance(value, int | float) else "other"


def _arguments(text: str) -> dict[str, object] | None:
    """The object that the text is; a name that is given twice means different things to different readers."""
    value = compare.parse(text or "{}")
    return value if isinstance(value, dict) else None
