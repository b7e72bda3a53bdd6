"""What a robot in a grid remembers: a map of the cells it has seen, and the ways over them.

The map grows from the robot's own views. Where the robot is, it knows by counting its own turns and steps from where it
started (odometry) and by a compass. Nothing else goes in, so a cell that was never in view is not on the map.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Place = tuple[int, int]  # cells to the east and to the south of where the robot started
HEADINGS: tuple[Place, ...] = ((1, 0), (0, 1), (-1, 0), (0, -1))  # east, south, west, north, as MiniGrid counts them
FREE, CLOSED = ("empty", "floor", "goal"), 1
BLOCKED_STEPS = 4  # what a thing in the way costs: pick it up, turn, drop it, turn back
BLOCKED_STEPS_HOLDING = 7


@dataclass(frozen=True)
class Cell:
    """What was last seen in a cell: MiniGrid's names of its kind and color, and its state (of a door)."""

    kind: str
    color: str = ""
    state: int = 0

    @property
    def is_free(self) -> bool:
        """Whether a robot can be in it."""
        return self.kind in FREE or (self.kind == "door" and self.state == 0)

    @property
    def is_thing(self) -> bool:
        """Whether it is something that can be picked up."""
        return self.kind in ("ball", "box", "key")


@dataclass(frozen=True)
class Way:
    """The shortest known way to a place."""

    place: Place
    steps: int  # cells up to the place; a thing that must be cleared off the way counts as some more
    action: str  # the first one: left, right, forward, pickup, drop or toggle; here: the place is right in front


class SeenMap:
    """The map of one robot, and its ways."""

    def __init__(self, heading: int, names: Any) -> None:
        """`heading` is the compass at the start, as in HEADINGS; `names` are MiniGrid's of kinds and colors."""
        self.cells: dict[Place, Cell] = {}
        self.place: Place = (0, 0)
        self.holds: Cell | None = None
        self._start = self._heading = heading
        self._names = names
        self._door: Place | None = None  # the closed one that it goes to for want of anything unseen
        self._put_down: Place | None = None  # where what it holds goes

    def see(self, image: NDArray[np.uint8]) -> None:
        """Takes a view: (columns, rows, [kind, color, state]) with the robot in the middle of the last row."""
        columns, rows = image.shape[:2]
        for (column, row), (kind, color, state) in zip(np.ndindex(columns, rows), image.reshape(-1, 3).tolist(),
                                                       strict=True):
            cell = Cell(self._names.IDX_TO_OBJECT[kind], self._names.IDX_TO_COLOR[color], state)
            ahead, right = rows - 1 - row, column - columns // 2
            if (ahead, right) == (0, 0):  # it shows what it holds, not the cell that it is in
                self.holds = cell if cell.is_thing else None
                self.cells.setdefault(self.place, Cell("empty"))
            elif cell.kind != "unseen":
                self.cells[self._at(ahead, right)] = cell
        for outdated in ("_free", "_past_things"):
            self.__dict__.pop(outdated, None)
        self._plan_doors()
        self._plan_drop()

    def act(self, action: str) -> None:
        """Counts what the robot does: a turn, or a step if the cell in front lets it in."""
        if action in ("left", "right"):
            self._heading = (self._heading + (1 if action == "right" else -1)) % len(HEADINGS)
        elif action == "forward" and self._is_free(self._at(1, 0)):
            self.place = self._at(1, 0)

    def things(self) -> Mapping[Place, Cell]:
        """What can be picked up, where it was seen last."""
        return {place: cell for place, cell in self.cells.items() if cell.is_thing}

    def from_start(self, place: Place) -> tuple[int, int]:
        """How far ahead of its start a place is, and how far to the right of it, as the robot faced then."""
        (east, south), (x, y) = HEADINGS[self._start], place
        return x * east + y * south, y * east - x * south

    def way_to(self, place: Place) -> Way | None:
        """The way to a place, None if no way is known."""
        found, is_blocked = self._path(lambda each: each == place)
        if found is None:
            return None
        more = (BLOCKED_STEPS_HOLDING if self.holds else BLOCKED_STEPS) if is_blocked else 0
        return Way(place, max(len(found) + more, 1), self._first(found, place))

    def way_to_new(self) -> Way | None:
        """The way to the nearest place that was not seen, or else to a closed door, None if all is known."""
        if self._door is not None:
            return self.way_to(self._door)
        found, _ = self._path(lambda each: each not in self.cells)
        return None if not found else self.way_to(found[-1])

    def way_to_put_down(self) -> Way | None:
        """The way to a free place for what it holds, None if it holds nothing or knows no such place."""
        return None if self._put_down is None else self.way_to(self._put_down)

    def _plan_doors(self) -> None:
        if self._door is not None and self._is_closed_door(self._door):
            return
        found, _ = self._path(lambda each: each not in self.cells)
        door = None if found else self._path(self._is_closed_door)[0]
        self._door = door[-1] if door else None

    def _plan_drop(self) -> None:
        if self.holds is None:
            self._put_down = None
        elif self._put_down is None or not self._can_drop(self._put_down):
            found = self._path(self._can_drop)[0]
            self._put_down = found[-1] if found else None

    def _can_drop(self, place: Place) -> bool:
        """Whether what is held can be put there; not where it is now, and not where it would cut off a way."""
        x, y = place
        cell = self.cells.get(place)
        if place == self.place or cell is None or cell.kind not in FREE:
            return False
        ring = [(x - 1, y - 1), (x - 1, y), (x - 1, y + 1), (x, y + 1), (x + 1, y + 1), (x + 1, y), (x + 1, y - 1),
                (x, y - 1)]
        opens = [each in self.cells and self._is_free(each) for each in ring]
        walls = [each in self.cells and self.cells[each].kind == "wall" for each in ring]
        changes = sum(here != after for here, after in zip(opens, opens[1:] + opens[:1], strict=True))
        reached = all(here or wall or before or after for here, wall, before, after in
                      zip(opens, walls, opens[-1:] + opens[:-1], opens[1:] + opens[:1], strict=True))
        return changes <= 2 and reached

    def _is_closed_door(self, place: Place) -> bool:
        cell = self.cells.get(place)
        return cell is not None and cell.kind == "door" and cell.state == CLOSED

    def _is_free(self, place: Place) -> bool:
        cell = self.cells.get(place)
        return cell is not None and cell.is_free

    def _at(self, ahead: int, right: int) -> Place:
        (east, south), (x, y) = HEADINGS[self._heading], self.place
        return x + ahead * east - right * south, y + ahead * south + right * east

    def _path(self, is_goal: Callable[[Place], bool]) -> tuple[list[Place] | None, bool]:
        """The shortest way to a goal, without the robot's own cell, and whether things must be cleared off it."""
        found = next(filter(is_goal, self._free), None)
        if found is not None:
            return _back(found, self._free)[::-1][1:], False
        found = next(filter(is_goal, self._past_things), None)
        if found is None:
            return None, True
        path = _back(found, self._past_things)
        return (path + _back(path[-1], self._free)[1:])[::-1][1:], True

    @cached_property
    def _free(self) -> Mapping[Place, Place | None]:
        """The places that it can reach over free cells and next to those, the nearest first, each with the one before
        it on the way there."""
        return self._search([(self.place, HEADINGS[self._heading])], past_things=False)

    @cached_property
    def _past_things(self) -> Mapping[Place, Place | None]:
        """The same from any of these places on, as if things were free cells."""
        return self._search([(each, HEADINGS[0]) for each in self._free], past_things=True)

    def _search(self, starts: Iterable[tuple[Place, Place]], past_things: bool) -> dict[Place, Place | None]:
        """Breadth first; among ways of one length straight ahead comes first, as BabyAI's bot has it."""
        queue: deque[tuple[Place, Place, Place | None]] = deque((place, heading, None) for place, heading in starts)
        before: dict[Place, Place | None] = {}
        while queue:
            place, (east, south), came = queue.popleft()
            if place in before:
                continue
            before[place] = came
            cell = self.cells.get(place)
            if cell is None or not (cell.is_free or (past_things and cell.is_thing)):
                continue
            queue.extend(((place[0] + x, place[1] + y), (x, y), place) for x, y in (
                (east, south), (south, east), (-south, -east), (-east, -south)))
        return before

    def _first(self, path: list[Place], goal: Place) -> str:
        """What to do first on a way."""
        ahead, right, left = self._at(1, 0), self._at(0, 1), self._at(0, -1)
        if not path:  # it is there, and can only leave
            return "forward" if self._is_free(ahead) else "right" if self._is_free(right) else "left"
        if path[0] == ahead:
            if self._is_closed_door(ahead):
                return "toggle"
            if ahead == goal and ahead == self._put_down:
                return "drop"
            thing = self.cells.get(ahead, Cell("empty")).is_thing
            return "here" if thing and ahead == goal else "pickup" if thing else "forward"
        if path[0] in (left, right):
            return "left" if path[0] == left else "right"
        return "left" if self._room(-1) > self._room(1) else "right"  # it is behind: it turns where it sees farther

    def _room(self, side: int) -> int:
        """Cells up to a wall or a door at one side, as far as a view shows."""
        for far in (1, 2, 3):
            cell = self.cells.get(self._at(0, side * far))
            if cell is None or cell.kind in ("wall", "door"):
                return far
        return 3


def _back(place: Place, before: Mapping[Place, Place | None]) -> list[Place]:
    """The places from one back to where a search started."""
    path = [place]
    while (place_before := before[path[-1]]) is not None:
        path.append(place_before)
    return path
