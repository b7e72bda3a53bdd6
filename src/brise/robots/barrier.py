"""A barrier: velocities are limited so that a vehicle comes to rest before what its range sensors see.

It stands between the command and the vehicle, and asks nobody: a late answer, or a wrong one, cannot fly into a wall.
The vehicle is taken as a first-order lag behind its command, v' = (command - v) / lag. With e the free distance beyond
the margin, the barrier allows a command of rate * (e - lag * v) towards the surface. The distance then obeys
lag * e'' + (1 + lag * rate) * e' + rate * e = 0, whose roots -rate and -1 / lag are real, so e never passes through 0
(an exponential control barrier; Nguyen and Sreenath 2016, 10.1109/ACC.2016.7524935).

What is allowed is chosen among the commands that the vehicle's limits and rates leave: a clip after the choice can turn
a command back into a wall. A command is held in the heading's frame, so it must fit the heading that is to come, too.
What pushes a vehicle off its command, such as wind, moves it by drift / rate into the margin, which must be wider.

Legend: K surfaces, 3 axes of the vehicle's heading frame (x forward, y left, z up). Metres, seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from brise.errors import UnsupportedError

Floats = NDArray[np.float64]

ROUNDS = 20  # of projections onto one surface after the other, which converge where surfaces meet


@dataclass(frozen=True)
class Surfaces:
    """What is near: unit vectors towards it (K, 3), and the free distances (K,)."""

    towards: Floats
    distances: Floats


@dataclass(frozen=True)
class Barrier:
    """How a vehicle is kept from surfaces: `margin` metres stay free; `lag_s` is the vehicle's own; a higher `rate`
    (1/s) brakes later and harder: at most rate * speed is asked of the brakes.
    """

    margin: float
    lag_s: float
    rate: float = 1.5

    def __post_init__(self) -> None:
        for name, value in (("lag", self.lag_s), ("rate", self.rate)):
            if not 0 < value < 1000:
                raise UnsupportedError(f"the barrier's {name} is {value}, allowed is over 0, under 1000")
        if not 0 <= self.margin < 1000:
            raise UnsupportedError(f"the barrier's margin is {self.margin} m, allowed is 0 to 1000")

    def limited(self, wanted_3: Floats, velocity_3: Floats, near: Surfaces, low_3: ArrayLike = -np.inf,
                high_3: ArrayLike = np.inf, turn: float = 0.0) -> Floats:
        """A velocity close to the wanted one that leads into no surface, of those from `low_3` to `high_3`, (3,).

        If all of these lead into one, one that leads little into it. `turn` is how far the heading turns until the next
        command (radians, to the left): what is commanded turns with it, so it must lead into nothing then, either.
        """
        most_K = self.rate * (near.distances - self.margin - self.lag_s * (near.towards @ velocity_3))
        towards_K3 = near.towards
        if turn:
            cos, sin = math.cos(turn), math.sin(turn)
            towards_K3 = np.vstack([towards_K3, towards_K3 @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])])
            most_K = np.tile(most_K, 2)
        allowed = np.array(wanted_3, np.float64)
        for _ in range(ROUNDS):
            allowed = np.clip(allowed, low_3, high_3)
            if (towards_K3 @ allowed <= most_K + 1e-9).all():
                break
            for towards, most in zip(towards_K3, most_K, strict=True):
                allowed -= max(float(towards @ allowed) - most, 0.0) * towards
        return np.clip(allowed, low_3, high_3)
