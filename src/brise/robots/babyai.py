"""BabyAI's levels as the world of a ground robot: what it reads, what it can do, and the expert (extra `sim`).

MiniGrid's BabyAI (Chevalier-Boisvert et al., 1810.08272) has missions in words, a view of 7 x 7 cells in front of the
robot, and a bot that ends every mission. The robot reads the mission, its last action, and what it sees, nearest
first. It remembers nothing; the bot remembers where it has been.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brise.errors import EvidenceError, MissingExtraError
from brise.robots.acting_server import Messages
from brise.text.action_space import ActionSpace, ActionValue

LEVELS = ("BabyAI-GoToLocal-v0", "BabyAI-PickupLoc-v0", "BabyAI-GoToObjMaze-v0")
ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")  # MiniGrid's, by their numbers
# An answer is five words. The first four say what the last one hangs on, so that a model can copy them from what it
# reads and then look at them: what it heads for, the cells ahead and the side where that is, and what is in front.
AIMS, AHEAD = ("target", "door", "none"), ("0", "1", "2", "3", "4", "5", "6", "none")
SIDES, FRONTS = ("left", "right", "straight", "none"), ("wall", "closed", "thing", "free")
SPACE = ActionSpace("babyai", tuple(
    ActionValue(name, 0.0, len(words) - 1.0, len(words), brake=len(words) - 1.0, words=words) for name, words in (
        ("aim", AIMS), ("ahead", AHEAD), ("side", SIDES), ("front", FRONTS), ("action", ACTIONS))), period_s=0.2)
SYSTEM = ("You drive a robot. Given the mission and what it sees, reply with the next action: "
          f"{', '.join(ACTIONS)}.")
# Cells that are not told: nothing is there to run into or to look for.
UNTOLD = ("unseen", "empty", "floor", "agent")
DOORS: Mapping[int, str] = MappingProxyType({0: "", 1: " closed", 2: " locked"})  # a door's state, as MiniGrid has it


class MissionWalk:
    """One robot on a mission of a level; the seed says which."""

    def __init__(self, level: str, seed: int, max_steps: int | None = None) -> None:
        gymnasium, bots, self._names = _minigrid()
        if level not in LEVELS:
            raise EvidenceError(f"there is no level {level!r}, there are: {', '.join(LEVELS)}")
        self.level, self.seed, self.num_steps = level, seed, 0
        self._world = gymnasium.make(level, disable_env_checker=True)
        with contextlib.redirect_stdout(io.StringIO()):  # MiniGrid prints what it draws again
            self._seen: Mapping[str, Any] = self._world.reset(seed=seed)[0]
        most = int(self._world.unwrapped.max_steps)
        self.max_steps = most if max_steps is None else min(max_steps, most)
        self._bot = bots.BabyAIBot(self._world)
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
        last = "none" if self._last is None else ACTIONS[self._last]
        seen = described(self._seen["image"], self._names)
        return [{"role": "system", "content": SYSTEM},
                {"role": "user", "content": f"Mission: {self._seen['mission']}. Last: {last}. Sees: {seen}."}]

    def expert(self) -> int | None:
        """The bot's action here, to be asked once before each step; None where it is lost, as it can be off its way."""
        try:
            return int(self._bot.replan(self._last))
        except Exception:  # it asserts what an expert's path keeps, and nothing says which errors it raises
            return None

    def label(self, action: int) -> list[float]:
        """The five numbers of a row: what the robot should note here, of what it sees, and the action."""
        world, image = self._world.unwrapped, self._seen["image"]
        columns, rows = image.shape[:2]
        views = (world.relative_coords(int(x), int(y)) for x, y in world.instrs.desc.obj_poss)
        aims = [(0, rows - 1 - view[1], view[0] - columns // 2) for view in views
                if view is not None and self._kind(image[view]) != "unseen"]
        aims += [(1, rows - 1 - row, column - columns // 2) for column, row in np.ndindex(columns, rows)
                 if self._kind(image[column, row]) == "door" and image[column, row][2] > 0]
        aim, ahead, right = min(aims, key=lambda each: (each[0], each[1] + abs(each[2])), default=(2, 7, 0))
        side = 3 if aim == 2 else 2 if right == 0 else int(right > 0)
        front = image[columns // 2, rows - 2]
        kind = self._kind(front)
        seen = 0 if kind == "wall" else 3 if kind in UNTOLD else 2 if kind != "door" else 1 if front[2] else 3
        return [float(number) for number in (aim, ahead, side, seen, action)]

    def _kind(self, cell: NDArray[np.uint8]) -> str:
        return str(self._names.IDX_TO_OBJECT[int(cell[0])])

    def step(self, action: int) -> None:
        """Does an action."""
        self._seen, reward, ended, cut, _ = self._world.step(action)
        self._last, self.num_steps = action, self.num_steps + 1
        self._has_won, self._has_ended = bool(reward > 0), bool(ended or cut)


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


def labelled(path: Path) -> Iterator[Mapping[str, Any]]:
    """Rows of the data set babyai_steps, whose answers are actions in words, as rows for `brise tune --actions`.

    Their missions are walked again, which says what the robot should note. EvidenceError names a row that is wrong, or
    that no step of the bot on its mission gives.
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
        robot = MissionWalk(level, seed)
        while not robot.is_over and (action_now := robot.expert()) is not None:
            if rows.pop((str(robot.messages()[1]["content"]), ACTIONS[action_now]), None) is not None:
                yield row_of(robot, action_now)
            robot.step(action_now)
        if rows:
            raise EvidenceError(f"{path}:{min(rows.values())}: BabyAI's bot does not come by this on seed {seed} of "
                                f"{level}")


def row_of(robot: MissionWalk, action: int) -> Mapping[str, Any]:
    """A row to train on: where a robot is, and what is right there."""
    return {"messages": list(robot.messages()), "actions": [robot.label(action)],
            "conversation": f"{robot.level}-{robot.seed}"}


def walks(seed: int, count: int, levels: Sequence[str] = LEVELS, max_steps: int | None = None) -> list[MissionWalk]:
    """`count` walks, the levels in turn; each level has the seeds from `seed` on."""
    return [MissionWalk(levels[at % len(levels)], seed + at // len(levels), max_steps) for at in range(count)]


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
