"""Our own quadrotor against MuJoCo's and rotorpy's, and the gate course flown in MuJoCo.

Our step is of first order: its error is C dt, so that what two step sizes differ by, |x(dt) - x(dt / 2)| = C dt / 2, is
the error that is left at dt / 2 (Richardson). Tolerances are that difference, with a fifth more for the terms of second
order; the other's own error is under 1 / 10 of it, since MuJoCo integrates in steps of dt / 20 and rotorpy to 1e-9.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace

import numpy as np
import pytest

from brise.cli.main import main
from brise.robots import gate_course, quadrotor
from brise.robots.mujoco_world import MujocoWorld
from brise.robots.quadrotor import GRAVITY, Floats, States, Vehicle

SECONDS, DT = 1.0, 0.005
STILL = np.zeros((1, 3))
Step = Callable[[States, Floats, Floats, float], States]


def even(thrust: float) -> Floats:
    return np.full((1, 4), thrust)


WEIGHT = Vehicle().mass * GRAVITY / 4  # of a rotor
HOVERING = quadrotor.hovering(np.zeros((1, 3)), np.array([0.4]))
TURNING = replace(HOVERING, rates=np.array([[3.0, 2.0, 4.0]]))
CASES: Mapping[str, tuple[States, Floats]] = {
    "free fall": (replace(HOVERING, thrust=even(0)), even(0)),
    "step in thrust": (HOVERING, even(1.3 * WEIGHT)),
    "torque": (HOVERING, WEIGHT + np.array([[0.02, -0.01, -0.015, 0.005]])),
    "gyroscopic coupling": (TURNING, even(WEIGHT)),
}


@pytest.mark.parametrize("case", CASES)
def test_it_moves_as_mujoco_says(case: str) -> None:
    pytest.importorskip("mujoco")
    start, thrusts = CASES[case]
    theirs = moved(MujocoWorld([None]).step, start, thrusts, DT / 40)
    require_richardson(lambda dt: moved(quadrotor.step, start, thrusts, dt), theirs)


def test_it_hovers_as_mujoco_says() -> None:
    pytest.importorskip("mujoco")
    theirs, ours = (moved(step, HOVERING, even(WEIGHT), DT) for step in (MujocoWorld([None]).step, quadrotor.step))
    for name in ("position", "velocity", "rotation", "rates", "thrust"):
        assert np.allclose(getattr(ours, name), getattr(theirs, name), atol=1e-12), name


@pytest.mark.parametrize("case", CASES)
def test_it_moves_as_rotorpy_says(case: str) -> None:
    multirotor = pytest.importorskip("rotorpy.vehicles.multirotor")
    start, thrusts = CASES[case]
    start = replace(start, thrust=thrusts)  # rotorpy's rotors are of first order in their speed, ours in their thrust
    vehicle, per_speed = Vehicle(drag=0.0), 1e-6  # newtons for a (rad/s)^2, by which speeds stand for thrusts
    side = vehicle.arm / np.sqrt(2)
    model = multirotor.Multirotor({
        "mass": vehicle.mass, **dict(zip(("Ixx", "Iyy", "Izz"), vehicle.inertia, strict=True)), "Ixy": 0.0, "Ixz": 0.0,
        "Iyz": 0.0, "num_rotors": 4, "rotor_directions": np.array([1, -1, 1, -1]), "rotor_speed_min": 0.0,
        "rotor_speed_max": 1e4, "k_eta": per_speed, "k_m": vehicle.yaw_moment * per_speed, "tau_m": 0.02,
        "rotor_pos": {f"r{at}": np.array([x, y, 0.0]) for at, (x, y) in enumerate(
            [(side, side), (-side, side), (-side, -side), (side, -side)])}},
        aero=False, integrator_kwargs={"method": "RK45", "rtol": 1e-9, "atol": 1e-9})
    state = {"x": start.position[0], "v": start.velocity[0], "w": start.rates[0], "wind": np.zeros(3),
             "q": np.array([0, 0, np.sin(0.2), np.cos(0.2)]), "rotor_speeds": np.sqrt(thrusts[0] / per_speed)}
    after = model.step(state, {"cmd_motor_speeds": state["rotor_speeds"]}, SECONDS)
    rotation = multirotor.Rotation.from_quat(after["q"]).as_matrix()
    theirs = States(after["x"][None], after["v"][None], rotation[None], after["w"][None], thrusts)
    require_richardson(lambda dt: moved(
        lambda states, wanted, wind, dt: quadrotor.step(states, wanted, wind, dt, vehicle), start, thrusts, dt), theirs)


def test_the_expert_flies_the_course_in_mujoco_as_in_ours() -> None:
    pytest.importorskip("mujoco")
    ended = []
    for in_mujoco in (False, True):
        flights, states = gate_course.started(np.random.default_rng(5), "train", 12)
        fly = MujocoWorld([flight.course for flight in flights]).fly if in_mujoco else quadrotor.fly
        gate_course.run(flights, states, gate_course.expert, fly=fly)
        ended.append([flight.ending for flight in flights])
    assert sum(ending == "done" for ending in ended[1]) >= 11 and sum(map(str.__eq__, *ended)) >= 11


def test_a_command_flies_in_mujoco(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mujoco")
    assert main(["act", "fly", "--expert", "--episodes", "4", "--physics", "mujoco"]) == 0
    assert "4 missions" in capsys.readouterr().out


def test_what_flies_into_a_wall_is_stopped_by_it() -> None:
    pytest.importorskip("mujoco")
    flights, _ = gate_course.started(np.random.default_rng(0), "train", 1)
    world = MujocoWorld([flights[0].course])
    x = gate_course.HALL - 1.0
    after = quadrotor.hovering(np.array([[x, 7.0, 2.0]]), np.zeros(1))
    after = world.fly(after, np.array([[2.0, 0, 0, 0]]), STILL, 3.0)
    assert abs(after.position[0, 0] - (gate_course.HALL - gate_course.RADIUS)) < 0.1


def moved(step: Step, states: States, thrusts: Floats, dt: float) -> States:
    for _ in range(round(SECONDS / dt)):
        states = step(states, thrusts, STILL, dt)
    return states


def require_richardson(ours: Callable[[float], States], theirs: States) -> None:
    """That the error at dt / 2 is what dt and dt / 2 differ by."""
    coarse, fine = ours(DT), ours(DT / 2)
    for field in fields(States):
        one, half, right = (getattr(states, field.name) for states in (coarse, fine, theirs))
        assert np.abs(half - right).max() <= 1.2 * np.abs(one - half).max() + 1e-8, field.name
