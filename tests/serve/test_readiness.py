"""`/livez` and `/readyz`, as balancers ask them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from brise.serve.serving import ServeSettings
from tests.serve.live import Live, live
from tests.waiting import LIMIT_S


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live() as running:
        yield running


def test_a_ready_server(server: Live) -> None:
    assert (server.get("/livez").status_code, server.get("/livez").json()) == (200, {"status": "alive"})
    ready = server.get("/readyz")
    assert (ready.status_code, ready.json()["status"], ready.json()["reasons"]) == (200, "ready", [])


def test_probes_need_no_key_and_write_no_line(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    keys.chmod(0o600)
    with live(settings=ServeSettings(api_keys_path=keys)) as locked:
        assert [locked.get(path).status_code for path in ("/livez", "/readyz", "/health", "/v1/models")] == [
            200, 200, 200, 401]
        log = locked.log()
        assert "/readyz" not in log and "/v1/models" in log


def test_a_draining_server_lives_and_is_not_ready() -> None:
    with live() as draining:
        draining.serving.traffic.close()
        ready = draining.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        assert [reason["code"] for reason in ready.json()["reasons"]] == ["draining"]
        assert draining.get("/livez").status_code == 200
        assert "/readyz 503" in draining.log()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_with_a_dead_engine_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    with live() as server:
        died = threading.Event()

        def die() -> None:
            died.set()
            raise RuntimeError("the engine has a defect")

        monkeypatch.setattr(server.engine, "step", die)
        server.chat()
        assert died.wait(LIMIT_S)
        ready = server.get("/readyz")
        assert (ready.status_code, ready.json()["reasons"][0]["code"]) == (503, "engine")
        assert server.get("/livez").status_code == 200
