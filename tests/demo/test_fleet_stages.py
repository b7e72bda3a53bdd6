"""`brise demo --fleet` with a tiny model and two devices: each stage shows what it says, or ends the story."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from brise.checkpoint.adapters.lineage import base_digest
from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.checkpoint.open import open_checkpoint
from brise.cli.main import main
from brise.demo import fleet_stages, story
from brise.demo.cable import Cable
from brise.demo.child import ChildError
from brise.demo.fleet_stages import FLEET_STAGES, FleetDemo, FleetSize
from brise.files.digests import Located
from tests.checkpoint.make_adapter import LINEAGE, random_low_ranks
from tests.checkpoint.make_gguf import write_tiny
from tests.demo.test_story import Told

SMALL = FleetSize(devices=2, gate_prompts=2, trial_requests=1, stages="50,100")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a tiny smollm2, and beside it both adapters, as an earlier run has left them."""
    monkeypatch.setenv("BRISE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BRISE_THREADS", "1")
    model = write_tiny(tmp_path / "tiny.gguf", "llama", vocab=300)
    assert main(["pull", str(model), "--name", "smollm2"]) == 0
    config = open_checkpoint(model).config
    lineage = replace(LINEAGE, base_digest=base_digest(Located("smollm2", model)))
    (tmp_path / "kept").mkdir()
    for seed, name in enumerate((fleet_stages.ADAPTERS, fleet_stages.WRONG), 7):
        low_ranks = {path: replace(one, scale=one.scale / 4) for path, one in random_low_ranks(config, seed).items()}
        write_adapter(tmp_path / "kept" / name, AdapterFile(low_ranks, 3, 1.5), lineage, config)
    return tmp_path


def test_the_whole_story_holds_with_two_devices(made: Path) -> None:
    screen = Told()
    with fleet_stages.opened(made / "demo", made / "home", made / "kept", SMALL, screen) as demo:
        ended = story.run_stages(demo, FLEET_STAGES, screen, ends_at_failure=True)
        pids = [one.node.process.pid for one in demo.devices]
    assert [(one.name, one.ending, one.why) for one in ended] == [(one.name, "done", "") for one in FLEET_STAGES]
    assert len(pids) == 2
    assert all(one.node.has_ended() for one in demo.devices)
    assert "Roll-out again" in demo.page.read_text() and "no other gets" in FLEET_STAGES[4].about


def test_a_stage_that_fails_ends_the_story(tmp_path: Path) -> None:
    def fails(demo: FleetDemo) -> None:
        raise ChildError("the hub is not there")

    screen = Told()
    with fleet_stages.opened(tmp_path, tmp_path / "home", tmp_path / "kept", SMALL, screen) as demo:
        ended = story.run_stages(demo, [story.Stage("one", "", fails), *FLEET_STAGES], screen, ends_at_failure=True)
    assert [(one.name, one.ending, one.why) for one in ended] == [("one", "failed", "the hub is not there")]


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets."""
    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                while data := client.recv(100):
                    client.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


def test_a_cable_passes_breaks_and_passes_again(echo: int) -> None:
    cable = Cable(echo)

    def connected() -> socket.socket:
        return socket.create_connection(("127.0.0.1", cable.port), timeout=10)

    with connected() as open_one:
        open_one.sendall(b"hi")
        assert open_one.recv(10) == b"hi"
        cable.cut()
        assert open_one.recv(10) == b""
    with connected() as new:
        assert new.recv(10) == b""
    cable.mend()
    with connected() as again:
        again.sendall(b"back")
        assert again.recv(10) == b"back"
    cable.close()
    with pytest.raises(OSError):
        connected()
