"""BabyAI's levels as a task: how often a policy ends its missions, and rows to train on of what it meets.

As in the gate course, rows of a policy's own walks are labelled by the expert (DAgger).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brise.errors import EvidenceError
from brise.files.atomic import staged_file
from brise.robots import babyai
from brise.robots.acting_server import ActingServer, ServerAddress
from brise.robots.babyai import ACTIONS, LEVELS, MAZE, SPACE, MissionWalk
from brise.stats.intervals import Interval, binomial_interval

STRAYS = 0.05  # share of the expert's actions that are drawn instead, so that rows know the way back
TURNS_OR_FORWARD = 3  # the actions that are drawn: they undo nothing
DEADLINE_S = 300.0  # of an answer in the simulator, which waits
MAX_EPISODES = 10_000
FIRST_SEED = 1_000  # those of the rows in the data set babyai_steps are below

WalkPolicy = Callable[[Sequence[MissionWalk]], Sequence[int]]  # the actions of all robots that still walk


@dataclass(frozen=True)
class WalkOptions:
    """The defaults are those of `brise act walk`. `policy` is a server, a function, or None for the expert.

    With `rows`, the walks are of missions for training. Each step in a room becomes a row of that file, and one of
    `every` in a maze, where missions are many times longer.
    """

    policy: ServerAddress | WalkPolicy | None = None
    episodes: int = 300
    seed: int = 0
    temperature: float = 0.0  # of a server's answers; 0: the likeliest action
    max_steps: int | None = None  # of an episode; None: as many as the level allows
    rows: Path | None = None
    every: int = 8
    has_map: bool = True  # without one, policies read what is in view alone

    def __post_init__(self) -> None:
        if not 1 <= self.episodes <= MAX_EPISODES:
            raise EvidenceError(f"{self.episodes} episodes were asked for, allowed is 1 to {MAX_EPISODES}")
        if self.every < 1:
            raise EvidenceError(f"one row of {self.every} steps was asked for; it must be 1 or more")


@dataclass(frozen=True)
class WalkReport:
    """How walks ended. The episode is the unit of each interval (Clopper and Pearson, 95 %)."""

    episodes: int
    success: Interval
    levels: dict[str, Interval]
    mean_steps: float  # of those that succeeded
    num_rows: int


def walk(options: WalkOptions) -> WalkReport:
    """Walks missions, the levels in turn. No mission of tests is one of rows."""
    is_test = options.rows is None
    first = FIRST_SEED + MAX_EPISODES * (2 * options.seed + is_test)  # blocks of rows and of tests in turn
    walks = babyai.walks(first, options.episodes, options.max_steps, options.has_map)
    rows: list[str] = []
    with ExitStack() as stack:
        policy = options.policy
        if isinstance(policy, ServerAddress):
            policy = _served(policy, walks, options.temperature, stack)
        random = np.random.default_rng(options.seed)
        while alive := [each for each in walks if not each.is_over]:
            right = [each.expert() for each in alive] if options.rows is not None or policy is None else []
            if options.rows is not None:
                rows += [json.dumps(babyai.row_of(each, action)) + "\n"
                         for each, action in zip(alive, right, strict=True)
                         if action is not None and _is_row(each, options.every)]
            chosen = policy(alive) if policy is not None else [
                _strayed(action, random, 0 if is_test else STRAYS) for action in right]
            for each, action in zip(alive, chosen, strict=True):
                each.step(action)
    if options.rows is not None:
        _write(options.rows, "".join(rows))
        _write(options.rows.with_suffix(".toml"), SPACE.as_toml())
    return _report(walks, len(rows))


def _is_row(robot: MissionWalk, every: int) -> bool:
    return robot.level != MAZE or robot.num_steps % every == robot.seed % every


def _report(walks: Sequence[MissionWalk], num_rows: int) -> WalkReport:
    levels = {level: [each.is_done for each in walks if each.level == level] for level in LEVELS[:len(walks)]}
    done = [each.num_steps for each in walks if each.is_done]
    return WalkReport(len(walks), binomial_interval(len(done), len(walks)),
                      {level: binomial_interval(sum(won), len(won)) for level, won in levels.items()},
                      float(np.mean(done)) if done else 0.0, num_rows)


def _served(address: ServerAddress, walks: Sequence[MissionWalk], temperature: float, stack: ExitStack) -> WalkPolicy:
    """A policy that asks a server for all robots at the same time; each draws from a seed of its own.

    The likeliest action hangs on nothing but the text, so that no text is asked twice then.
    """
    servers = {id(each): stack.enter_context(closing(ActingServer(address, temperature, seed=number)))
               for number, each in enumerate(walks)}
    threads = stack.enter_context(ThreadPoolExecutor(min(len(walks), 64)))
    with closing(servers[id(walks[0])]) as server:
        if server.space() != SPACE:
            raise EvidenceError(f"{address.model!r} was trained on another action space than that of BabyAI")

    def action_of(each: MissionWalk) -> int:
        with closing(servers[id(each)]) as server:  # it would be too old for the next question
            answer = server.decide(each.messages(), DEADLINE_S)
        return round(float(answer.commands[0, -1])) if len(answer.commands) else ACTIONS.index("done")

    known: dict[str, int] = {}

    def likeliest(alive: Sequence[MissionWalk]) -> list[int]:
        texts = [str(each.messages()[-1]["content"]) for each in alive]
        asked = {text: each for text, each in zip(texts, alive, strict=True) if text not in known}
        known.update(zip(asked, threads.map(action_of, asked.values()), strict=True))
        return [known[text] for text in texts]

    return likeliest if temperature == 0 else lambda alive: list(threads.map(action_of, alive))


def _strayed(action: int | None, random: np.random.Generator, share: float) -> int:
    """The expert's action, or, where it is lost and in a share of the steps, one that is drawn."""
    return int(random.integers(TURNS_OR_FORWARD)) if action is None or random.random() < share else action


def _write(path: Path, text: str) -> None:
    with staged_file(path, len(text.encode())) as file:
        file.write(text.encode())
