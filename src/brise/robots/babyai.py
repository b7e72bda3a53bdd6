"""BabyAI's levels as the world of a ground robot: what it reads, what it can do, and the expert (extra `sim`).

MiniGrid's BabyAI (Chevalier-Boisvert et al., 1810.08272) has missions in words, a view of 7 x 7 cells in front of the
robot, and a bot that ends every mission. The robot has a map of what it has seen and a planner that knows the ways on
it. It reads the mission and, for each thing on the map and for the nearest place that it has not seen, the way there;
which of them the mission means is in the words, and nothing else tells it.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brise.errors import EvidenceError, MissingExtraError
from brise.robots.acting_server import Messages
from brise.robots.seen_map import SeenMap, Way
from brise.text.action_space import ActionSpace, ActionValue

MAZE = "BabyAI-GoToObjMaze-v0"
LEVELS = ("BabyAI-GoToLocal-v0", "BabyAI-PickupLoc-v0", MAZE)
ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")  # MiniGrid's, by their numbers
# An answer is one of the ways that the robot reads, word by word: what is there, where that is as seen from the start,
# and the first action.
COLORS, KINDS = ("red", "green", "blue", "purple", "yellow", "grey", "new", "free"), ("ball", "box", "key", "place")
ALONG, SIDES = ("front", "beside", "behind"), ("left", "middle", "right")
SPACE = ActionSpace("babyai", tuple(
    ActionValue(name, 0.0, len(words) - 1.0, len(words), brake=len(words) - 1.0, words=words) for name, words in (
        ("color", COLORS), ("kind", KINDS), ("along", ALONG), ("side", SIDES), ("action", ACTIONS))), period_s=0.2)
SYSTEM = "Drive the robot."
# Cells that are not told: nothing is there to run into or to look for.
UNTOLD = ("unseen", "empty", "floor", "agent")
DOORS: Mapping[int, str] = MappingProxyType({0: "", 1: " closed", 2: " locked"})  # a door's state, as MiniGrid has it


class MissionWalk:
    """One robot on a mission of a level; the seed says which."""

    def __init__(self, level: str, seed: int, max_steps: int | None = None, has_map: bool = True) -> None:
        """Without a map the robot reads its last action and what it sees now, as in the data set babyai_steps."""
        gymnasium, bots, self._names = _minigrid()
        if level not in LEVELS:
            raise EvidenceError(f"there is no level {level!r}, there are: {', '.join(LEVELS)}")
        self.level, self.seed, self.num_steps, self._has_map = level, seed, 0, has_map
        self._world = gymnasium.make(level, disable_env_checker=True)
        with contextlib.redirect_stdout(io.StringIO()):  # MiniGrid prints what it draws again
            self._seen: Mapping[str, Any] = self._world.reset(seed=seed)[0]
        most = int(self._world.unwrapped.max_steps)
        self.max_steps = most if max_steps is None else min(max_steps, most)
        self._bot = bots.BabyAIBot(self._world)
        self._start = tuple(int(number) for number in self._world.unwrapped.agent_pos)  # for labels alone
        self.map = SeenMap(int(self._seen["direction"]), self._names)
        self.map.see(self._seen["image"])
        self._last: int | None = None
        self._has_won = self._has_ended = False

    @property
    def is_over(self) -> bool:
        """Whether the mission is done or the steps are used up."""
        return self._has_ended or self.num_steps >= self.max_steps

    @property
    def is_done(self) -> bool:
        """Whether the mission is done."""
        return self._has_won

    def messages(self) -> Messages:
        """What a policy is asked now."""
        text = self.ways_text() if self._has_map else self.view_text()
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]

    def view_text(self) -> str:
        """The mission, the last action and what is in view, which is all that a row of babyai_steps says."""
        last = "none" if self._last is None else ACTIONS[self._last]
        return f"Mission: {self._seen['mission']}. Last: {last}. Sees: {described(self._seen['image'], self._names)}."

    def ways_text(self) -> str:
        """The mission, what the robot holds, and the ways that it knows, the nearest first.

        Of things that no words of a mission tell apart, the nearest alone.
        """
        holds = self.map.holds
        held = [f"holds {holds.color} {holds.kind}"] if holds else []
        ways: dict[str, str] = {}
        for way in self._ways():
            ways.setdefault(" ".join(self._noted(way)), way.action)
        return "\n".join((self._seen["mission"], *held, "; ".join(f"{noted} {first}" for noted, first in ways.items())))

    def expert(self) -> int | None:
        """The bot's action here, to be asked once before each step; None where it is lost, as it can be off its way."""
        try:
            return int(self._bot.replan(self._last))
        except Exception:  # it asserts what an expert's path keeps, and nothing says which errors it raises
            return None

    def label(self, action: int) -> list[float]:
        """The five numbers of a row: the way that the bot goes and the action."""
        wanted = [(x - self._start[0], y - self._start[1]) for x, y in self._world.unwrapped.instrs.desc.obj_poss]
        ways = [way for way in (self.map.way_to(place) for place in wanted if place in self.map.things()) if way]
        new = self.map.way_to_put_down() if self.map.holds else self.map.way_to_new()
        way = min(ways, key=lambda each: (each.steps, each.place)) if ways and not self.map.holds else new
        words = self._noted(way) if way else tuple(value.words[-1] for value in SPACE.values[:-1])
        return [float(value.words.index(word)) for value, word in zip(SPACE.values, (*words, ACTIONS[action]),
                                                                      strict=True)]

    def step(self, action: int) -> None:
        """Does an action."""
        self._seen, reward, ended, cut, _ = self._world.step(action)
        self.map.act(ACTIONS[action])
        self.map.see(self._seen["image"])
        self._last, self.num_steps = action, self.num_steps + 1
        self._has_won, self._has_ended = bool(reward > 0), bool(ended or cut)

    def _ways(self) -> list[Way]:
        ways = [self.map.way_to(place) for place in self.map.things()]
        known = sorted((way for way in ways if way), key=lambda each: (each.steps, each.place))
        return known + [way for way in (self.map.way_to_new(), self.map.way_to_put_down()) if way]

    def _noted(self, way: Way) -> tuple[str, ...]:
        """What there is at the end of a way, and where that is as seen from the start."""
        cell = self.map.cells.get(way.place)
        what = (cell.color, cell.kind) if cell and cell.is_thing else (
            "free" if cell and cell.kind != "door" else "new", "place")
        ahead, right = self.map.from_start(way.place)
        return (*what, ALONG[1 - int(np.sign(ahead))], SIDES[1 + int(np.sign(right))])


def described(image: NDArray[np.uint8], names: Any) -> str:
    """What a view says, nearest first: things anywhere, walls only straight ahead and at either side.

    `image` is MiniGrid's, (columns, rows, [kind, color, state]), with the robot in the middle of the last row, where
    the thing that it carries is; `names` are MiniGrid's of kinds and colors.
    """
    columns, rows = image.shape[:2]
    told: list[tuple[int, str]] = []
    walls: dict[tuple[bool, int], tuple[int, str]] = {}
    for column, row in np.ndindex(columns, rows):
        kind, color, state = (int(number) for number in image[column, row])
        name, ahead, right = names.IDX_TO_OBJECT[kind], rows - 1 - row, column - columns // 2
        if name in UNTOLD:
            continue
        place = (ahead + abs(right), _place(ahead, right))
        if name != "wall":
            closed = DOORS[state] if name == "door" else ""
            told.append((place[0], f"{names.IDX_TO_COLOR[color]} {name}{closed} {place[1]}"))
        elif ahead == 0 or right == 0:
            side = (ahead > 0, int(np.sign(right)))
            walls[side] = min(walls.get(side, place), place)
    told += [(distance, f"wall {place}") for distance, place in walls.values()]
    return "; ".join(text for _, text in sorted(told))


def labelled(path: Path, has_map: bool = True) -> Iterator[Mapping[str, Any]]:
    """Rows of the data set babyai_steps, whose answers are actions in words, as rows for `brise tune --actions`.

    Their missions are walked again, since a row does not say what was seen before. EvidenceError names a row that is
    wrong, or that no step of the bot on its mission gives.
    """
    wanted: dict[tuple[str, int], dict[tuple[str, str], int]] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                text, action, meta = row["messages"][-2]["content"], row["messages"][-1]["content"], row["meta"]
                wanted.setdefault((str(meta["env"]), int(meta["seed"])), {})[text, action] = number
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise EvidenceError(f"{path}:{number}: this is no row with an action in words: {error!r}") from error
    for (level, seed), rows in wanted.items():
        robot = MissionWalk(level, seed, has_map=has_map)
        while not robot.is_over and (action_now := robot.expert()) is not None:
            if rows.pop((robot.view_text(), ACTIONS[action_now]), None) is not None:
                yield row_of(robot, action_now)
            robot.step(action_now)
        if rows:
            raise EvidenceError(f"{path}:{min(rows.values())}: BabyAI's bot does not come by this on seed {seed} of "
                                f"{level}")


def row_of(robot: MissionWalk, action: int) -> Mapping[str, Any]:
    """A row to train on: where a robot is, and what is right there."""
    return {"messages": list(robot.messages()), "actions": [robot.label(action)],
            "conversation": f"{robot.level}-{robot.seed}"}


def walks(seed: int, count: int, max_steps: int | None = None, has_map: bool = True) -> list[MissionWalk]:
    """`count` walks, the levels in turn; each level has the seeds from `seed` on."""
    return [MissionWalk(LEVELS[at % len(LEVELS)], seed + at // len(LEVELS), max_steps, has_map) for at in range(count)]


def _place(ahead: int, right: int) -> str:
    front = f"{ahead} ahead" if ahead else "here"
    return f"{front} {abs(right)} {'left' if right < 0 else 'right'}" if right else front


def _minigrid() -> tuple[Any, Any, Any]:
    """gymnasium, MiniGrid's bots and its names."""
    try:
        import gymnasium  # noqa: PLC0415 - an extra
        from minigrid.core import constants  # noqa: PLC0415
        from minigrid.utils import baby_ai_bot  # noqa: PLC0415
    except ModuleNotFoundError:
        raise MissingExtraError("minigrid", "sim", "a walk in BabyAI") from None
    return gymnasium, baby_ai_bot, constants
