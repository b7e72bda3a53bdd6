"""A barrier: velocities are limited so that a vehicle comes to rest before what its range sensors see.

It stands between the command and the vehicle, and asks nobody: a late answer, or a wrong one, cannot fly into a wall.
The vehicle is taken as a first-order lag behind its command, v' = (command - v) / lag. With e the free distance beyond
the margin, the barrier allows a command of rate * (e - lag * v) towards the surface. The distance then obeys
lag * e'' + (1 + lag * rate) * e' + rate * e = 0, whose roots -rate and -1 / lag are real, so e never passes through 0
(an exponential control barrier; Nguyen and Sreenath 2016, 10.1109/ACC.2016.7524935).

Legend: K surfaces, 3 axes of the vehicle's heading frame (x forward, y left, z up). Metres, seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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

    margin: float = 0.15
    lag_s: float = 0.45  # the quadrotor: 1/3 s of its velocity loop and 0.1 s to tilt
    rate: float = 1.5

    def __post_init__(self) -> None:
        for name, value in (("lag", self.lag_s), ("rate", self.rate)):
            if not 0 < value < 1000:
                raise UnsupportedError(f"the barrier's {name} is {value}, allowed is over 0, under 1000")
        if not 0 <= self.margin < 1000:
            raise UnsupportedError(f"the barrier's margin is {self.margin} m, allowed is 0 to 1000")

    def limited(self, wanted_3: Floats, velocity_3: Floats, near: Surfaces) -> Floats:
        """The velocity nearest to the wanted one, of those that lead into no surface, (3,)."""
        most_K = self.rate * (near.distances - self.margin - self.lag_s * (near.towards @ velocity_3))
        allowed = np.array(wanted_3, np.float64)
        for _ in range(ROUNDS):
            if (near.towards @ allowed <= most_K + 1e-9).all():
                break
            for towards, most in zip(near.towards, most_K, strict=True):
                allowed -= max(float(towards @ allowed) - most, 0.0) * towards
        return allowed
