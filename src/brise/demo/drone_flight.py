"""One mission of the simulated drone in real time: the pilot's loop moves it, a model is asked, a fault comes."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from brise.report.plan_view import PlanView, StandingThing, Track
from brise.robots import gate_course, gate_task
from brise.robots.acting_server import ActingServer, Messages
from brise.robots.command_queue import LateFallback, SentCommand
from brise.robots.gate_course import SPACE, Flight
from brise.robots.pilot import Pilot, PilotOptions, PolicyAnswer, TickTimes
from brise.robots.quadrotor import Floats, States
from brise.text.action_space import ActionSpace

PERIOD_S = 0.1  # of the control loop
REACH_S = 0.8  # for which an answer is good: twice the time that it was trained for
HOLD_S, HOVER_S = 0.2, 4.0  # of the fallback, before it lands
SINK = -0.6  # m/s
SHORTENED = PERIOD_S / gate_course.TICK_S

Fault = Literal["none", "stall", "kill"]


def land(last: Floats) -> Floats:
    """The command that sinks on the spot."""
    command = SPACE.brake.copy()
    command[gate_course.MOVES[2]] = SINK
    return command


FALLBACK = LateFallback("hold", HOLD_S, "brake", HOVER_S, "scripted:land", scripts={"land": land})
LOOP_SPACE: ActionSpace = replace(SPACE, period_s=PERIOD_S, values=tuple(
    replace(value, max_change=None if value.max_change is None else value.max_change * SHORTENED)
    for value in SPACE.values))


class LongerAnswers:
    """The model's one step for as many ticks as it is good for."""

    def __init__(self, server: ActingServer) -> None:
        self._server = server

    def decide(self, observation: Messages, deadline_s: float) -> PolicyAnswer:
        """The server's answer, repeated."""
        answer = self._server.decide(observation, deadline_s)
        return PolicyAnswer(np.repeat(answer.commands[:1], round(REACH_S / PERIOD_S), axis=0), answer.is_late)


@dataclass
class FlownMission:
    """A mission: how it ended, where it went, where each command came from, and the loop's times."""

    flight: Flight
    fault: Fault
    ending: str = ""
    places: list[tuple[float, float, float]] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    has_fault: bool = False  # it came before the mission ended
    largest_step: float = 0.0  # of a command, in shares of its rate
    times: TickTimes = field(default_factory=TickTimes)

    def picture(self, title: str) -> PlanView:
        """The way from above, by where its commands came from."""
        course = self.flight.course
        things = [StandingThing(x, y, gate_course.NEAR, color) for color, (x, y) in course.gates.items()]
        things += [StandingThing(x, y, radius, is_solid=True) for x, y, radius in course.cylinders]
        last = self.places[-1]
        tracks = [self._track("the model", {"model"}), self._track("held, hovering", {"hold", "brake"}),
                  self._track("landing", {"scripted"})]
        return PlanView(title, f"{self.flight.mission.text}: {self.ending}", gate_course.HALL, things, tracks,
                        [("start", *course.start), ("end", last[0], last[1] - 0.9)])

    def _track(self, name: str, sources: set[str]) -> Track:
        xs, ys = list[float](), list[float]()
        for before, after, source in zip(self.places, self.places[1:], self.sources, strict=False):
            for place in ((before, after) if source in sources else ((math.nan, math.nan, 0.0),)):
                xs.append(place[0])
                ys.append(place[1])
        return Track(name, xs, ys)


def fly(flight: Flight, states: States, server: ActingServer, fault: Fault, cause: Callable[[], None],
        fault_at_s: float = 3.0, most_s: float = 60.0) -> FlownMission:
    """Flies one mission of one vehicle. `cause` makes the fault, on a thread of its own, `fault_at_s` after the start.

    With a killed engine the mission is over, and what is left is to land.
    """
    flown, lock = FlownMission(flight, fault), threading.Lock()
    state, ticks, last = states, 0, None

    def observe() -> Messages:
        with lock:
            return gate_task.messages_of(flight, state, 0)

    def guard(wanted: Floats, low: Floats, high: Floats) -> Floats:
        return gate_course.guard(flight, state, 0)(wanted, low, high)

    def send(command: SentCommand) -> None:
        nonlocal state, ticks, last
        if last is not None:
            rates = np.array([math.inf if value.max_change is None else value.max_change
                              for value in LOOP_SPACE.values])
            flown.largest_step = max(flown.largest_step, float((np.abs(command.values - last) / rates).max()))
        last = command.values
        flown.places.append(_place(state))
        flown.sources.append(command.source)
        with lock:
            state = gate_course.advance([flight], state, command.values[None], PERIOD_S)
        ticks += 1
        if flight.ending is not None:
            has_landed = fault == "kill" and flown.has_fault and flight.ending == "done"
            flown.ending = "landed" if has_landed else flight.ending
            pilot.stop()
        elif fault != "none" and ticks == round(fault_at_s / PERIOD_S):
            flown.has_fault = True
            threading.Thread(target=cause, daemon=True).start()
            if fault == "kill":
                flight.mission = replace(flight.mission, gates=tuple(flight.passed), end="land")

    pilot = Pilot(LOOP_SPACE, LongerAnswers(server), observe, send,
                  PilotOptions(fallback=FALLBACK, deadline_s=REACH_S / 2, warm_up=2), guard=guard)
    pilot.arm()
    flown.times = pilot.fly(round(most_s / PERIOD_S))
    flown.places.append(_place(state))
    flown.ending = flown.ending or "out of time"
    return flown


def merged(times: Sequence[TickTimes]) -> TickTimes:
    """The times of several flights, one after the other."""
    out, before = TickTimes(), 0
    for each in times:
        out.tick_late += each.tick_late
        out.tick_work += each.tick_work
        out.answer += [(before + tick, took, is_late) for tick, took, is_late in each.answer]
        out.sources += each.sources
        out.failures += each.failures
        out.skipped += each.skipped
        before += len(each.tick_late) + each.skipped
    return out


def _place(states: States) -> tuple[float, float, float]:
    x, y, z = (float(each) for each in states.position[0])
    return x, y, z
