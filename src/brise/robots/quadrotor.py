"""A quadrotor of six degrees of freedom in NumPy, many at once, and the classical controller that flies it.

A rigid body with four rotors in an X, first-order rotors, linear drag and wind (Mahony, Kumar and Corke 2012,
10.1109/MRA.2012.2206474); the controller is geometric, on SE(3) (Lee, Leok and McClamroch, 1003.2005), with velocities
and a yaw rate as its set-points. Deterministic: the same state, command and wind give the same bits.

Legend: N vehicles, 3 axes (x forward, y left, z up), 4 rotors. Metres, seconds, radians, kilograms, newtons.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GRAVITY = 9.81


@dataclass(frozen=True)
class Vehicle:
    """The constants of one kind of vehicle; the defaults are those of a frame of half a kilogram."""

    mass: float = 0.5
    inertia: tuple[float, float, float] = (3.65e-3, 3.68e-3, 7.03e-3)
    arm: float = 0.17  # from the middle to a rotor
    yaw_moment: float = 0.0245  # newton-metres of yaw for a newton of thrust
    drag: float = 0.12  # newtons for a metre a second of air
    rotor_lag_s: float = 0.02
    max_thrust: float = 4.0  # of one rotor
    max_tilt: float = 0.6

    @cached_property
    def mixer(self) -> Floats:
        """(thrust, roll, pitch, yaw moment) of the four rotors' thrusts, (4, 4)."""
        side = self.arm / np.sqrt(2)
        return np.array([[1.0, 1, 1, 1], [side, side, -side, -side], [-side, side, side, -side],
                         [self.yaw_moment, -self.yaw_moment, self.yaw_moment, -self.yaw_moment]])

    @cached_property
    def unmixer(self) -> Floats:
        """The rotors' thrusts of these four, (4, 4)."""
        return np.linalg.inv(self.mixer).astype(np.float64)


@dataclass(frozen=True)
class States:
    """Where N vehicles are: position and velocity (N, 3), rotation from body to world (N, 3, 3), rates of the body
    (N, 3), thrust of each rotor (N, 4)."""

    position: Floats
    velocity: Floats
    rotation: Floats
    rates: Floats
    thrust: Floats

    @property
    def yaw(self) -> Floats:
        """The heading, counter-clockwise from x."""
        heading: Floats = np.arctan2(self.rotation[:, 1, 0], self.rotation[:, 0, 0])
        return heading


def hovering(position_N3: Floats, yaw_N: Floats, vehicle: Vehicle = Vehicle()) -> States:
    """Vehicles at rest in the air."""
    count = len(position_N3)
    cos, sin, zero, one = np.cos(yaw_N), np.sin(yaw_N), np.zeros(count), np.ones(count)
    rotation = np.stack([np.stack([cos, -sin, zero], 1), np.stack([sin, cos, zero], 1),
                         np.stack([zero, zero, one], 1)], 1)
    return States(np.array(position_N3, np.float64), np.zeros((count, 3)), rotation, np.zeros((count, 3)),
                  np.full((count, 4), vehicle.mass * GRAVITY / 4))


def step(states: States, wanted_N4: Floats, wind_N3: Floats, dt: float, vehicle: Vehicle = Vehicle()) -> States:
    """The states `dt` seconds later, under commanded thrusts; a step of the semi-implicit Euler method."""
    lag = 1 - np.exp(-dt / vehicle.rotor_lag_s)
    thrust = states.thrust + lag * (np.clip(wanted_N4, 0, vehicle.max_thrust) - states.thrust)
    wrench = thrust @ vehicle.mixer.T
    inertia = np.array(vehicle.inertia)
    rates = states.rates
    rates = rates + dt * (wrench[:, 1:] - _cross(rates, rates * inertia)) / inertia
    rotation = states.rotation @ _rotations(rates * dt)
    force = rotation[:, :, 2] * wrench[:, :1] + vehicle.drag * (wind_N3 - states.velocity)
    velocity = states.velocity + dt * (force / vehicle.mass - np.array([0, 0, GRAVITY]))
    return States(states.position + dt * velocity, velocity, rotation, rates, thrust)


@dataclass(frozen=True)
class Gains:
    """Of the inner controller: velocity (1/s), attitude (1/s^2) and body rates (1/s), yaw rate (1/s)."""

    velocity: float = 3.0
    attitude: float = 90.0
    rates: float = 16.0
    yaw_rate: float = 6.0


def thrusts(states: States, command_N4: Floats, vehicle: Vehicle = Vehicle(), gains: Gains = Gains()) -> Floats:
    """The rotors' thrusts, (N, 4), that follow set-points of velocity in the heading's frame and yaw rate, (N, 4)."""
    yaw = states.yaw
    cos, sin = np.cos(yaw), np.sin(yaw)
    wanted = np.array([cos * command_N4[:, 0] - sin * command_N4[:, 1],
                       sin * command_N4[:, 0] + cos * command_N4[:, 1], command_N4[:, 2]]).T
    push = gains.velocity * (wanted - states.velocity) + vehicle.drag * states.velocity / vehicle.mass
    push = push + np.array([0, 0, GRAVITY])
    push[:, 2] = np.maximum(push[:, 2], 0.3 * GRAVITY)
    most = np.tan(vehicle.max_tilt) * push[:, 2]
    side = np.hypot(push[:, 0], push[:, 1])
    push[:, :2] *= np.minimum(1, most / np.maximum(side, 1e-9))[:, None]
    up = push / np.linalg.norm(push, axis=1, keepdims=True)
    heading = np.array([cos, sin, np.zeros_like(cos)]).T
    left = _cross(up, heading)
    left /= np.linalg.norm(left, axis=1, keepdims=True)
    target = np.stack([_cross(left, up), left, up], 2)
    rotation = states.rotation
    apart = np.swapaxes(target, 1, 2) @ rotation - np.swapaxes(rotation, 1, 2) @ target
    error = 0.5 * np.array([apart[:, 2, 1], apart[:, 0, 2], apart[:, 1, 0]]).T
    turn = -gains.attitude * error - gains.rates * states.rates
    turn[:, 2] = gains.yaw_rate * (command_N4[:, 3] - states.rates[:, 2])
    moment = turn * np.array(vehicle.inertia)
    total = vehicle.mass * np.einsum("ni,ni->n", push, rotation[:, :, 2])
    wrench = np.concatenate([np.maximum(total, 0)[:, None], moment], 1)
    thrust: Floats = np.clip(wrench @ vehicle.unmixer.T, 0, vehicle.max_thrust)
    return thrust


def fly(states: States, command_N4: Floats, wind_N3: Floats, seconds: float, dt: float = 0.005,
        vehicle: Vehicle = Vehicle(), gains: Gains = Gains()) -> States:
    """The states after `seconds` under one set-point, the controller running at 1 / dt."""
    for _ in range(round(seconds / dt)):
        states = step(states, thrusts(states, command_N4, vehicle, gains), wind_N3, dt, vehicle)
    return replace(states, rotation=_orthogonal(states.rotation))


def _cross(one_N3: Floats, other_N3: Floats) -> Floats:
    """The cross products, (N, 3): as np.cross, which takes several times as long for a few vehicles."""
    (a, b, c), (x, y, z) = one_N3.T, other_N3.T
    return np.array([b * z - c * y, c * x - a * z, a * y - b * x]).T


def _rotations(angles_N3: Floats) -> Floats:
    """The rotations about these axes by their lengths (Rodrigues), (N, 3, 3)."""
    angle = np.linalg.norm(angles_N3, axis=1)
    axis = angles_N3 / np.maximum(angle, 1e-12)[:, None]
    x, y, z = axis.T
    zero = np.zeros_like(x)
    cross = np.array([zero, -z, y, z, zero, -x, -y, x, zero]).T.reshape(-1, 3, 3)
    sin, cos = np.sin(angle)[:, None, None], np.cos(angle)[:, None, None]
    turned: Floats = np.eye(3) + sin * cross + (1 - cos) * (cross @ cross)
    return turned


def _orthogonal(rotation: Floats) -> Floats:
    """The rotations without what rounding has added (Gram-Schmidt)."""
    x = rotation[:, :, 0] / np.linalg.norm(rotation[:, :, 0], axis=1, keepdims=True)
    z = _cross(x, rotation[:, :, 1])
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return np.stack([x, _cross(z, x), z], 2)
