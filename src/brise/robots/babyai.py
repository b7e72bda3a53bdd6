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
# "done", which moves nothing, is what brakes.
SPACE = ActionSpace("babyai", (ActionValue("action", 0.0, 6.0, 7, brake=6.0, words=ACTIONS),), period_s=0.2)
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


def action_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """Rows whose answers are actions in words, as rows for `brise tune --actions`; EvidenceError names a wrong one.

    A row's conversation is the mission that it is of, as `meta` says it.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                *asked, answer = row["messages"]
                action, meta = ACTIONS.index(answer["content"].strip()), row["meta"]
                yield row_of(asked, action, f"{meta['env']}-{meta['seed']}")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise EvidenceError(f"{path}:{number}: this is no row with an action in words: {error}") from error


def row_of(messages: Messages, action: int, conversation: str) -> Mapping[str, Any]:
    """A row to train on."""
    return {"messages": list(messages), "actions": [[float(action)]], "conversation": conversation}


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
