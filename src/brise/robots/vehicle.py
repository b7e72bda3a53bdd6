"""What bridges and a vehicle tell each other: set-points of velocity, and where the vehicle says it is.

Frames are those of ROS (REP 103): x forward, y left, z up, angles counter-clockwise. A bridge turns them into those of
its protocol.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from brise.errors import UnsupportedError
from brise.text.action_space import ActionSpace, Floats

# What a bridge can command, with its unit: velocities along the heading, and about the axis that points up.
VELOCITIES: Mapping[str, str] = MappingProxyType({"vx": "m/s", "vy": "m/s", "vz": "m/s", "yaw_rate": "rad/s"})


class SetPoint(NamedTuple):
    """Velocities in the heading's frame (m/s) and the yaw rate (rad/s)."""

    forward: float
    left: float
    up: float
    yaw_rate: float


@dataclass(frozen=True)
class VehicleState:
    """What a vehicle said last. `battery` (0 to 1) and `is_armed` are None where it did not say."""

    position: Floats  # (3,), metres, in the vehicle's own local frame
    velocity: Floats  # (3,), m/s, in the heading's frame
    yaw: float  # radians, -pi to pi
    age_s: float  # since the oldest part of position, velocity and yaw came in
    battery: float | None = None
    is_armed: bool | None = None


class SetPoints:
    """Reads the commands of an action space as set-points; what the space has no value for is 0.

    Values whose bins are words move nothing. UnsupportedError for another that is no velocity, or in another unit.
    """

    def __init__(self, space: ActionSpace) -> None:
        for value in space.values:
            if not value.words and VELOCITIES.get(value.name) != value.unit:
                named = ", ".join(f"{name} in {unit}" for name, unit in VELOCITIES.items())
                raise UnsupportedError(f"{space.name!r} has the value {value.name!r} in {value.unit or 'no unit'!r}; a "
                                       f"bridge sends {named}")
        names = [value.name for value in space.values]
        self._places = tuple(names.index(name) if name in names else None for name in VELOCITIES)

    def of(self, command_D: ArrayLike) -> SetPoint:
        """The set-point of one command."""
        command = np.asarray(command_D, np.float64)
        return SetPoint(*(0.0 if place is None else float(command[place]) for place in self._places))


def along_heading(velocity_3: ArrayLike, yaw: float) -> Floats:
    """A velocity of the local frame in the heading's frame, (3,)."""
    x, y, z = np.asarray(velocity_3, np.float64)
    cos, sin = math.cos(yaw), math.sin(yaw)
    return np.array([cos * x + sin * y, cos * y - sin * x, z])
