"""A device from its repository to its port: real processes, with a stand-in for the server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from brise.errors import FleetError
from brise.fleet.device import status
from brise.fleet.node_process import locked
from brise.fleet.offers import TrialTerms
from tests.fleet.devices import change, device, ship
from tests.fleet.repositories import Fleet

STATES = ["fetched", "verified", "staged", "gate-passed", "trial", "committed"]


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    (tmp_path / "fleet").mkdir()
    return Fleet(tmp_path / "fleet")


def test_a_bundle_is_tried_and_kept_and_the_next_one_takes_over(fleet: Fleet, tmp_path: Path) -> None:
    ship(fleet, 1)
    with device(fleet, tmp_path) as rig:
        rig.settle(1)
        assert rig.ask() == {"version": 1, "adapter": 1, "base": "base", "fingerprint": "0f" * 16}
        ship(fleet, 2, trial=TrialTerms(requests=3))
        rig.run_until(lambda: (active := rig.state.active) is not None and active.version == 2
                      and rig.process.supervisor.answering == active)
        assert not rig.is_committed(2)
        for _ in range(3):
            assert rig.ask("POST")["version"] == 2
        rig.settle(2)
        assert rig.state.previous is not None and rig.state.previous.version == 1
        assert [state for _, state, _ in rig.reported()] == [*STATES, *STATES]
    assert status(tmp_path / "node")["current"]["version"] == 2


def test_another_model_goes_back_with_the_cable_out_and_is_reported_once(fleet: Fleet, tmp_path: Path) -> None:
    ship(fleet, 1)
    with device(fleet, tmp_path) as rig:
        rig.settle(1)
        ship(fleet, 2, fails="fingerprint")
        rig.run_until(lambda: rig.state.attempt is not None)
        fleet.repository.folder.rename(tmp_path / "cut")
        rig.run_until(lambda: rig.state.attempt is None)
        assert rig.is_committed(1) and rig.ask()["version"] == 1
        (tmp_path / "cut").rename(fleet.repository.folder)
        for _ in range(3):
            rig.process.node.step()
        kind, state, reason = rig.reported()[-1]
        assert (kind, state) == ("device-state", "gate-failed") and "was shipped" in reason
        assert [state for _, state, _ in rig.reported()].count("gate-failed") == 1


def test_a_bundle_that_does_not_start_three_times_goes_back_while_the_old_one_answers(
        fleet: Fleet, tmp_path: Path) -> None:
    ship(fleet, 1)
    with device(fleet, tmp_path) as rig:
        rig.settle(1)
        ship(fleet, 2, fails="later", counter=str(tmp_path / "counter"))  # the gate's start is the only good one
        rig.run_until(lambda: rig.state.attempt is not None)
        answers = set[object]()

        def went_back() -> bool:
            answers.add(rig.ask()["version"])
            return rig.state.attempt is None

        rig.run_until(went_back)
        assert answers == {1}
        assert rig.reported()[-1] == ("device-state", "rolled-back", "it did not start 3 times")
        assert (tmp_path / "counter").read_text() == "xxxx"


def test_a_server_that_ends_by_itself_on_trial_goes_back(fleet: Fleet, tmp_path: Path) -> None:
    ship(fleet, 1)
    with device(fleet, tmp_path) as rig:
        rig.settle(1)
        ship(fleet, 2, fails="crash", trial=TrialTerms(requests=100))

        def crashed() -> bool:
            running = rig.process.supervisor.answering
            if running is not None and running.version == 2:
                with pytest.raises(Exception, match=r"."):  # its connection breaks
                    rig.ask("POST")
            return rig.state.attempt is None and running is not None and running.version == 1

        rig.run_until(lambda: rig.state.attempt is not None)
        rig.run_until(crashed)
        assert rig.reported()[-1][1:] == ("rolled-back", "its server ended by itself 3 times")


def test_the_trial_waits_for_a_safe_moment_and_no_longer_than_its_deadline(fleet: Fleet, tmp_path: Path) -> None:
    ship(fleet, 1)
    now = tmp_path / "now"
    with device(fleet, tmp_path, safe=f"test -e {now}", safe_wait_s=1000.0) as rig:
        rig.run_until(lambda: rig.state.attempt is not None and rig.state.attempt.state == "gate-passed")
        rig.process.node.step()
        assert rig.state.attempt is not None and rig.state.attempt.state == "gate-passed"
        now.touch()
        rig.settle(1)
        now.unlink()
        ship(fleet, 2)
        rig.run_until(lambda: rig.state.attempt is not None and rig.state.attempt.state == "gate-passed")
        fleet.clock.at += 1001
        rig.settle(2)


def test_a_roll_out_that_is_taken_back_leaves_the_bundle_before_it(fleet: Fleet, tmp_path: Path) -> None:
    first = ship(fleet, 1)
    with device(fleet, tmp_path) as rig:
        rig.settle(1)
        ship(fleet, 2)
        rig.settle(2)
        change(fleet, replace(fleet.repository.rollouts.rollouts[-1], state="back", back_to=first.digest))
        rig.settle(1)
        assert rig.ask()["version"] == 1
        assert rig.reported()[-1] == ("device-state", "rolled-back", "the roll-out was taken back")


def test_what_was_committed_answers_after_a_restart_and_damage_is_found_by_its_digest(
        fleet: Fleet, tmp_path: Path) -> None:
    ship(fleet, 1)
    with device(fleet, tmp_path) as rig:
        rig.settle(1)
        ship(fleet, 2)
        rig.settle(2)
        assert rig.state.active is not None
        place = rig.process.installation.place(rig.state.active)
    fleet.repository.folder.rename(tmp_path / "gone")
    with device(fleet, tmp_path) as rig:
        rig.run_until(lambda: rig.process.supervisor.answering is not None)
        assert rig.ask()["version"] == 2
    adapter = place / "adapter" / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes().replace(b"2", b"3"))
    with device(fleet, tmp_path) as rig:
        rig.run_until(lambda: rig.process.supervisor.answering is not None)
        assert rig.ask()["version"] == 1


def test_a_stick_without_a_hub_is_enough(fleet: Fleet, tmp_path: Path) -> None:
    for version in (1, 2):
        ship(fleet, version, is_offered=False)
    with device(fleet, tmp_path) as rig:
        rig.process.node.step()
        assert rig.state.attempt is None and rig.state.current is None  # nobody wants it
    with device(fleet, tmp_path, install="tickets:1") as rig:
        rig.run_until(lambda: (active := rig.state.active) is not None and active == rig.process.supervisor.answering)
        assert rig.ask()["version"] == 1
        fleet.clock.at += 25 * 3600  # of the trial
        rig.settle(1)
    with device(fleet, tmp_path, install="tickets") as rig:
        rig.run_until(lambda: (active := rig.state.active) is not None and active.version == 2)


def test_one_node_for_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(FleetError, match="another brise node runs"), locked(tmp_path):
        pass
