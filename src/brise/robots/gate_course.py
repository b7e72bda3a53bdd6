"""A course of gates: the world that a drone flies in, what it sees, when a mission is done, and an expert.

Six rings of different colors stand in a hall of 16 x 16 metres, with cylinders that must not be touched. The drone sees
everything relative to itself, in steps of half a metre, and gets a velocity and a yaw rate. The expert knows what the
mission means (missions.py); a policy has to read it.

Legend: D = 4 numbers of a command: vx, vy, vz (m/s, in the heading's frame), yaw rate (rad/s).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from brise.robots import missions, quadrotor
from brise.robots.barrier import Barrier, Surfaces
from brise.robots.missions import COLORS, Mission
from brise.robots.quadrotor import Floats, States
from brise.text.action_space import ActionSpace, ActionValue

HALL = 8.0  # metres from the middle to a wall
CEILING = 5.0
NEAR = 0.5  # to a gate's middle, seen from above, where it is passed
RING = 0.8  # over or under the height that the mission asks for, at most, or the gate does not count
RADIUS = 0.25  # of the drone
LANDING_MARGIN, LANDING_SPEED = 0.05, 0.3  # that a barrier keeps from the floor where a drone hardly flies sideways
FIRST_BATTERY, BATTERY_LOW = 100.0, 20.0
DRAIN = 0.6  # percent a second, and as much again for each metre a second
HEIGHTS: Mapping[str, float] = MappingProxyType({"low": 1.0, "middle": 2.0, "high": 3.2})
PACES: Mapping[str, float] = MappingProxyType({"slowly": 1.0, "normally": 1.8, "fast": 2.6})
TICK_S = 0.2
BARRIER = Barrier()
LOOK_AHEAD = 4.0  # metres at which the expert begins to fly around things

SPACE = ActionSpace("drone", (
    ActionValue("vx", -3.0, 3.0, 21, "m/s", 1.2), ActionValue("vy", -3.0, 3.0, 21, "m/s", 1.2),
    ActionValue("vz", -1.5, 1.5, 21, "m/s", 0.9), ActionValue("yaw_rate", -1.5, 1.5, 21, "rad/s", 1.5),
), steps=1, period_s=TICK_S)

Ending = Literal["done", "crashed", "wrong gate", "out of time", "flat battery"]


@dataclass(frozen=True)
class Course:
    """Where things are: gates (x, y) by color, cylinders (x, y, radius), and the wind (m/s)."""

    gates: dict[str, tuple[float, float]]
    cylinders: tuple[tuple[float, float, float], ...]
    wind: tuple[float, float, float]
    start: tuple[float, float]
    battery: float


@dataclass
class Flight:
    """One vehicle on its mission. `passed` are the gates so far, in order."""

    course: Course
    mission: Mission
    passed: list[str]
    battery: float
    seconds: float = 0.0
    ending: Ending | None = None

    @property
    def next_gate(self) -> str | None:
        """The gate that the mission asks for; None after the last."""
        return self.mission.gates[len(self.passed)] if len(self.passed) < len(self.mission.gates) else None

    @property
    def height(self) -> float:
        """At which the mission's gates are to be passed."""
        return HEIGHTS[self.mission.height]


Policy = Callable[[Sequence["Flight"], States], Floats]  # the commands of all that still fly, (N, D)


def draw_course(random: np.random.Generator) -> Course:
    """A random course: nothing stands closer to another thing than 2.6 metres, and the way between things is free."""
    places: list[tuple[float, float]] = []
    while len(places) < len(COLORS) + 3:
        x, y = (float(each) for each in random.uniform(-HALL + 1.5, HALL - 1.5, 2))
        if all(math.dist((x, y), other) > 2.6 for other in places):
            places.append((x, y))
        elif random.random() < 0.001:
            places.clear()
    gates = dict(zip(COLORS, places[:len(COLORS)], strict=True))
    cylinders = tuple((x, y, 0.4) for x, y in places[len(COLORS):-1])
    wind = tuple(float(each) for each in random.normal(0, (0.8, 0.8, 0.1)))
    return Course(gates, cylinders, (wind[0], wind[1], wind[2]), places[-1],
                  float(random.uniform(60, FIRST_BATTERY)))


def started(random: np.random.Generator, split: missions.Split, count: int) -> tuple[list[Flight], States]:
    """`count` flights of one split, hovering at their starts."""
    courses = [draw_course(random) for _ in range(count)]
    flights = [Flight(course, missions.draw(random, split), [], course.battery) for course in courses]
    places = np.array([(*course.start, 1.5) for course in courses])
    return flights, quadrotor.hovering(places, random.uniform(-math.pi, math.pi, count))


def run(flights: Sequence[Flight], states: States, policy: Policy, seconds: float = 60.0) -> None:
    """Flies until every flight has ended, which `Flight.ending` says."""
    last: Floats | None = None
    for _ in range(round(seconds / TICK_S)):
        alive = [at for at, flight in enumerate(flights) if flight.ending is None]
        if not alive:
            return
        if last is None:
            last = np.zeros((len(flights), len(SPACE.values)))
        wanted = policy([flights[at] for at in alive], taken(states, alive))
        for at, command in zip(alive, wanted, strict=True):
            last[at] = SPACE.limited(command, last[at])
        states = advance(flights, states, last)
    for flight in flights:
        flight.ending = flight.ending or "out of time"


def advance(flights: Sequence[Flight], states: States, command_ND: Floats, seconds: float = TICK_S) -> States:
    """The states after `seconds` under these commands; flights that have ended stay where they are."""
    wind = np.array([flight.course.wind for flight in flights])
    moved = quadrotor.fly(states, command_ND, wind, seconds)
    for at, flight in enumerate(flights):
        if flight.ending is None:
            judge(flight, moved.position[at], float(np.linalg.norm(moved.velocity[at])), seconds)
    ended = np.array([flight.ending is not None for flight in flights])
    return _either(ended, states, moved)


def judge(flight: Flight, place: Floats, speed: float, seconds: float) -> None:
    """What the last tick has brought: a gate, the end, or a fault."""
    flight.seconds += seconds
    flight.battery -= DRAIN * (1 + 0.5 * speed) * seconds
    x, y, z = (float(each) for each in place)
    landing = flight.next_gate is None and flight.mission.end == "land"
    if touches(flight.course, x, y, z, may_land=landing or flight.battery < BATTERY_LOW):
        flight.ending = "crashed"
    elif flight.battery <= 0:
        flight.ending = "flat battery"
    elif (color := gate_at(flight.course, x, y)) is not None and color not in flight.passed[-1:]:
        if color == flight.next_gate:
            if abs(z - flight.height) < RING:
                flight.passed.append(color)
        elif flight.next_gate is not None:
            flight.ending = "wrong gate"
    elif flight.next_gate is None:
        at_rest = speed < 0.4
        if (flight.mission.end == "land" and z < 0.35) or (flight.mission.end == "hover" and at_rest):
            flight.ending = "done"
    elif flight.battery < BATTERY_LOW and z < 0.35:
        flight.ending = "done"  # it was told to: a low battery ends every mission on the ground


def touches(course: Course, x: float, y: float, z: float, *, may_land: bool) -> bool:
    """Whether a drone there has hit a wall, the floor, the ceiling or a cylinder."""
    if max(abs(x), abs(y)) > HALL - RADIUS or z > CEILING - RADIUS or (z < RADIUS and not may_land):
        return True
    return any(math.hypot(x - cx, y - cy) < radius + RADIUS for cx, cy, radius in course.cylinders)


def near(course: Course, x: float, y: float, z: float, yaw: float) -> Surfaces:
    """What the range sensors of a drone there say of walls, floor, ceiling and cylinders, in the heading's frame."""
    towards = [(0.0, 0.0, -1.0), (0.0, 0.0, 1.0)]
    distances = [z - RADIUS, CEILING - RADIUS - z]
    walls = [((x + HALL - RADIUS), (-1, 0)), (HALL - RADIUS - x, (1, 0)), (y + HALL - RADIUS, (0, -1)),
             (HALL - RADIUS - y, (0, 1))]
    round_ones = [(math.hypot(cx - x, cy - y) - radius - RADIUS, (cx - x, cy - y))
                  for cx, cy, radius in course.cylinders]
    for distance, (dx, dy) in walls + round_ones:
        forward, left = _seen((x + dx, y + dy), x, y, yaw)
        length = max(math.hypot(dx, dy), 1e-6)
        towards.append((forward / length, left / length, 0.0))
        distances.append(distance)
    return Surfaces(np.array(towards), np.array(distances))


def guard(flight: Flight, states: States, at: int, barrier: Barrier = BARRIER) -> Callable[[Floats], Floats]:
    """What keeps a drone's commands from leading into anything. It comes down to the floor only if told nothing else.
    """
    x, y, z = (float(each) for each in states.position[at])
    yaw, (vx, vy, vz) = float(states.yaw[at]), (float(each) for each in states.velocity[at])
    forward, left = _seen((x + vx, y + vy), x, y, yaw)
    surfaces = near(flight.course, x, y, z, yaw)
    to_land = replace(surfaces, distances=surfaces.distances + np.eye(len(surfaces.distances))[0]
                      * (barrier.margin - LANDING_MARGIN))

    def guarded(command: Floats) -> Floats:
        seen = to_land if math.hypot(command[0], command[1]) < LANDING_SPEED else surfaces
        return np.concatenate([barrier.limited(command[:3], np.array([forward, left, vz]), seen), command[3:]])
    return guarded


def gate_at(course: Course, x: float, y: float) -> str | None:
    """The gate that the drone has come to. A gate is a ring that turns to whoever comes."""
    return next((color for color, (gx, gy) in course.gates.items() if math.hypot(x - gx, y - gy) < NEAR), None)


def expert(flights: Sequence[Flight], states: States) -> Floats:
    """The commands of a planner that knows what the mission means and sees exactly, (N, D)."""
    return np.array([wanted_command(flight, states, at, flight.next_gate) for at, flight in enumerate(flights)])


def without_words(flights: Sequence[Flight], states: States) -> Floats:
    """The commands of a controller that does not read the mission: it flies to the nearest gate that is left, (N, D).
    """
    def nearest(flight: Flight, at: int) -> str | None:
        left = [color for color in flight.course.gates if color not in flight.passed]
        place = states.position[at]
        return min(left, key=lambda color: math.dist(flight.course.gates[color], place[:2]), default=None)
    return np.array([wanted_command(flight, states, at, nearest(flight, at)) for at, flight in enumerate(flights)])


def observation(flight: Flight, states: States, at: int) -> str:
    """What the drone says it sees, in half metres: forward, left (negative: right), up; then battery and wind."""
    x, y, z = (float(each) for each in states.position[at])
    yaw, velocity = float(states.yaw[at]), states.velocity[at]
    lines = [f"passed: {', '.join(flight.passed) or 'none'}"]
    for color, place in flight.course.gates.items():
        forward, left = _seen(place, x, y, yaw)
        lines.append(f"{color} {_halves(forward)} {_halves(left)}")
    for cx, cy, _ in flight.course.cylinders:
        forward, left = _seen((cx, cy), x, y, yaw)
        if math.hypot(forward, left) < 3:
            lines.append(f"cylinder {_halves(forward)} {_halves(left)}")
    speed, side = _seen((x + velocity[0], y + velocity[1]), x, y, yaw)
    lines.append(f"height {_halves(z)} speed {_halves(speed)} {_halves(side)} battery {round(flight.battery / 5) * 5}")
    return "\n".join(lines)


def wanted_command(flight: Flight, states: States, at: int, gate: str | None) -> Floats:
    """The command that flies to a gate, or ends the mission (None), around the cylinders, (D,)."""
    x, y, z = (float(each) for each in states.position[at])
    yaw = float(states.yaw[at])
    height, pace = flight.height, PACES[flight.mission.pace]
    if flight.battery < BATTERY_LOW or (gate is None and flight.mission.end == "land"):
        return np.array([0.0, 0.0, -0.6, 0.0])
    if gate is None:
        return np.array([0.0, 0.0, np.clip(height - z, -1, 1), 0.0])
    forward, left = _seen(flight.course.gates[gate], x, y, yaw)
    distance = math.hypot(forward, left)
    dx, dy = forward / max(distance, 1e-6), left / max(distance, 1e-6)
    others = [place for color, place in flight.course.gates.items() if color not in (gate, *flight.passed[-1:])]
    avoided = [(cx, cy, radius) for cx, cy, radius in flight.course.cylinders] + [(cx, cy, 0.35) for cx, cy in others]
    for cx, cy, radius in avoided:
        dx, dy = _around(dx, dy, distance, _seen((cx, cy), x, y, yaw), radius + RADIUS + 0.5)
    norm = max(math.hypot(dx, dy), 1e-6)
    speed = min(pace, 0.8 + distance)
    if abs(height - z) > RING - 0.2:  # not through it before the height is right
        speed = min(speed, max(distance - 1.2, 0.0))
    return np.array([speed * dx / norm, speed * dy / norm, np.clip(1.5 * (height - z), -1, 1),
                     np.clip(1.2 * math.atan2(left, forward), -1, 1) if distance > 1 else 0.0])


def _around(dx: float, dy: float, distance: float, obstacle: tuple[float, float], clearance: float,
            ) -> tuple[float, float]:
    """The direction, turned so that it passes an obstacle that lies on the way."""
    ox, oy = obstacle
    along, aside = ox * dx + oy * dy, -ox * dy + oy * dx  # of the obstacle, along and left of the way
    if not -0.3 < along < min(distance + 0.2, LOOK_AHEAD) or abs(aside) > clearance:
        return dx, dy
    near = 1 - max(along, 0.0) / LOOK_AHEAD
    push = near * (clearance - abs(aside) + 0.35) / clearance * 2
    side = -1.0 if aside >= 0 else 1.0
    return dx - side * dy * push, dy + side * dx * push


def _seen(place: tuple[float, float], x: float, y: float, yaw: float) -> tuple[float, float]:
    """A place in the drone's frame: forward, left."""
    dx, dy = place[0] - x, place[1] - y
    return math.cos(yaw) * dx + math.sin(yaw) * dy, -math.sin(yaw) * dx + math.cos(yaw) * dy


def _halves(metres: float) -> int:
    return round(2 * metres)


def taken(states: States, rows: Sequence[int]) -> States:
    """The states of some vehicles."""
    return States(states.position[rows], states.velocity[rows], states.rotation[rows], states.rates[rows],
                  states.thrust[rows])


def _either(is_first: NDArray[np.bool_], first: States, second: States) -> States:
    """The first states where `is_first`, else the second."""
    def pick(a: Floats, b: Floats) -> Floats:
        picked: Floats = np.where(is_first.reshape(-1, *[1] * (a.ndim - 1)), a, b)
        return picked
    return replace(first, position=pick(first.position, second.position),
                   velocity=pick(first.velocity, second.velocity),
                   rotation=pick(first.rotation, second.rotation),
                   rates=pick(first.rates, second.rates), thrust=pick(first.thrust, second.thrust))
