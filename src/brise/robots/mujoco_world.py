"""The gate course in MuJoCo: the quadrotor's dynamics by another's hand, and contacts (extra `sim`).

It takes and gives the states of quadrotor.py and flies by the same inner controller, so that whatever flies there
flies here. MuJoCo has the rigid body, the rotors and what they run into; drag and wind are forces that it is given,
since its own are quadratic.

Legend: N vehicles, as in quadrotor.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from brise.errors import MissingExtraError
from brise.robots import quadrotor
from brise.robots.gate_course import CEILING, HALL, RADIUS, Course
from brise.robots.quadrotor import GRAVITY, Floats, Gains, States, Vehicle

VEHICLE, GAINS = Vehicle(), Gains()

Integrator = Literal["RK4", "Euler"]


class MujocoWorld:
    """N vehicles, each on its course; None is an empty space without a floor."""

    def __init__(self, courses: Sequence[Course | None], vehicle: Vehicle = VEHICLE,
                 integrator: Integrator = "RK4") -> None:
        try:
            import mujoco  # noqa: PLC0415 - an extra
        except ModuleNotFoundError:
            raise MissingExtraError("mujoco", "sim", "a flight in MuJoCo") from None
        self._mujoco: Any = mujoco
        self._vehicle = vehicle
        self._models = [mujoco.MjModel.from_xml_string(mjcf(course, vehicle, integrator)) for course in courses]
        self._worlds = [mujoco.MjData(model) for model in self._models]

    def fly(self, states: States, command_N4: Floats, wind_N3: Floats, seconds: float, dt: float = 0.005,
            gains: Gains = GAINS) -> States:
        """The states after `seconds` under one set-point, as `quadrotor.fly`."""
        for _ in range(round(seconds / dt)):
            wanted = quadrotor.thrusts(states, command_N4, self._vehicle, gains)
            states = self.step(states, wanted, wind_N3, dt)
        return states

    def step(self, states: States, wanted_N4: Floats, wind_N3: Floats, dt: float) -> States:
        """The states `dt` seconds later, under commanded thrusts, as `quadrotor.step`."""
        moved = []
        for at, (model, world) in enumerate(zip(self._models, self._worlds, strict=True)):
            model.opt.timestep = dt
            world.qpos[:3], world.qvel[:3], world.qvel[3:] = states.position[at], states.velocity[at], states.rates[at]
            self._mujoco.mju_mat2Quat(world.qpos[3:7], states.rotation[at].ravel())
            world.act[:], world.ctrl[:] = states.thrust[at], wanted_N4[at]
            world.xfrc_applied[1, :3] = self._vehicle.drag * (wind_N3[at] - states.velocity[at])
            world.qacc_warmstart[:] = 0  # a state must not depend on what came before it
            self._mujoco.mj_step(model, world)
            rotation = np.empty(9)
            self._mujoco.mju_quat2Mat(rotation, world.qpos[3:7])
            moved.append((world.qpos[:3].copy(), world.qvel[:3].copy(), rotation.reshape(3, 3),
                          world.qvel[3:].copy(), world.act.copy()))
        return States(*(np.array(part) for part in zip(*moved, strict=True)))

    def num_contacts(self, at: int) -> int:
        """The contacts of a vehicle in the step before."""
        return int(self._worlds[at].ncon)


def mjcf(course: Course | None, vehicle: Vehicle, integrator: Integrator) -> str:
    """The model of one vehicle on its course, in MuJoCo's XML."""
    side = vehicle.arm / np.sqrt(2)
    # Where the mixer of quadrotor.py has them: the roll moment is y times thrust, the pitch moment -x times thrust.
    rotors = [(side, side, 1), (-side, side, -1), (-side, -side, 1), (side, -side, -1)]
    sites = "".join(f'<site name="rotor{at}" pos="{x} {y} 0"/>' for at, (x, y, _) in enumerate(rotors))
    thrusts = "".join(
        f'<general site="rotor{at}" gear="0 0 1 0 0 {turn * vehicle.yaw_moment}" ctrlrange="0 {vehicle.max_thrust}" '
        f'ctrllimited="true" dyntype="filterexact" dynprm="{vehicle.rotor_lag_s}" actearly="true"/>'
        for at, (_, _, turn) in enumerate(rotors))
    inertia = " ".join(map(str, vehicle.inertia))
    return (f'<mujoco><option gravity="0 0 {-GRAVITY}" integrator="{integrator}"/><worldbody>'
            f'{"" if course is None else _things(course)}'
            f'<body><freejoint/><inertial pos="0 0 0" mass="{vehicle.mass}" diaginertia="{inertia}"/>'
            f'<geom type="sphere" size="{RADIUS}"/>{sites}</body></worldbody><actuator>{thrusts}</actuator></mujoco>')


def _things(course: Course) -> str:
    """The hall and its cylinders; gates are flown through and touch nothing."""
    planes = [((0, 0, 0), (0, 0, 1)), ((0, 0, CEILING), (0, 0, -1)), ((HALL, 0, 0), (-1, 0, 0)),
              ((-HALL, 0, 0), (1, 0, 0)), ((0, HALL, 0), (0, -1, 0)), ((0, -HALL, 0), (0, 1, 0))]
    text = [f'<geom type="plane" size="{HALL} {HALL} 1" pos="{_numbers(place)}" zaxis="{_numbers(normal)}"/>'
            for place, normal in planes]
    text += [f'<geom type="cylinder" size="{radius} {CEILING / 2}" pos="{x} {y} {CEILING / 2}"/>'
             for x, y, radius in course.cylinders]
    return "".join(text)


def _numbers(values: Sequence[float]) -> str:
    return " ".join(map(str, values))
