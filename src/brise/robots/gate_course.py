"""A course of gates: the world that a drone flies in, what it sees, when a mission is done, and an expert.

Six rings of different colors stand in a hall of 16 x 16 metres, with cylinders that must not be touched. A planner in
the vehicle gives the free way to each thing that it sees; which of them to take is what the mission says. The expert
knows what the mission means (missions.py); a policy has to read it.

Legend: D = 6 numbers of a command: the gate that it is for and the sector where the way lies, which move nothing; vz,
vx, vy (m/s, in the heading's frame), yaw rate (rad/s).
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
from brise.robots.command_queue import Guard
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
WIND = 0.8  # m/s, the standard deviation along x and along y; up and down an eighth of it
TICK_S = 0.4
JUDGED_S = 0.1  # a fast drone is through a gate in 0.4 s
GUARDED_S = 0.1  # that a guarded command may last
NEARBY = 1.25  # metres to a gate in which the expert is slow and does not turn
LOOK_AHEAD = 4.0  # metres at which the expert begins to fly around things

SECTORS = "abcdefghijklmnopqrstuvwx"  # of a bearing: 15 degrees each, a is ahead, then to the left
FARTHEST = 9  # half metres

NOWHERE = (float(len(COLORS)), float(len(SECTORS)))  # a gate and a sector that are none

# A model writes a command's numbers one after the other. The gate and the sector are words that it can copy from what
# it reads, and the numbers after them can look at them.
SPACE = ActionSpace("drone", (
    ActionValue("gate", 0.0, NOWHERE[0], len(COLORS) + 1, "", NOWHERE[0], NOWHERE[0], (*COLORS, "none")),
    ActionValue("sector", 0.0, NOWHERE[1], len(SECTORS) + 1, "", NOWHERE[1], NOWHERE[1], (*SECTORS, "none")),
    ActionValue("vz", -1.5, 1.5, 21, "m/s", 1.8),
    ActionValue("vx", -3.0, 3.0, 21, "m/s", 2.4), ActionValue("vy", -3.0, 3.0, 21, "m/s", 2.4),
    ActionValue("yaw_rate", -1.5, 1.5, 21, "rad/s", 3.0),
), steps=1, period_s=TICK_S)
MOVES = (3, 4, 2, 5)  # of a command, as the quadrotor takes them: vx, vy, vz, yaw rate

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
# What moves vehicles: states, set-points (N, 4), wind (N, 3) and seconds to the states after them.
Physics = Callable[[States, Floats, Floats, float], States]


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
    wind = tuple(float(each) for each in random.normal(0, (WIND, WIND, WIND / 8)))
    return Course(gates, cylinders, (wind[0], wind[1], wind[2]), places[-1],
                  float(random.uniform(60, FIRST_BATTERY)))


def started(random: np.random.Generator, split: missions.Split, count: int) -> tuple[list[Flight], States]:
    """`count` flights of one split, hovering at their starts."""
    courses = [draw_course(random) for _ in range(count)]
    flights = [Flight(course, missions.draw(random, split), [], course.battery) for course in courses]
    places = np.array([(*course.start, 1.5) for course in courses])
    return flights, quadrotor.hovering(places, random.uniform(-math.pi, math.pi, count))


def scattered(random: np.random.Generator, split: missions.Split, count: int) -> tuple[list[Flight], States]:
    """`count` flights in the middle of their missions: hovering anywhere, turned anyhow, some gates passed."""
    flights, places = [], []
    for _ in range(count):
        course, mission = draw_course(random), missions.draw(random, split)
        passed = int(random.integers(len(mission.gates) + 1))
        battery = course.battery if random.random() < 0.96 else float(random.uniform(1, BATTERY_LOW))
        flight = Flight(course, mission, list(mission.gates[:passed]), battery)
        while True:
            x, y = (float(each) for each in random.uniform(-HALL, HALL, 2))
            z = float(random.choice((flight.height + random.normal(0, 0.3), random.uniform(0.4, 4.2))))
            gate = gate_at(course, x, y)
            if not touches(course, x, y, z, may_land=False) and gate in (None, *flight.passed[-1:]):
                break
        flights.append(flight)
        places.append((x, y, z))
    return flights, quadrotor.hovering(np.array(places), random.uniform(-math.pi, math.pi, count))


def run(flights: Sequence[Flight], states: States, policy: Policy, seconds: float = 60.0,
        fly: Physics = quadrotor.fly) -> None:
    """Flies until every flight has ended, which `Flight.ending` says; `fly` is what moves the vehicles."""
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
        states = advance(flights, states, last, fly=fly)
    for flight in flights:
        flight.ending = flight.ending or "out of time"


def advance(flights: Sequence[Flight], states: States, command_ND: Floats, seconds: float = TICK_S,
            fly: Physics = quadrotor.fly) -> States:
    """The states after `seconds` under these commands; flights that have ended stay where they are."""
    wind = np.array([flight.course.wind for flight in flights])
    for part_s in _parts(seconds):
        moved = fly(states, command_ND[:, MOVES], wind, part_s)
        for at, flight in enumerate(flights):
            if flight.ending is None:
                judge(flight, moved.position[at], float(np.linalg.norm(moved.velocity[at])), part_s)
        states = _either(np.array([flight.ending is not None for flight in flights]), states, moved)
    return states


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


def _barrier(vehicle: quadrotor.Vehicle, gains: quadrotor.Gains, rate: float = 1.5) -> Barrier:
    """The barrier of a quadrotor: it holds against four standard deviations of the wind, with 0.05 m to spare.

    The controller has no integral, so wind adds drag / (mass * gain) of its speed to what is commanded. Lags add up.
    """
    drift = 4 * WIND * vehicle.drag / (vehicle.mass * gains.velocity)
    lag_s = 1 / gains.velocity + gains.rates / gains.attitude + vehicle.rotor_lag_s + GUARDED_S / 2
    return Barrier(drift / rate + 0.05, lag_s, rate)


BARRIER = _barrier(quadrotor.Vehicle(), quadrotor.Gains())


def near(course: Course, x: float, y: float, z: float, yaw: float) -> Surfaces:
    """What the range sensors of a drone there say of walls, floor, ceiling and cylinders, in the heading's frame."""
    towards = [(0.0, 0.0, -1.0), (0.0, 0.0, 1.0)]
    distances = [z - RADIUS, CEILING - RADIUS - z]
    walls = [((x + HALL - RADIUS), (-1, 0)), (HALL - RADIUS - x, (1, 0)), (y + HALL - RADIUS, (0, -1)),
             (HALL - RADIUS - y, (0, 1))]
    round_ones = [(math.hypot(cx - x, cy - y) - radius - RADIUS, (cx - x, cy - y))
                  for cx, cy, radius in course.cylinders]
    for distance, (dx, dy) in walls + round_ones:
        forward, left = in_frame((x + dx, y + dy), x, y, yaw)
        length = max(math.hypot(dx, dy), 1e-6)
        towards.append((forward / length, left / length, 0.0))
        distances.append(distance)
    return Surfaces(np.array(towards), np.array(distances))


def guard(flight: Flight, states: States, at: int, barrier: Barrier = BARRIER) -> Guard:
    """What keeps a drone's commands from leading into anything. It comes down to the floor only if told nothing else.
    """
    x, y, z = (float(each) for each in states.position[at])
    yaw, (vx, vy, vz) = float(states.yaw[at]), (float(each) for each in states.velocity[at])
    forward, left = in_frame((x + vx, y + vy), x, y, yaw)
    surfaces = near(flight.course, x, y, z, yaw)
    turn = float(states.rates[at, 2]) * GUARDED_S
    to_land = replace(surfaces, distances=surfaces.distances + np.eye(len(surfaces.distances))[0]
                      * (barrier.margin - LANDING_MARGIN))

    def guarded(command: Floats, low: Floats, high: Floats) -> Floats:
        moves, kept = list(MOVES[:3]), command.copy()
        seen = to_land if math.hypot(*command[moves[:2]]) < LANDING_SPEED else surfaces
        kept[moves] = barrier.limited(command[moves], np.array([forward, left, vz]), seen, low[moves], high[moves],
                                      turn)
        return kept
    return guarded


def gate_at(course: Course, x: float, y: float) -> str | None:
    """The gate that the drone has come to. A gate is a ring that turns to whoever comes."""
    return next((color for color, (gx, gy) in course.gates.items() if math.hypot(x - gx, y - gy) < NEAR), None)


def expert(flights: Sequence[Flight], states: States) -> Floats:
    """The commands of a planner that knows what the mission means and sees exactly, (N, D)."""
    return np.array([wanted_command(flight, sight(flight, states, at), flight.next_gate)
                     for at, flight in enumerate(flights)])


def labels(flights: Sequence[Flight], states: States) -> Floats:
    """The commands of a planner that knows what the mission means and sees what a policy is told, (N, D)."""
    return np.array([wanted_command(flight, sight(flight, states, at).rounded, flight.next_gate)
                     for at, flight in enumerate(flights)])


def without_words(flights: Sequence[Flight], states: States) -> Floats:
    """The commands of a controller that does not read the mission: it flies to the nearest gate that is left, (N, D).
    """
    def nearest(flight: Flight, at: int) -> str | None:
        left = [color for color in flight.course.gates if color not in flight.passed]
        place = states.position[at]
        return min(left, key=lambda color: math.dist(flight.course.gates[color], place[:2]), default=None)
    return np.array([wanted_command(flight, sight(flight, states, at), nearest(flight, at))
                     for at, flight in enumerate(flights)])


@dataclass(frozen=True)
class Sight:
    """What the drone sees: the bearing (left is positive) and the distance of each gate by the free way, its own
    height, and whether the battery is low."""

    ways: Mapping[str, tuple[float, float]]
    height: float
    is_low: bool

    @property
    def rounded(self) -> Sight:
        """What the text of an observation says of it."""
        ways = {color: (math.remainder(sector_of(bearing) * 2 * math.pi / len(SECTORS), 2 * math.pi),
                        min(_halves(distance), FARTHEST) / 2) for color, (bearing, distance) in self.ways.items()}
        return Sight(ways, min(_halves(self.height), FARTHEST) / 2, self.is_low)


def sight(flight: Flight, states: States, at: int) -> Sight:
    """What the drone of a flight sees."""
    x, y, z = (float(each) for each in states.position[at])
    yaw = float(states.yaw[at])
    return Sight({color: free_way(flight, x, y, yaw, place) for color, place in flight.course.gates.items()}, z,
                 flight.battery < BATTERY_LOW)


def observation(flight: Flight, states: States, at: int) -> str:
    """What the drone says it sees: gates passed, the free way to each gate, its own height, and a low battery.

    A way is a sector, and the distance in half metres where that is short. Heights are half metres, too.
    """
    seen = sight(flight, states, at)
    ways = []
    for color, (bearing, distance) in seen.ways.items():
        halves = _halves(distance)
        ways.append(f"{color} {SECTORS[sector_of(bearing)]}{halves if halves < FARTHEST else ''}")
    return (f"passed {' '.join(flight.passed) or 'none'}; {' '.join(ways)}; "
            f"height {min(_halves(seen.height), FARTHEST)}{'; battery low' if seen.is_low else ''}")


def wanted_command(flight: Flight, seen: Sight, gate: str | None) -> Floats:
    """The command that flies to a gate, or ends the mission (None), (D,)."""
    height, pace = flight.height, PACES[flight.mission.pace]
    climb = float(np.clip(1.5 * (height - seen.height), -1, 1))
    if seen.is_low or (gate is None and flight.mission.end == "land"):
        return np.array([*NOWHERE, -0.6, 0.0, 0.0, 0.0])
    if gate is None:
        return np.array([*NOWHERE, climb, 0.0, 0.0, 0.0])
    bearing, distance = seen.ways[gate]
    is_level = abs(height - seen.height) <= RING - 0.2  # up or down first
    speed = 0.0 if not is_level else pace if distance > NEARBY else min(pace, 1.2)
    ahead, left = speed * math.cos(bearing), speed * math.sin(bearing)
    turn = np.clip(1.2 * bearing, -1, 1) if distance > NEARBY else 0.0
    return np.array([COLORS.index(gate), sector_of(bearing), climb, ahead, left, turn])


def free_way(flight: Flight, x: float, y: float, yaw: float, place: tuple[float, float]) -> tuple[float, float]:
    """The bearing of the way to a place that leads around all other things, and the distance to the place."""
    forward, left = in_frame(place, x, y, yaw)
    distance = math.hypot(forward, left)
    dx, dy = forward / max(distance, 1e-6), left / max(distance, 1e-6)
    others = [at for color, at in flight.course.gates.items() if at != place and color not in flight.passed[-1:]]
    avoided = [(cx, cy, radius) for cx, cy, radius in flight.course.cylinders] + [(cx, cy, 0.35) for cx, cy in others]
    for cx, cy, radius in avoided:
        dx, dy = _around(dx, dy, distance, in_frame((cx, cy), x, y, yaw), radius + RADIUS + 0.5)
    return math.atan2(dy, dx), distance


def sector_of(bearing: float) -> int:
    """The number of the sector in which a bearing lies, of SECTORS."""
    return round(bearing / (2 * math.pi) * len(SECTORS)) % len(SECTORS)


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


def in_frame(place: tuple[float, float], x: float, y: float, yaw: float) -> tuple[float, float]:
    """A place, seen from (x, y): metres ahead and to the left."""
    dx, dy = place[0] - x, place[1] - y
    return math.cos(yaw) * dx + math.sin(yaw) * dy, -math.sin(yaw) * dx + math.cos(yaw) * dy


def _parts(seconds: float) -> list[float]:
    """The time between two judgements, at most JUDGED_S."""
    count = max(1, math.ceil(seconds / JUDGED_S - 1e-9))
    return [seconds / count] * count


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
