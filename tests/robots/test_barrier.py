"""The barrier: no command leads a vehicle into what its sensors see."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.errors import UnsupportedError
from brise.robots import gate_course
from brise.robots.barrier import Barrier, Surfaces

BARRIER = Barrier(margin=0.2, lag_s=0.4, rate=1.5)


@given(st.floats(0.0, 3.0), st.floats(0.3, 6.0))
def test_a_first_order_vehicle_never_comes_nearer_than_the_margin(speed: float, free: float) -> None:
    if free - BARRIER.margin < BARRIER.lag_s * speed:
        return  # too fast already: no command stops it before the margin
    place, velocity, dt = 0.0, speed, 0.002
    for _ in range(5000):
        near = Surfaces(np.array([[1.0, 0, 0]]), np.array([free - place]))
        command = BARRIER.limited(np.array([3.0, 0, 0]), np.array([velocity, 0, 0]), near)
        velocity += dt * (command[0] - velocity) / BARRIER.lag_s
        place += dt * velocity
        assert free - place >= BARRIER.margin - 0.01  # of the step of Euler's method


def test_what_leads_away_or_along_is_left_alone() -> None:
    near = Surfaces(np.array([[1.0, 0, 0]]), np.array([0.1]))
    for wanted in ([-2.0, 0, 0], [-0.3, 1.5, -1.0]):
        assert BARRIER.limited(np.array(wanted), np.zeros(3), near).tolist() == wanted
    assert BARRIER.limited(np.array([2.0, 1.5, 0]), np.zeros(3), near) == pytest.approx([-0.15, 1.5, 0])


def test_in_a_corner_both_walls_hold() -> None:
    near = Surfaces(np.array([[1.0, 0, 0], [math.sqrt(0.5), math.sqrt(0.5), 0]]), np.array([0.5, 0.4]))
    allowed = BARRIER.limited(np.array([3.0, 3.0, 0]), np.zeros(3), near)
    assert (near.towards @ allowed <= 1.5 * (near.distances - 0.2) + 1e-6).all()


def test_rates_are_kept_by_the_choice_and_not_after_it() -> None:
    # A clip to the rates after the barrier would give (0.6, -0.6, 0), which leads into the surface.
    near = Surfaces(np.array([[math.sqrt(0.5), math.sqrt(0.5), 0]]), np.array([0.2]))
    last, rates = np.array([1.2, -1.2, 0.0]), np.array([0.6, 0.6, 0.6])
    allowed = BARRIER.limited(np.array([3.0, 3.0, 0.0]), np.zeros(3), near, last - rates, last + rates)
    assert (np.abs(allowed - last) <= rates + 1e-9).all()
    assert float(near.towards[0] @ allowed) <= 1e-6


@given(st.floats(-0.3, 0.3), st.floats(-3, 3), st.floats(-3, 3))
def test_a_command_leads_into_nothing_when_the_heading_has_turned(turn: float, forward: float, left: float) -> None:
    near = Surfaces(np.array([[1.0, 0, 0], [0, 1.0, 0]]), np.array([0.3, 0.5]))
    allowed = BARRIER.limited(np.array([forward, left, 0.0]), np.zeros(3), near, turn=turn)
    cos, sin = math.cos(turn), math.sin(turn)
    for x, y in (allowed[:2], (cos * allowed[0] - sin * allowed[1], sin * allowed[0] + cos * allowed[1])):
        assert x <= 1.5 * 0.1 + 1e-6 and y <= 1.5 * 0.3 + 1e-6


def crashes(seed: int, count: int, tick_s: float, hold_ticks: int, *, rates: float = 1.0, dives: bool = False,
            has_barrier: bool = True) -> int:
    """How many of `count` flights of 15 s crash under wild commands that last `hold_ticks`; with dives every second
    one goes straight down. `rates` is the share of the action space's rates that holds for a tick."""
    random = np.random.default_rng(1000 + seed)
    flights, states = gate_course.started(np.random.default_rng(seed), "train", count)
    space = replace(gate_course.SPACE, values=tuple(replace(value, max_change=(value.max_change or 100.0) * rates)
                                                    for value in gate_course.SPACE.values))
    last, wanted = np.zeros((2, count, len(space.values)))
    for tick in range(round(15 / tick_s)):
        if tick % hold_ticks == 0:
            wanted[:, gate_course.MOVES] = random.uniform(-3, 3, (count, 4))
            if dives and tick // hold_ticks % 2:
                wanted[:, gate_course.MOVES[:3]] = 0, 0, -1.5
        for at, flight in enumerate(flights):
            if flight.ending is None:
                low_high = space.reachable(last[at])
                guarded = gate_course.guard(flight, states, at)(wanted[at], *low_high) if has_barrier else wanted[at]
                last[at] = space.limited(guarded, last[at])
        states = gate_course.advance(flights, states, last, tick_s)
    return sum(flight.ending == "crashed" for flight in flights)


def test_no_wild_command_crashes_a_drone_behind_a_barrier() -> None:
    # Drones of seeds 0 and 3 crashed where the wind, the rates, or the turn of the heading was left out.
    assert sum(crashes(seed, 50, 0.1, 5, rates=0.25) for seed in (0, 3)) == 0
    assert crashes(3, 50, 0.1, 3) == 0
    assert crashes(4, 20, 0.05, 10) == 0
    assert crashes(5, 20, 0.05, 20, dives=True) == 0
    assert crashes(4, 20, 0.05, 10, has_barrier=False) > 10


@pytest.mark.parametrize("wrong", [{"lag_s": 0.0}, {"rate": -1.0}, {"margin": -0.1}])
def test_a_barrier_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UnsupportedError, match=f"barrier's {next(iter(wrong)).removesuffix('_s')} is"):
        Barrier(**{"margin": 0.2, "lag_s": 0.4} | wrong)
