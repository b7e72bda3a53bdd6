"""The gate course by pictures: what the cameras show stands in place of the text that lists the gates.

A model reads the mission, sees the picture of the ring, and says the gate and the sector where it sees that, the climb
and a velocity. The vehicle has range sensors all around, which tell how far things are and which of them are hollow,
but not their color: so it knows the free way to any thing, and the pictures alone tell which of them is the gate that
is meant. It flies that way as fast as the model says.

Legend: N flights, D numbers of a command of the course.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from brise.robots import camera, gate_course
from brise.robots.gate_course import FARTHEST, NEARBY, NOWHERE, SECTORS, Flight, Sight, in_frame
from brise.robots.quadrotor import Floats, States

ASIDE = 1.6  # sectors by which a thing may lie beside the one that is said
SLOW = 1.2  # m/s, at most, by a gate
CLIMB = 1.5  # m/s for a metre that is missing to the height
ASK_EVERY = 3  # ticks; a model is asked at once after a gate
Place = tuple[float, float]


def content_of(flight: Flight, states: States, at: int) -> list[Mapping[str, object]]:
    """What the policy of a flight is asked: the course's text, with the ring's picture in place of the ways."""
    ring = camera.ring(flight.course, states.position[at], float(states.yaw[at]))
    passed, _, own = gate_course.observation(flight, states, at).split("; ", 2)
    return [{"type": "text", "text": f"{flight.mission.text}\n{passed};"}, camera.image_part(ring.pixels),
            {"type": "text", "text": f"; {own}"}]


def labels(flights: Sequence[Flight], states: States) -> Floats:
    """What one says who knows what the mission means and where things are, (N, D): the straight way to the gate."""
    return np.array([_label(flight, states, at) for at, flight in enumerate(flights)])


@dataclass
class Heading:
    """What a vehicle was told last, in the frame of the hall, `ticks` ago."""

    answer: Floats  # (D,)
    place: Place
    height: float
    num_passed: int
    ticks: int = 0


class SeeingVehicle:
    """Flies where answers say that a gate is. Between two answers it goes on to the same place by itself, and also
    while the gate is not seen: it knows where it flies, and what its range sensors see."""

    def __init__(self, ask_every: int = ASK_EVERY) -> None:
        self._ask_every = ask_every
        self._headings: dict[int, Heading] = {}  # of each flight

    def commands(self, flights: Sequence[Flight], states: States, ask: Callable[[list[int]], Floats]) -> Floats:
        """The commands of the course, (N, D); `ask` gives the answers of the flights with these numbers."""
        due = [at for at, flight in enumerate(flights) if self._is_due(flight)]
        for at, answer in zip(due, ask(due) if due else (), strict=True):
            self._heard(flights[at], states, at, answer)
        return np.array([self._steered(flight, states, at) for at, flight in enumerate(flights)])

    def _is_due(self, flight: Flight) -> bool:
        """Whether a flight needs an answer: after some ticks, and at once after a gate, and at the end."""
        heading = self._headings.get(id(flight))
        if heading is None or heading.num_passed < len(flight.passed) or heading.answer[0] == NOWHERE[0]:
            return True
        heading.ticks += 1
        return heading.ticks >= self._ask_every

    def _heard(self, flight: Flight, states: States, at: int, answer: Floats) -> None:
        x, y, z = (float(each) for each in states.position[at])
        before, (gate, sector, climb, *_) = self._headings.get(id(flight)), answer.tolist()
        if sector != NOWHERE[1]:
            place = _place_of(flight, (x, y, float(states.yaw[at])), 2 * math.pi * sector / len(SECTORS))
        elif before is not None and before.answer[0] == gate:
            place = before.place
        else:
            place = (0.0, 0.0)  # the middle of the hall, from where most is seen
        self._headings[id(flight)] = Heading(answer, place, z + climb / CLIMB, len(flight.passed))

    def _steered(self, flight: Flight, states: States, at: int) -> Floats:
        heading = self._headings[id(flight)]
        gate, sector, climb, ahead, left, _ = heading.answer.tolist()
        if gate == NOWHERE[0]:
            return np.array([gate, sector, climb, 0.0, 0.0, 0.0])
        x, y, z, yaw = *(float(each) for each in states.position[at]), float(states.yaw[at])
        bearing, distance = gate_course.free_way(flight, x, y, yaw, heading.place)
        speed = math.hypot(ahead, left) if distance > NEARBY else min(math.hypot(ahead, left), SLOW)
        return np.array([gate, sector, np.clip(CLIMB * (heading.height - z), -1, 1), speed * math.cos(bearing),
                         speed * math.sin(bearing), np.clip(1.2 * bearing, -1, 1) if distance > NEARBY else 0.0])


def _label(flight: Flight, states: States, at: int) -> Floats:
    seen, gate = gate_course.sight(flight, states, at), flight.next_gate
    ways = {}
    if gate is not None:
        x, y, yaw = *(float(each) for each in states.position[at, :2]), float(states.yaw[at])
        forward, left = in_frame(flight.course.gates[gate], x, y, yaw)
        ways[gate] = math.atan2(left, forward), float(FARTHEST)
    return gate_course.wanted_command(flight, Sight(ways, seen.height, seen.is_low).rounded, gate)


def _place_of(flight: Flight, pose: tuple[float, float, float], bearing: float) -> Place:
    """The place of the hollow thing that is meant, if a gate was seen in that direction; with none there, a place.

    Of several there, it is the farthest: on the way to it, around the nearer ones, it turns out which one is meant. The
    vehicle knows which one it has just passed.
    """
    x, y, yaw = pose
    found: list[tuple[float, Place]] = []
    for color, place in flight.course.gates.items():
        forward, left = in_frame(place, x, y, yaw)
        aside = math.remainder(math.atan2(left, forward) - bearing, 2 * math.pi) * len(SECTORS) / (2 * math.pi)
        if color not in flight.passed[-1:] and abs(aside) <= ASIDE:
            found.append((math.hypot(forward, left), place))
    if found:
        return max(found)[1]
    return x + 3 * math.cos(yaw + bearing), y + 3 * math.sin(yaw + bearing)
