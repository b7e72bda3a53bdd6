"""The drone's world: physics against known answers, missions by split, and what the expert and others reach."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from brise.robots import gate_course, missions, quadrotor
from brise.robots.gate_course import Flight, Policy
from brise.robots.quadrotor import GRAVITY, Vehicle

STILL = np.zeros((1, 3))


def endings(split: missions.Split, policy: Policy, count: int = 24, seed: int = 7) -> Counter[str | None]:
    flights, states = gate_course.started(np.random.default_rng(seed), split, count)
    gate_course.run(flights, states, policy)
    return Counter(flight.ending for flight in flights)


def test_it_hovers_where_thrust_equals_weight() -> None:
    states = quadrotor.hovering(np.array([[1.0, 2.0, 3.0]]), np.zeros(1))
    after = quadrotor.step(states, np.full((1, 4), 0.5 * GRAVITY / 4), STILL, 0.01)
    assert np.allclose(after.position, states.position, atol=1e-12) and np.allclose(after.velocity, 0, atol=1e-12)


def test_it_falls_as_a_body_with_linear_drag_does() -> None:
    vehicle, states = Vehicle(rotor_lag_s=1e-6), quadrotor.hovering(np.array([[0, 0, 100.0]]), np.zeros(1))
    for _ in range(10_000):
        states = quadrotor.step(states, np.zeros((1, 4)), STILL, 2e-4, vehicle)
    rate = vehicle.drag / vehicle.mass
    assert states.velocity[0, 2] == pytest.approx(-GRAVITY / rate * (1 - np.exp(-2 * rate)), rel=1e-3)


def test_a_free_body_keeps_its_angular_momentum() -> None:
    vehicle = Vehicle(rotor_lag_s=1e-6)
    states = replace(quadrotor.hovering(np.zeros((1, 3)), np.zeros(1)), rates=np.array([[1.0, 2.0, 0.5]]))
    inertia = np.array(vehicle.inertia)
    before = states.rotation[0] @ (inertia * states.rates[0])
    for _ in range(5000):
        states = quadrotor.step(states, np.zeros((1, 4)), STILL, 1e-4, vehicle)
    assert np.allclose(states.rotation[0] @ (inertia * states.rates[0]), before, rtol=2e-3)


def test_the_controller_reaches_velocities_and_yaw_rates_in_wind() -> None:
    states = quadrotor.hovering(np.zeros((2, 3)), np.zeros(2))
    command = np.array([[2.0, 0, 0, 0], [0, 0, 1, 0.8]])
    after = quadrotor.fly(states, command, np.full((2, 3), [1.0, -1.0, 0]), 3.0)
    assert np.allclose(after.velocity[0], [2, 0, 0], atol=0.25) and np.allclose(after.velocity[1, 2], 1, atol=0.1)
    assert after.rates[1, 2] == pytest.approx(0.8, abs=0.02)
    assert np.allclose(after.rotation @ np.swapaxes(after.rotation, 1, 2), np.eye(3), atol=1e-12)


def test_a_vehicle_flies_the_same_in_any_company() -> None:
    places, turned = np.array([[0, 0, 2.0], [3, 1, 1]]), np.array([0.3, -1.0])
    command, wind = np.array([[1.0, 0.5, 0.2, 0.4], [2, 0, 0, 0]]), np.ones((2, 3)) * 0.3
    both = quadrotor.fly(quadrotor.hovering(places, turned), command, wind, 0.5)
    alone = quadrotor.fly(quadrotor.hovering(places[1:], turned[1:]), command[1:], wind[1:], 0.5)
    assert np.allclose(both.position[1], alone.position[0], atol=1e-12)


def test_splits_share_neither_templates_nor_combinations() -> None:
    random = np.random.default_rng(0)
    train, combination, template = ([missions.draw(random, split) for _ in range(300)]
                                    for split in ("train", "combination", "template"))
    assert not {mission.gates for mission in train} & {mission.gates for mission in combination}
    assert not {mission.template for mission in train} & {mission.template for mission in template}
    assert not {mission.template for mission in combination} & missions.HELD_OUT_TEMPLATES
    assert {mission.template for mission in template} == missions.HELD_OUT_TEMPLATES
    assert not {mission.text for mission in template} & {mission.text for mission in (*train, *combination)}


@pytest.mark.parametrize("split", ["train", "combination", "template"])
def test_the_expert_ends_nearly_every_mission(split: missions.Split) -> None:
    assert endings(split, gate_course.expert)["done"] >= 22


def test_who_does_not_read_the_mission_fails_it() -> None:
    assert endings("combination", gate_course.without_words)["done"] <= 2


def test_an_observation_says_what_steers_and_nothing_of_the_mission() -> None:
    flights, states = gate_course.started(np.random.default_rng(1), "train", 1)
    course = replace(flights[0].course, cylinders=(), gates=dict(zip(missions.COLORS, (
        (3.0, 0.0), (0.0, 6.0), (-7.0, 0.0), (0.0, -7.0), (5.0, 5.0), (-5.0, 5.0)), strict=True)))
    here = quadrotor.hovering(np.array([[0.0, 0.0, 1.5]]), np.zeros(1))
    flight = Flight(course, flights[0].mission, ["blue"], 50.0)
    assert gate_course.observation(flight, here, 0) == (
        "passed blue; red a6 blue g green m yellow s white d orange j; height 3")
    flight.battery = 19.0
    assert gate_course.observation(flight, here, 0).endswith("; battery low")


def test_the_free_way_leads_around_what_stands_between() -> None:
    flights, _ = gate_course.started(np.random.default_rng(1), "train", 1)
    course = replace(flights[0].course, cylinders=((2.0, 0.1, 0.4),), gates={"red": (4.0, 0.0), "blue": (-4.0, 0.0)})
    flight = Flight(course, flights[0].mission, [], 50.0)
    bearing, distance = gate_course.free_way(flight, 0.0, 0.0, 0.0, course.gates["red"])
    assert -1.2 < bearing < -0.3 and distance == pytest.approx(4.0)  # to the right of the cylinder
    assert gate_course.free_way(flight, 0.0, 0.0, 0.0, course.gates["blue"])[0] == pytest.approx(np.pi)


def test_scattered_flights_are_anywhere_in_their_missions() -> None:
    flights, states = gate_course.scattered(np.random.default_rng(2), "train", 200)
    assert {len(flight.passed) for flight in flights} == {0, 1, 2, 3}
    assert all(flight.passed == list(flight.mission.gates[:len(flight.passed)]) for flight in flights)
    assert any(flight.battery < gate_course.BATTERY_LOW for flight in flights)
    assert np.ptp(states.position[:, :2], axis=0).min() > 12 and np.ptp(states.yaw) > 6


def test_a_course_is_the_same_for_the_same_seed() -> None:
    assert endings("train", gate_course.expert, 10) == endings("train", gate_course.expert, 10)


def test_a_low_battery_lands_and_an_empty_one_falls() -> None:
    flights, states = gate_course.started(np.random.default_rng(1), "train", 2)
    flights[0].battery, flights[1].battery = 21.0, 0.1
    gate_course.run(flights, states, gate_course.expert)
    assert [flight.ending for flight in flights] == ["done", "flat battery"] and len(flights[0].passed) < 3


def test_the_wrong_height_passes_no_gate() -> None:
    flights, _ = gate_course.started(np.random.default_rng(1), "train", 1)
    flight: Flight = flights[0]
    x, y = flight.course.gates[flight.mission.gates[0]]
    gate_course.judge(flight, np.array([x, y, flight.height + 1.0]), 1.0, 0.2)
    assert not flight.passed
    gate_course.judge(flight, np.array([x, y, flight.height]), 1.0, 0.2)
    assert flight.passed == [flight.mission.gates[0]]
