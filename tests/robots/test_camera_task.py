"""The gate course by pictures: what is asked, what the vehicle makes of an answer, and the commands."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.checkpoint.open import open_checkpoint
from brise.cli.main import main
from brise.data.prepare import DataOptions, prepare
from brise.engine import vision
from brise.engine.engine import EngineSettings
from brise.engine.model import load
from brise.errors import EvidenceError
from brise.robots import camera, camera_task, gate_course, gate_task, missions
from brise.robots.acting_server import Messages
from brise.robots.baselines import RowsPolicy
from brise.robots.gate_course import NOWHERE, SECTORS, SPACE, Course, Flight
from brise.robots.gate_task import FlyOptions
from brise.robots.missions import COLORS
from brise.robots.quadrotor import Floats, States, hovering
from brise.text.action_space import read_action_space, with_rarest_tokens
from brise.text.load import tokens_for
from tests.checkpoint.make_adapter import LINEAGE, random_low_ranks
from tests.checkpoint.make_vision_model import write_seeing
from tests.serve.live import live


def at(x: float, y: float, yaw: float = 0.0, **gates: tuple[float, float]) -> tuple[Flight, States]:
    """A drone there, told to fly through red and then blue."""
    mission = missions.written("{a} before {b}", ("red", "blue"), "middle", "normally", "hover")
    flight = Flight(Course(gates, (), (0.0, 0.0, 0.0), (x, y), 100.0), mission, [], 100.0)
    return flight, hovering(np.array([[x, y, 2.0]]), np.array([yaw]))


def answer(gate: str, sector: str, speed: float = 1.8) -> Floats:
    return np.array([[COLORS.index(gate), SECTORS.index(sector), 0.0, speed, 0.0, 0.0]])


def told(vehicle: camera_task.SeeingVehicle, flight: Flight, states: States, answer_1D: Floats) -> Floats:
    """The command after this answer, which the vehicle asks for."""
    asked: list[int] = []

    def ask(due: list[int]) -> Floats:
        asked.extend(due)
        return answer_1D
    (command,) = vehicle.commands([flight], states, ask)
    assert asked == [0]
    return np.asarray(command)


def bearing(command_D: Floats) -> float:
    return math.degrees(math.atan2(command_D[4], command_D[3]))


def test_pictures_stand_in_place_of_what_tells_where_gates_are() -> None:
    flight, states = at(0.0, 0.0, 0.5, red=(4.0, 1.0), blue=(-3.0, 2.0))
    before, image, after = camera_task.content_of(flight, states, 0)
    text = gate_course.observation(flight, states, 0)
    assert (before["text"], after["text"]) == ("red before blue; wait there\npassed none;", "; height 4")
    assert text.startswith("passed none; red") and text.endswith("; height 4")
    expected = camera.image_part(camera.ring(flight.course, states.position[0], 0.5).pixels)
    assert image == expected


def test_the_vehicle_flies_to_the_gate_that_stands_where_the_answer_says() -> None:
    # 10 degrees off the middle of sector c, which is at 30: the place of the gate is what range sensors say.
    flight, states = at(0.0, 0.0, red=(5 * math.cos(math.radians(40)), 5 * math.sin(math.radians(40))),
                        blue=(-4.0, 0.0))
    command = told(camera_task.SeeingVehicle(), flight, states, answer("red", "c"))
    assert bearing(command) == pytest.approx(40) and math.hypot(*command[3:5]) == pytest.approx(1.8)
    assert command[5] > 0  # it turns to the left, too


def test_of_two_things_in_line_the_farther_is_meant_and_the_nearer_is_flown_around() -> None:
    flight, states = at(-4.0, 0.0, red=(4.0, 0.0), blue=(-1.5, 0.0))
    command = told(camera_task.SeeingVehicle(), flight, states, answer("red", "a"))
    assert abs(bearing(command)) > 15


def test_it_remembers_a_gate_that_is_not_seen_any_more() -> None:
    vehicle = camera_task.SeeingVehicle(ask_every=1)
    flight, states = at(0.0, 0.0, red=(0.0, 4.0), blue=(5.0, -5.0))
    told(vehicle, flight, states, answer("red", "g"))
    moved = hovering(np.array([[-4.0, 0.0, 2.0]]), np.array([0.0]))
    unseen = np.array([[COLORS.index("red"), NOWHERE[1], 0.0, 1.8, 0.0, 0.0]])
    assert bearing(told(vehicle, flight, moved, unseen)) == pytest.approx(45)
    # Of another gate it knows no place: it flies to the middle, from where most is seen.
    other = np.array([[COLORS.index("blue"), NOWHERE[1], 0.0, 1.8, 0.0, 0.0]])
    assert bearing(told(vehicle, flight, moved, other)) == pytest.approx(0)


def test_between_answers_it_flies_on_and_it_asks_at_once_after_a_gate() -> None:
    vehicle = camera_task.SeeingVehicle(ask_every=3)
    flight, states = at(0.0, 0.0, red=(0.0, 4.0), blue=(5.0, -5.0))
    climbing = answer("red", "g")
    climbing[0, 2] = 0.6
    told(vehicle, flight, states, climbing)  # to a height of 2.4 metres
    moved = hovering(np.array([[-4.0, 0.0, 2.2]]), np.array([0.0]))
    for _ in range(2):
        (command,) = vehicle.commands([flight], moved, lambda due: pytest.fail("it was asked"))
        assert bearing(command) == pytest.approx(45) and command[2] == pytest.approx(0.3)
    told(vehicle, flight, moved, answer("red", "d"))
    flight.passed.append("red")
    told(vehicle, flight, moved, answer("blue", "v"))


def test_it_stops_when_no_gate_is_said_and_is_slow_by_one() -> None:
    flight, states = at(0.0, 0.0, red=(1.0, 0.0), blue=(5.0, -5.0))
    nothing = np.array([[*NOWHERE, -0.6, 2.0, 0.0, 1.0]])
    assert told(camera_task.SeeingVehicle(), flight, states, nothing)[2:].tolist() == [-0.6, 0.0, 0.0, 0.0]
    command = told(camera_task.SeeingVehicle(), flight, states, answer("red", "a", 2.6))
    assert math.hypot(*command[3:5]) == pytest.approx(camera_task.SLOW) and command[5] == 0


def test_who_says_what_is_right_ends_its_missions() -> None:
    flights, states = gate_course.started(np.random.default_rng(3), "combination", 12)
    vehicle = camera_task.SeeingVehicle()

    def policy(flying: Sequence[Flight], where: States) -> Floats:
        right = camera_task.labels(flying, where)
        said = np.array([SPACE.centers(SPACE.bins_of(each[None])[0]) for each in right])
        return vehicle.commands(flying, where, lambda due: said[due])
    gate_course.run(flights, states, policy)
    assert sum(flight.ending == "done" for flight in flights) >= 11


def test_a_policy_is_asked_with_pictures_and_flies_as_it_says() -> None:
    asked: list[Messages] = []

    def waits(questions: Sequence[Messages]) -> Floats:
        asked.extend(questions)
        return np.tile(np.array([*NOWHERE, 0.0, 0.0, 0.0, 0.0]), (len(questions), 1))
    report = gate_task.fly(FlyOptions(waits, 2, camera=True))
    assert report.endings.get("done", 0) == 0
    assert all([part["type"] for part in messages[1]["content"]] == ["text", "image_url", "text"]  # type: ignore[attr-defined]
               for messages in asked)


def test_rows_with_pictures_are_what_tune_reads(tmp_path: Path) -> None:
    pillow, model = pytest.importorskip("PIL.Image"), write_seeing(tmp_path)
    rows = tmp_path / "camera.jsonl"
    assert main(["act", "rows", str(rows), "--camera", "--episodes", "1", "--every", "9", "--states", "4"]) == 0
    first = json.loads(rows.read_text().splitlines()[0])
    _, image, _ = first["messages"][1]["content"]
    data = base64.b64decode(image["image_url"]["url"].partition(",")[2])
    assert pillow.open(io.BytesIO(data)).size == (4 * camera.STRIP.width, camera.STRIP.height)
    checkpoint = open_checkpoint(model)
    assert checkpoint.vision is not None
    tokens, space = tokens_for(checkpoint), read_action_space(tmp_path / "camera.toml")
    read = prepare([rows], tokens, DataOptions(actions=space, held_out_share=0.3, max_tokens=4096),
                   images=vision.image_settings(checkpoint.vision[0]))
    row = next(row for row in (*read.train, *read.held_out) if row.place.endswith(":1"))
    actions = with_rarest_tokens(space, tokens.tokenizer)
    assert len(row.images) == 1
    assert np.allclose(actions.decode(row.tokens[row.is_target].tolist()), first["actions"], atol=0.15)


def test_a_served_model_that_sees_flies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cv2")
    model = load(write_seeing(tmp_path), threads=1)
    config = open_checkpoint(model.path).config
    settings = {**LINEAGE.settings, **with_rarest_tokens(SPACE, model.tokenizer).settings()}
    write_adapter(tmp_path / "drone", AdapterFile(random_low_ranks(config, 1), 3, 6.0),
                  replace(LINEAGE, settings=settings), config)
    with live(model, engine_settings=EngineSettings(num_pages=512, max_adapters=1, max_rank=8)) as server:
        server.worker.add_adapter("drone", tmp_path / "drone", any_base=True)
        assert main(["act", "fly", "--camera", "--server", server.url, "--model", "drone", "--episodes", "2"]) == 0
        assert server.engine.stats().images > 0
        server.wait_idle()
    assert "2 missions (combination)" in capsys.readouterr().out


@pytest.mark.parametrize("policy", ["expert", RowsPolicy("linear", Path("rows.jsonl"))])
def test_what_looks_at_no_pictures_is_refused(policy: Literal["expert"] | RowsPolicy) -> None:
    with pytest.raises(EvidenceError, match="looks at no pictures"):
        FlyOptions(policy, camera=True)
