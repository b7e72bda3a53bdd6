"""Servers in a program ask for virtual keys, and export what they did."""

from __future__ import annotations

import io
from pathlib import Path

import httpx
import pytest

import brise
from brise.serve import telemetry as telemetry_module
from brise.traffic.stores import open_virtual_keys
from brise.traffic.virtual_keys import KeyLimits
from tests.gateway.fake_upstream import fake_upstream
from tests.serve.otlp_receiver import receiver
from tests.waiting import LIMIT_S

BODY = {"model": "big", "messages": [{"role": "user", "content": "hi"}]}


def asked(url: str, key: str) -> int:
    return httpx.post(f"{url}/chat/completions", json=BODY, headers={"authorization": f"Bearer {key}"},
                      timeout=LIMIT_S, trust_env=False).status_code


def test_a_gateway_in_a_program_keeps_the_budgets_of_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path))
    place = tmp_path / "traffic.sqlite"
    keys, budgets = open_virtual_keys(place, tmp_path)
    made = keys.add("team-a", KeyLimits(requests_per_minute=1000, usd_per_day=0.5))
    with fake_upstream() as fake, brise.gateway(upstream=fake.url, store=place, port=0, log=io.StringIO(),
                                                virtual_keys=brise.VirtualKeyOptions(unknown_usd=0.25)) as server:
        assert [asked(server.url, key) for key in ("other", *[made.text] * 3)] == [401, 200, 200, 429]
    assert budgets.use(made.key.id, made.key.created_s).day.usd == 0.5
    keys.close()


def test_a_gateway_in_a_program_exports_traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path))
    monkeypatch.setattr(telemetry_module, "EVERY_S", 0.05)
    with receiver() as collector, fake_upstream() as fake:
        with brise.gateway(upstream=fake.url, port=0, log=io.StringIO(),
                           telemetry=brise.TelemetryOptions(collector.url)) as server:
            assert asked(server.url, "none") == 200
        assert [span.name for span in collector.wait_spans(3)] == ["chat big", "switch decision", "POST"]
        assert collector.points("gen_ai.client.operation.duration")
