"""An in-car assistant that knows how the car is, and may have to call several functions for one utterance.

An utterance joins one to three requests of the workload's phrasings (workload.py), and some that mean nothing without
the car's state: "heat all seats that are taken". Held out are the same phrasings and values as there, a fifth of the
phrasings here, and all ways to join three requests. Deterministic by its seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from brise.demo.slots import SLOTS
from brise.demo.workload import ARGUMENTS, FunctionCall, Workload
from brise.robots.call_rules import CallRules, parse_call_rules

SEATS = ("driver", "passenger", "rear_left", "rear_right")
SYSTEM = """You are the assistant of a car. The first line is its state. Answer with a JSON list of calls: climate(zone,
celsius), seat_heating(seat, level), window(window, position), light(light, state), ambient(color), navigate(to, avoid),
find(kind, where), play(what), volume(level), call(contact), message(contact, text), charge_limit(percent),
door(door, action), recline(seat, to), none()"""
RULES = "car_rules.toml"

_SHARES = ((0.45, 1), (0.85, 2), (1.01, 3))  # how many requests an utterance has
_JOINS = (" and ", ", and ", ". Then ", ", then ", "; also ", ". Oh, and ")
_HELD_OUT_EVERY = 5
_DOORS: Mapping[str, str] = {"driver": "my door", "passenger": "the passenger door", "rear_left": "the left rear door",
                             "rear_right": "the right rear door", "trunk": "the trunk", "all": "all doors"}
_SAID_SEATS: Mapping[str, str] = {"driver": "my seat", "passenger": "the passenger seat",
                                  "rear_left": "the left rear seat", "rear_right": "the right rear seat"}
# (function, fixed arguments, phrasings): of doors and seats, which the workload does not have
_DOOR = (
    ({"action": "open"}, ("open {door}", "can you open {door}", "let {door} open", "I want {door} open",
                          "get {door} open")),
    ({"action": "lock"}, ("lock {door}", "keep {door} locked", "make sure {door} is locked", "secure {door}",
                          "put the lock on {door}")),
    ({"action": "unlock"}, ("unlock {door}", "take the lock off {door}", "release {door}", "no lock on {door}",
                            "undo the lock of {door}")))
_RECLINE = (
    ({"to": "flat"}, ("lay {seat} flat", "recline {seat} all the way", "put {seat} down flat",
                      "{seat} all the way back", "I want {seat} as flat as it goes")),
    ({"to": "upright"}, ("put {seat} upright", "{seat} upright", "bring {seat} up", "set {seat} straight",
                         "straighten {seat}")))
# What only the state gives a meaning to.
_TAKEN = ("heat all seats that are taken, level {heat}", "seat heating {heat} for everyone who is here",
          "warm the seats of all of us, {heat}", "all taken seats to heat {heat}",
          "whoever sits here gets seat heating {heat}")
_EMPTY = ("lay all empty seats flat", "recline the seats where nobody sits", "put every free seat down flat",
          "fold down what is not taken", "make the unused seats flat")
_ON_WAY = ("find {kind} where it suits our trip", "{kind}, where it fits", "look for {kind}, you know where",
           "I could use {kind}", "somewhere with {kind}")
_KEEP_ROUTE = ("same destination, but avoid {avoid}", "keep going there without {avoid}",
               "change the route to skip {avoid}", "no {avoid} on this route", "replan it around {avoid}")


@dataclass(frozen=True)
class CarState:
    """What the car reports. `route` is where it is going, None if nowhere."""

    speed_kmh: int
    seats: tuple[str, ...]
    route: str | None

    def words(self) -> str:
        """As it stands in the prompt."""
        return f"speed {self.speed_kmh} km/h; taken: {', '.join(self.seats)}; route: {self.route or 'none'}"

    def values(self) -> Mapping[str, object]:
        """As the rules read it."""
        return {"speed_kmh": self.speed_kmh, "seats": self.seats, "route": self.route or "none"}


@dataclass(frozen=True)
class Utterance:
    """What is said in which state, and the calls that it means."""

    id: str
    state: CarState
    text: str
    calls: tuple[FunctionCall, ...]

    def messages(self) -> list[dict[str, str]]:
        """What the assistant is asked."""
        return [{"role": "system", "content": SYSTEM},
                {"role": "user", "content": f"{self.state.words()}\n{self.text}"}]

    def answer(self) -> str:
        """What it should say: a JSON list without blanks."""
        return json.dumps([_plain(call) for call in self.calls], separators=(",", ":"), ensure_ascii=False)

    def row(self) -> str:
        """A line for `brise tune` and `brise eval`."""
        return json.dumps({"messages": [*self.messages(), {"role": "assistant", "content": self.answer()}],
                           "meta": {"task": "function_call", "state": dict(self.state.values())},
                           "conversation": self.id}, ensure_ascii=False) + "\n"


class CarTalk:
    """Utterances one after the other; the same seed and the same calls give the same ones."""

    def __init__(self, seed: int) -> None:
        self._seed, self._random = seed, random.Random(seed)
        self._workload = Workload(seed)
        self._used: set[str] = set()

    def utterances(self, count: int, *, is_held_out: bool) -> list[Utterance]:
        """`count` new ones: all of held-out phrasings, or none."""
        made: list[Utterance] = []
        while len(made) < count:
            state = self._state()
            draw = self._random.random()
            number = next(parts for limit, parts in _SHARES if draw < limit)
            parts = self._parts(state, number, is_held_out)
            text = self._joined([said for said, _ in parts], is_held_out)
            if text.lower() not in self._used:
                self._used.add(text.lower())
                made.append(Utterance(f"car-{self._seed}-{len(self._used):05d}", state, text,
                                      tuple(call for _, calls in parts for call in calls)))
        return made

    def _state(self) -> CarState:
        draw = self._random
        speed = 0 if draw.random() < 0.25 else draw.randrange(5, 160)
        taken = ("driver", *(seat for seat in SEATS[1:] if draw.random() < 0.4))
        return CarState(speed, taken, draw.choice(SLOTS["place"].seen)[0] if draw.random() < 0.6 else None)

    def _parts(self, state: CarState, number: int, is_held_out: bool) -> list[tuple[str, tuple[FunctionCall, ...]]]:
        """Requests of different functions, so that none takes back what another one asked for."""
        parts: list[tuple[str, tuple[FunctionCall, ...]]] = []
        while len(parts) < number:
            said, calls = self._part(state, is_held_out, alone=number == 1)
            if all(calls[0].function != before[0].function for _, before in parts):
                parts.append((said, calls))
        return parts

    def _part(self, state: CarState, is_held_out: bool, *, alone: bool) -> tuple[str, tuple[FunctionCall, ...]]:
        draw = self._random
        if draw.random() < 0.35:
            return self._own(state, is_held_out)
        while True:
            turn = self._workload.talks(1, held_out=float(is_held_out))[0].turns[0]
            if alone or turn.call.function != "none":
                return turn.text, (turn.call,)

    def _own(self, state: CarState, is_held_out: bool) -> tuple[str, tuple[FunctionCall, ...]]:
        draw = self._random
        match draw.randrange(6):
            case 0:
                fixed, texts = draw.choice(_DOOR)
                door = draw.choice(list(_DOORS))
                return (self._pick(texts, is_held_out).format(door=_DOORS[door]),
                        (FunctionCall("door", {"door": door, **fixed}),))
            case 1:
                fixed, texts = draw.choice(_RECLINE)
                seat = draw.choice(SEATS)
                return (self._pick(texts, is_held_out).format(seat=_SAID_SEATS[seat]),
                        (FunctionCall("recline", {"seat": seat, **fixed}),))
            case 2:
                words, level = draw.choice(SLOTS["heat"].seen)
                return (self._pick(_TAKEN, is_held_out).format(heat=words),
                        tuple(FunctionCall("seat_heating", {"seat": seat, "level": level}) for seat in state.seats))
            case 3 if len(state.seats) < len(SEATS):
                return (self._pick(_EMPTY, is_held_out), tuple(FunctionCall("recline", {"seat": seat, "to": "flat"})
                                                               for seat in SEATS if seat not in state.seats))
            case 4 if state.route is not None:
                words, avoid = draw.choice(SLOTS["avoid"].seen)
                return (self._pick(_KEEP_ROUTE, is_held_out).format(avoid=words),
                        (FunctionCall("navigate", {"to": state.route, "avoid": avoid}),))
        words, kind = draw.choice(SLOTS["kind"].seen)
        where = "nearby" if state.route is None else "on_route"
        return (self._pick(_ON_WAY, is_held_out).format(kind=words),
                (FunctionCall("find", {"kind": kind, "where": where}),))

    def _pick(self, texts: Sequence[str], is_held_out: bool) -> str:
        side = [text for at, text in enumerate(texts) if (at % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1) == is_held_out]
        return self._random.choice(side)

    def _joined(self, texts: Sequence[str], is_held_out: bool) -> str:
        if len(texts) == 1:
            return texts[0]
        if len(texts) == 3 and is_held_out:
            return f"{texts[0]}, {texts[1]}, and then {texts[2]}"
        words = [self._random.choice(_JOINS) for _ in texts[1:]]
        return texts[0] + "".join(word + text for word, text in zip(words, texts[1:], strict=True))


def car_rules() -> CallRules:
    """The rules of the demo's car."""
    return parse_call_rules(resources.files("brise.demo").joinpath(RULES).read_text(encoding="utf-8"), RULES)


def _plain(call: FunctionCall) -> dict[str, object]:
    order = ARGUMENTS.get(call.function, tuple(call.arguments))
    given = {name: call.arguments[name] for name in order if name in call.arguments}
    return {"name": call.function, "arguments": given}
