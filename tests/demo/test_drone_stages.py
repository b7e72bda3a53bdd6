"""`brise demo --drone`: what a vehicle does whose engine is late or dead, and the picture of its way."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from brise.cli.main import main
from brise.demo import drone_flight, drone_stages
from brise.demo.child import ChildError
from brise.demo.drone_flight import FALLBACK, LOOP_SPACE, PERIOD_S, FlownMission
from brise.errors import NetworkError
from brise.report import html
from brise.report.document import Document, Figure
from brise.robots import gate_course
from brise.robots.acting_server import ActingServer, Messages
from brise.robots.command_queue import CommandQueue
from brise.robots.gate_course import Flight
from brise.robots.pilot import PolicyAnswer, TickTimes
from brise.robots.quadrotor import States


class Engine:
    """Commands flight straight ahead, and is dead from the `dies_at`-th question on."""

    def __init__(self, dies_at: int = 10**6) -> None:
        self.dies_at, self.asked = dies_at, 0

    def decide(self, observation: Messages, deadline_s: float) -> PolicyAnswer:
        self.asked += 1
        if self.asked >= self.dies_at:
            raise NetworkError("the engine does not answer")
        command = gate_course.SPACE.brake.copy()
        command[gate_course.MOVES[0]] = 1.0
        return PolicyAnswer(command[None])

    def server(self) -> ActingServer:
        return cast(ActingServer, self)


def begun(seed: int = 0) -> tuple[Flight, States]:
    flights, states = gate_course.started(np.random.default_rng(seed), "combination", 1)
    return flights[0], states


def test_the_models_step_is_good_for_twice_the_time_that_it_was_trained_for() -> None:
    answer = drone_flight.LongerAnswers(Engine().server()).decide([], 0.1)
    assert answer.commands.shape == (round(2 * gate_course.TICK_S / PERIOD_S), len(gate_course.SPACE.values))
    assert (answer.commands == answer.commands[0]).all()


@pytest.mark.parametrize("seed", range(8))
def test_without_an_engine_it_holds_hovers_and_lands_and_hits_nothing(seed: int) -> None:
    flight, states = begun(seed)
    flight.mission = replace(flight.mission, gates=(), end="land")
    queue, sources = CommandQueue(LOOP_SPACE, FALLBACK, 1), []
    command = gate_course.SPACE.brake.copy()
    command[gate_course.MOVES[0]] = 2.4
    queue.put(np.tile(command, (8, 1)), 0)
    for _ in range(round(25 / PERIOD_S)):
        sent = queue.take(gate_course.guard(flight, states, 0))
        sources.append(sent.source)
        states = gate_course.advance([flight], states, sent.values[None], PERIOD_S)
        if flight.ending is not None:
            break
    assert flight.ending == "done" and states.position[0, 2] < 0.36
    assert sources[:11] == ["model"] * 8 + ["hold"] * 2 + ["brake"] and sources[-1] == "scripted"
    assert sources.count("brake") == round(drone_flight.HOVER_S / PERIOD_S)


def test_a_fault_comes_while_the_loop_flies_on() -> None:
    caused = threading.Event()
    flight, states = begun()
    flown = drone_flight.fly(flight, states, Engine(dies_at=6).server(), "kill", caused.set, fault_at_s=0.3, most_s=1.5)
    assert caused.wait(10) and flown.has_fault and flight.mission.end == "land"
    assert len(flown.places) == len(flown.sources) + 1 and flown.largest_step <= 1 + 1e-9
    assert "model" in flown.sources and flown.times.failures


def test_the_picture_shows_gates_and_where_commands_came_from() -> None:
    flight, _ = begun()
    places = [(0.0, 0.0, 1.0), (1.0, 0.0, 1.0), (1.0, 2.0, 1.0), (1.0, 2.0, 0.3)]
    flown = FlownMission(flight, "kill", "landed", places=places, sources=["model", "brake", "scripted"])
    picture = flown.picture("flight 1")
    page = html.page(Document("t", "l", (), (Figure("flight 1", picture),), ""))
    assert all(color in page for color in flight.course.gates) and "landed" in page and "nan" not in page
    assert picture.text() == [("the model", "1.0 m"), ("held, hovering", "2.0 m"), ("landing", "0.0 m")]


def test_times_of_flights_follow_each_other() -> None:
    one = TickTimes([1, 1], [2, 2], [(0, 5, False)], ["model", "hold"], [], skipped=1)
    both = drone_flight.merged([one, one])
    assert both.answer == [(0, 5, False), (3, 5, False)] and both.skipped == 2 and len(both.sources) == 4


@pytest.mark.parametrize(("flown", "why"), [
    (FlownMission(begun()[0], "none", "crashed"), "flight 1 crashed"),
    (FlownMission(begun()[0], "none", "done", largest_step=1.5), "1.50 of a rate"),
    (FlownMission(begun()[0], "stall", "done"), "ended before its fault"),
    (FlownMission(begun()[0], "kill", "out of time", sources=["hold"], has_fault=True), "did not land")])
def test_what_should_not_happen_ends_the_story(flown: FlownMission, why: str) -> None:
    with pytest.raises(ChildError, match=why):
        drone_stages._check([flown])


def test_stories_are_not_mixed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--drone", "--car"]) == 1
    assert "is a story of its own" in capsys.readouterr().err
