"""The map of a robot in a grid: what it knows, where that is after turns and steps, and the ways on it."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from brise.robots.babyai import ACTIONS, LEVELS, MAZE, SPACE, MissionWalk
from brise.robots.seen_map import SeenMap

KINDS = ("unseen", "empty", "wall", "floor", "door", "key", "ball", "box")
NAMES = SimpleNamespace(IDX_TO_OBJECT=dict(enumerate(KINDS)), IDX_TO_COLOR={0: "red", 1: "green"})
EAST, SOUTH, WEST, NORTH = range(4)
EMPTY, WALL, DOOR, KEY, BALL = (KINDS.index(each) for each in ("empty", "wall", "door", "key", "ball"))


def view(*things: tuple[int, int, int, int], kind: int = EMPTY, state: int = 0) -> NDArray[np.uint8]:
    """Five by five cells of one kind and the robot's own; things are (ahead, right, kind, color)."""
    image = np.zeros((5, 5, 3), np.uint8)
    image[:, :, 0] = kind
    image[2, 4, 0] = EMPTY
    for ahead, right, what, color in things:
        image[2 + right, 4 - ahead] = (what, color, state if what == DOOR else 0)
    return image


def robot_in(*things: tuple[int, int, int, int], heading: int = NORTH, state: int = 0) -> SeenMap:
    known = SeenMap(heading, NAMES)
    known.see(view(*things, state=state))
    return known


def test_it_knows_what_was_in_view_and_nothing_else() -> None:
    known = robot_in((4, -1, BALL, 1))
    assert set(known.cells) == {(x, y) for x in range(-2, 3) for y in range(-4, 1)}
    assert {place: (cell.color, cell.kind) for place, cell in known.things().items()} == {(-1, -4): ("green", "ball")}
    known.see(view(kind=0))  # nothing is in view now
    assert (-1, -4) in known.things()


@pytest.mark.parametrize("heading", [EAST, SOUTH, WEST, NORTH])
def test_a_thing_out_of_view_stays_where_it_was_while_the_robot_turns_and_steps(heading: int) -> None:
    known = robot_in((3, 2, KEY, 0), heading=heading)
    place = next(iter(known.things()))
    assert known.from_start(place) == (3, 2)
    assert (known.way_to(place).steps, known.way_to(place).action) == (5, "forward")
    told = []
    for action in ("left", "left", "forward", "right"):  # about, a step back, and a look to the left
        known.act(action)
        known.see(view(kind=0))
        way = known.way_to(place)
        told.append((way.steps, way.action))
    # What is behind the start was not seen, so that it is no step there.
    assert [steps for steps, _ in told] == [5, 5, 5, 5] and told[0][1] == "right" and told[-1][1] == "right"
    assert known.from_start(place) == (3, 2) and known.from_start(known.place) == (0, 0)


def test_a_step_counts_only_where_the_cell_in_front_lets_it_in() -> None:
    for front, kind, state, moves in (("free", EMPTY, 0, True), ("ball", BALL, 0, False), ("wall", WALL, 0, False),
                                      ("open door", DOOR, 0, True), ("closed door", DOOR, 1, False)):
        known = robot_in((1, 0, kind, 0), heading=EAST, state=state)
        known.act("forward")
        assert known.place == ((1, 0) if moves else (0, 0)), front


def test_a_closed_door_is_opened_where_nothing_else_is_unseen_and_the_way_then_leads_through() -> None:
    row = [(ahead, right, WALL, 0) for ahead in range(5) for right in (-2, -1, 1, 2)]
    behind = SeenMap(SOUTH, NAMES)
    behind.see(view(*row, (1, 0, WALL, 0)))  # a dead end at its back
    behind.act("left")
    behind.see(view(kind=0))
    behind.act("left")
    behind.see(view(*row, (2, 0, DOOR, 1), (3, 0, BALL, 1), state=1))
    way = behind.way_to_new()
    assert (way.place, way.steps, way.action) == ((0, -2), 2, "forward")
    assert behind.way_to((0, -3)) is None  # the ball is behind the door
    behind.act("forward")
    behind.see(view(*row, (1, 0, DOOR, 1), state=1))
    assert behind.way_to_new().action == "toggle"
    behind.see(view(*row, (1, 0, DOOR, 1), (2, 0, BALL, 1), state=0))
    assert (behind.way_to((0, -3)).steps, behind.way_to((0, -3)).action) == (2, "forward")
    behind.see(view(*row, (1, 0, DOOR, 1), (2, 0, BALL, 1), state=1))
    assert behind.way_to((0, -3)) is None


def test_a_thing_right_in_front_is_here_and_one_in_the_way_is_cleared() -> None:
    known = robot_in((1, 0, BALL, 1), (2, 0, KEY, 0), *((ahead, right, WALL, 0) for ahead in range(5)
                                                         for right in (-1, 1)))
    assert known.way_to((0, -1)).action == "here" and known.way_to((0, -1)).steps == 1
    assert known.way_to((0, -2)).action == "pickup" and known.way_to((0, -2)).steps > 2


@pytest.mark.parametrize("level", LEVELS)
def test_on_a_mission_it_agrees_with_the_grid_where_the_bot_saw_it_and_its_ways_are_the_shortest(level: str) -> None:
    pytest.importorskip("minigrid")
    robot = MissionWalk(level, 202)
    world = robot._world.unwrapped
    start = np.array(world.agent_pos)
    for _ in range(60):
        action = robot.expert()
        if action is None or robot.is_over:
            break
        inside = {place: cell for place, cell in robot.map.cells.items()
                  if np.all(start + place >= 0) and np.all(start + place < (world.width, world.height))}
        assert {tuple(int(each) for each in start + place) for place in inside} == {
            (int(x), int(y)) for x, y in np.argwhere(robot._bot.vis_mask)}
        for place, cell in inside.items():
            there = world.grid.get(*(start + place))
            assert cell.kind == ("empty" if there is None else there.type), (place, cell)
        assert tuple(start + robot.map.place) == tuple(world.agent_pos)
        check_ways(robot.map)
        robot.step(action)
    assert robot.num_steps >= 3


def check_ways(known: SeenMap) -> None:
    """Lengths are those of networkx over the free cells that are known."""
    networkx = pytest.importorskip("networkx")
    free = {place for place, cell in known.cells.items()
            if cell.kind in ("empty", "floor") or (cell.kind == "door" and cell.state == 0)} | {known.place}
    graph: Any = networkx.DiGraph()
    graph.add_node(known.place)
    graph.add_edges_from(((x, y), (x + east, y + south)) for x, y in free
                         for east, south in ((1, 0), (0, 1), (-1, 0), (0, -1)))  # the last cell need not be free
    lengths = networkx.single_source_shortest_path_length(graph, known.place)
    for place in known.things():
        way = known.way_to(place)
        if place in lengths:
            assert way.steps == lengths[place]
    unseen = [length for place, length in lengths.items() if place not in known.cells]
    if unseen:
        assert known.way_to_new().steps == min(unseen)


def test_the_first_step_of_the_way_that_a_mission_means_is_the_bots_own() -> None:
    pytest.importorskip("minigrid")
    random, steps = np.random.default_rng(0), 0
    for seed in range(4):
        robot = MissionWalk(MAZE if seed == 0 else LEVELS[seed % 2], seed)
        while not robot.is_over and robot.num_steps < 80 and (action := robot.expert()) is not None:
            words = [value.words[int(number)] for value, number in zip(SPACE.values, robot.label(action), strict=True)]
            lines = robot.ways_text().splitlines()
            first = next(way.split()[-1] for way in lines[-1].split("; ") if way.split()[:-1] == words[:-1])
            assert words[-1] == (first if first != "here" else "pickup"), (lines, words)
            robot.step(int(random.integers(3)) if random.random() < 0.1 else action)  # strays too
            steps += 1
    assert steps >= 60


def test_a_thing_picked_up_by_mistake_is_held_and_can_be_put_down_again() -> None:
    pytest.importorskip("minigrid")
    robot = MissionWalk("BabyAI-GoToLocal-v0", 202)
    wrong = next(place for place, cell in robot.map.things().items() if cell.kind != "ball")
    while (first := robot.map.way_to(wrong).action) != "here":
        robot.step(ACTIONS.index(first))
    robot.step(ACTIONS.index("pickup"))
    held = robot.map.holds
    assert held is not None and f"holds {held.color} {held.kind}" in robot.ways_text()
    assert wrong not in robot.map.things() and "free place" in robot.ways_text()
    for _ in range(20):
        robot.step(ACTIONS.index(robot.map.way_to_put_down().action))
        if robot.map.holds is None:
            break
    assert robot.map.holds is None and held in robot.map.things().values()
    assert "holds" not in robot.ways_text() and "free place" not in robot.ways_text()


def test_no_two_ways_of_a_text_have_the_same_words() -> None:
    pytest.importorskip("minigrid")
    for seed in range(3):
        robot = MissionWalk("BabyAI-PickupLoc-v0", seed)
        ways = sorted(way.split()[:-1] for way in robot.ways_text().splitlines()[-1].split("; "))
        assert ways and all(one != other for one, other in pairwise(ways))
