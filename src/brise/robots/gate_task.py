"""The gate course as a task: rows to train on, and how often a policy ends its missions.

Rows are what a policy sees and what the expert does there. With a policy that flies, they are of the states that the
policy visits (DAgger; Ross, Gordon and Bagnell, 1011.0686): a policy that was trained on the expert's states alone does
not know the way back from its own mistakes. The simulator makes labels free, so rounds of it are a command.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from brise.errors import EvidenceError
from brise.files.atomic import staged_file
from brise.robots import baselines, camera_task, gate_course, quadrotor
from brise.robots.acting_server import ActingServer, Messages, ServerAddress
from brise.robots.baselines import RowsPolicy
from brise.robots.gate_course import SPACE, Flight, Policy
from brise.robots.missions import Split
from brise.robots.mujoco_world import MujocoWorld
from brise.robots.quadrotor import Floats, States
from brise.stats.intervals import Interval, binomial_interval

SYSTEM = "Fly the mission: say the gate, the way, the velocity and the turn."
WIND_OF_CHANGE = 0.3  # m/s: what is added to the expert's commands, so that it sees more than its own perfect path
MOST_S = 60.0  # of a mission
DEADLINE_S = 30.0  # of an answer in the simulator, which waits
MAX_EPISODES = 10_000

Answering = Callable[[Sequence[Messages]], Floats]  # the commands (N, D) for what N flights are asked


@dataclass(frozen=True)
class RowsOptions:
    """The defaults are those of `brise act rows`. `every`: one tick of so many becomes a row, and every tick after a
    gate; `states` rows more are of places anywhere in a mission; `camera`: rows with pictures (`camera_task`)."""

    out: Path
    episodes: int = 100
    every: int = 6
    states: int = 6000
    seed: int = 0
    policy: ServerAddress | None = None  # None: the expert flies
    camera: bool = False

    def __post_init__(self) -> None:
        _check(self.episodes)
        if self.every < 1:
            raise EvidenceError(f"one row of {self.every} ticks was asked for; it must be 1 or more")


@dataclass(frozen=True)
class FlyOptions:
    """The defaults are those of `brise act fly`. `policy`: a server, what learns from rows, the expert, the controller
    that does not read the mission, or a function of the messages of some flights. `camera`: it sees pictures."""

    policy: ServerAddress | RowsPolicy | Literal["expert", "without words"] | Answering
    episodes: int = 300
    split: Split = "combination"
    seed: int = 1
    physics: Literal["own", "mujoco"] = "own"
    camera: bool = False

    def __post_init__(self) -> None:
        _check(self.episodes)
        if self.camera and isinstance(self.policy, RowsPolicy | str):
            who = self.policy if isinstance(self.policy, str) else self.policy.kind
            raise EvidenceError(f"the policy {who!r} looks at no pictures; they need a model that sees")


@dataclass(frozen=True)
class FlightReport:
    """How flights ended. The episode is the unit of the interval (Clopper and Pearson, 95 %)."""

    split: Split
    episodes: int
    success: Interval
    endings: dict[str, int]
    mean_s: float  # of those that succeeded
    templates: dict[str, tuple[int, int]]  # of those that had the template: how many succeeded, and how many there were


def write_rows(options: RowsOptions) -> int:
    """Writes rows for `brise tune --actions`, with the file of the action space beside them; the number of rows."""
    random = np.random.default_rng(options.seed)
    flights, states = gate_course.started(random, "train", options.episodes)
    rows: list[str] = []
    labels = camera_task.labels if options.camera else gate_course.labels
    messages = camera_messages_of if options.camera else messages_of
    last, num_passed = np.zeros((len(flights), len(SPACE.values))), [0] * len(flights)
    with ExitStack() as stack:
        policy = (_noisy_expert(random) if options.policy is None
                  else _answered(_served(options.policy, len(flights), stack), options.camera))
        for tick in range(round(MOST_S / gate_course.TICK_S)):
            alive = [at for at, flight in enumerate(flights) if flight.ending is None]
            if not alive:
                break
            right = labels(flights, states)
            rows += [_row(messages(flights[at], states, at), right[at], f"{options.seed}-{at}") for at in alive
                     if tick % options.every == at % options.every or len(flights[at].passed) > num_passed[at]]
            num_passed = [len(flight.passed) for flight in flights]
            chosen = policy([flights[at] for at in alive], gate_course.taken(states, alive))
            for at, command in zip(alive, chosen, strict=True):
                last[at] = SPACE.limited(command, last[at])
            states = gate_course.advance(flights, states, last)
    flights, states = gate_course.scattered(random, "train", options.states)
    right = labels(flights, states) if flights else right
    rows += [_row(messages(flight, states, at), right[at], f"{options.seed}-state-{at}")
             for at, flight in enumerate(flights)]
    _write(options.out, "".join(rows))
    _write(options.out.with_suffix(".toml"), SPACE.as_toml())
    return len(rows)


def fly(options: FlyOptions) -> FlightReport:
    """Flies missions of a split."""
    flights, states = gate_course.started(np.random.default_rng(options.seed), options.split, options.episodes)
    with ExitStack() as stack:
        policy = _policy(options, len(flights), stack)
        moves = MujocoWorld([flight.course for flight in flights]).fly if options.physics == "mujoco" else quadrotor.fly
        gate_course.run(flights, states, policy, MOST_S, moves)
    done = [flight.seconds for flight in flights if flight.ending == "done"]
    templates = {flight.mission.template: (0, 0) for flight in flights}
    for flight in flights:
        successes, count = templates[flight.mission.template]
        templates[flight.mission.template] = successes + (flight.ending == "done"), count + 1
    return FlightReport(options.split, len(flights), binomial_interval(len(done), len(flights)),
                        dict(Counter(str(flight.ending) for flight in flights)),
                        float(np.mean(done)) if done else 0.0, templates)


def _policy(options: FlyOptions, count: int, stack: ExitStack) -> Policy:
    chosen = options.policy
    if isinstance(chosen, ServerAddress):
        return _answered(_served(chosen, count, stack), options.camera)
    if isinstance(chosen, RowsPolicy):
        predict = baselines.learned(chosen)
        return _answered(lambda asked: predict([baselines.text_of(messages) for messages in asked]))
    if isinstance(chosen, str):
        return gate_course.expert if chosen == "expert" else gate_course.without_words
    return _answered(chosen, options.camera)


def _answered(answering: Answering, camera: bool = False) -> Policy:
    if not camera:
        return lambda flights, states: answering([messages_of(flight, states, at) for at, flight in enumerate(flights)])
    vehicle = camera_task.SeeingVehicle()
    return lambda flights, states: vehicle.commands(flights, states, lambda due: answering(
        [camera_messages_of(flights[at], states, at) for at in due]))


def messages_of(flight: Flight, states: States, at: int) -> Messages:
    """What the policy of a flight is asked."""
    return [{"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"{flight.mission.text}\n{gate_course.observation(flight, states, at)}"}]


def camera_messages_of(flight: Flight, states: States, at: int) -> Messages:
    """What the policy of a flight is asked that sees pictures."""
    return [{"role": "system", "content": SYSTEM},
            {"role": "user", "content": camera_task.content_of(flight, states, at)}]


def _row(messages: Messages, command: Floats, name: str) -> str:
    return json.dumps({"messages": messages, "actions": [command.round(3).tolist()],
                       "conversation": f"flight-{name}"}) + "\n"


def _noisy_expert(random: np.random.Generator) -> Policy:
    def policy(flights: Sequence[Flight], states: States) -> Floats:
        commands = gate_course.expert(flights, states)
        commands[:, gate_course.MOVES] += random.normal(0, WIND_OF_CHANGE, (len(commands), len(gate_course.MOVES)))
        return commands
    return policy


def _served(address: ServerAddress, count: int, stack: ExitStack) -> Answering:
    """Asks a server for all flights at the same time, so that it answers them together."""
    servers = [stack.enter_context(closing(ActingServer(address))) for _ in range(count)]
    threads = stack.enter_context(ThreadPoolExecutor(min(count, 64)))
    if servers[0].space() != SPACE:
        raise EvidenceError(f"{address.model!r} was trained on another action space than that of the gate course")

    def answering(asked: Sequence[Messages]) -> Floats:
        answers = threads.map(lambda at: servers[at].decide(asked[at], DEADLINE_S), range(len(asked)))
        return np.array([answer.commands[0] if len(answer.commands) else SPACE.brake for answer in answers])
    return answering


def _write(path: Path, text: str) -> None:
    with staged_file(path, len(text.encode())) as file:
        file.write(text.encode())


def _check(episodes: int) -> None:
    if not 1 <= episodes <= MAX_EPISODES:
        raise EvidenceError(f"{episodes} episodes were asked for, allowed is 1 to {MAX_EPISODES}")
