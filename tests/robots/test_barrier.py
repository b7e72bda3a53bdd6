"""The barrier: no command leads a vehicle into what its sensors see."""

from __future__ import annotations

import math

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


def test_wild_commands_crash_hardly_a_drone_behind_a_barrier() -> None:
    # The vehicle is no first-order lag: over five seeds of commands 3 of 100 wild flights used the margin up.
    random = np.random.default_rng(4)
    crashed = {}
    for has_barrier in (True, False):
        flights, states = gate_course.started(np.random.default_rng(3), "train", 20)
        last, wanted = np.zeros((2, 20, len(gate_course.SPACE.values)))
        for tick in range(300):
            if tick % 10 == 0:
                wanted[:, gate_course.MOVES] = random.uniform(-3, 3, (20, 4))
            for at, flight in enumerate(flights):
                guarded = gate_course.guard(flight, states, at)(wanted[at]) if has_barrier else wanted[at]
                last[at] = gate_course.SPACE.limited(guarded, last[at])
            states = gate_course.advance(flights, states, last, 0.05)
        crashed[has_barrier] = sum(flight.ending == "crashed" for flight in flights)
    assert crashed[True] <= 1 and crashed[False] > 10


@pytest.mark.parametrize("wrong", [{"lag_s": 0.0}, {"rate": -1.0}, {"margin": -0.1}])
def test_a_barrier_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UnsupportedError, match=f"barrier's {next(iter(wrong)).removesuffix('_s')} is"):
        Barrier(**wrong)
