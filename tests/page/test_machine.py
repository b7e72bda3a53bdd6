"""The tab Machine: the plan's own numbers, and the state of all that answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.checkpoint.open import open_checkpoint
from brise.engine.engine import EngineSettings
from brise.engine.model import load
from brise.memory.limit import plan_within
from brise.memory.serving_plan import MemoryRequest
from brise.page import machine
from brise.page.endpoint import PageOptions
from brise.page.routes import page as page_of
from brise.serve.serving import ServeSettings
from brise.traffic.servers import SeenServer, ServerReport
from tests.checkpoint.make_adapter import random_low_ranks
from tests.checkpoint.make_gguf import write_tiny
from tests.page import stores
from tests.page.browser import overflow
from tests.page.conftest import Watch
from tests.serve.keys_rig import keyed
from tests.serve.live import Live, live


def tables(found: Mapping[str, Any]) -> dict[str, Any]:
    """Rows by section, those with columns."""
    return {section["title"]: [part for part in section["parts"] if part["kind"] == "table"]
            for section in found["sections"]}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama")


def test_a_plan_under_a_limit_is_shown_with_its_own_numbers(tiny: Path, tmp_path: Path, watch: Watch) -> None:
    plan = plan_within(tiny, "tiny", MemoryRequest(limit=400_000_000, parallel=2), threads=1)
    options = PageOptions(tmp_path / "no.sqlite", plans={"stub": plan})
    with live(settings=ServeSettings(page=page_of(options))) as server:
        [shown] = server.get("/page/api/machine").json()["plans"]
        unnamed = sum(part.nbytes for part in plan.parts if not part.formats)  # the norm before a tied head
        assert sum(term["bytes"] for term in shown["terms"]) + unnamed == plan.total_bytes
        assert shown["fits"] and shown["whole"] == shown["limit"] == 400_000_000 and "fits with" in shown["headline"]
        page = watch(server).open("machine")
        assert shown["headline"] in page.inner_text("main")
        widths = page.evaluate("""() => { const bar = document.querySelector(".plan").getBoundingClientRect().width;
          return [...document.querySelectorAll(".plan span")].map((e) => e.getBoundingClientRect().width / bar); }""")
        shares = [term["bytes"] / shown["whole"] for term in shown["terms"]]
        assert max(abs(wide - share) for wide, share in zip(widths, shares, strict=True)) < 0.01


def test_a_model_without_a_limit_is_planned_from_its_header_with_its_own_cache(tiny: Path, tmp_path: Path) -> None:
    model = load(tiny, threads=1)
    with live(model, ServeSettings(page=page_of(PageOptions(tmp_path / "no.sqlite"))),
              EngineSettings(num_pages=96)) as server:
        found = server.get("/page/api/machine").json()
        [shown] = found["plans"]
        cache = next(term for term in shown["terms"] if term["name"] == "cache")
        assert cache["bytes"] == server.worker.stats().cache_bytes and shown["limit"] is None
        assert found["peak"].endswith("B")


def test_adapters_are_listed(tiny: Path, tmp_path: Path) -> None:
    config = open_checkpoint(tiny).config
    write_adapter(tmp_path / "one", AdapterFile(random_low_ranks(config, 1), 3, 6.0), None, config)
    with live(load(tiny, threads=1), ServeSettings(page=page_of(PageOptions(tmp_path / "no.sqlite"))),
              EngineSettings(num_pages=96, max_adapters=2, max_rank=8)) as server:
        info = server.worker.add_adapter("one", tmp_path / "one")
        [table] = tables(server.get("/page/api/machine").json())["Adapters"]
        assert table["rows"][0][:3] == ["one", "stub", "3"] and table["rows"][0][6] == {"code": info.digest[:12]}


def test_upstreams_and_keys_are_shown_without_what_is_secret(home: Path, tmp_path: Path, watch: Watch) -> None:
    place = tmp_path / "traffic.sqlite"
    stores.talks(place, 2)
    settings = ServeSettings(page=page_of(PageOptions(place)))
    with keyed(place, home, settings=settings, key="sk-upstream-secret") as rig:
        text = rig.add("team-a", usd_per_day=5.0, requests_per_minute=60, models=("big", "gpt-*"), page=("view",))
        rig.keys.add("old")
        rig.keys.disable("old")
        server: Live = rig.rig.live
        assert server.serving.gateway is not None
        large = server.serving.gateway.large.each[""]
        large.failures["refused"] += 2
        answer = server.get("/page/api/machine", headers={"authorization": f"Bearer {text}"})
        found = tables(answer.json())
        assert "sk-" not in answer.text.replace(text, "sk-key") and text not in answer.text
        [upstreams], [keys] = found["Upstreams"], found["Keys"]
        assert upstreams["rows"][0][2]["status"] == "good" and "refused 2" in upstreams["rows"][0]
        assert [row[0] for row in keys["rows"]] == ["old", "team-a"]
        assert keys["rows"][0][1]["status"] == "bad" and keys["rows"][1][2] == "0.0000 of 5"
        assert keys["rows"][1][4:] == ["0 of 60", "big, gpt-*", "view"]
        seen = watch(server, bypass_csp=True)
        seen.may_fail = True
        page = seen.open("machine")
        page.get_by_label("API key").fill(text)
        page.keyboard.press("Enter")
        page.get_by_text("team-a").wait_for()
        assert not seen.axe() and not overflow(page)


def test_an_open_breaker_is_said() -> None:
    assert {state: mark.status for state, mark in machine.BREAKER.items()} == {
        "closed": "good", "open": "bad", "half-open": "unsure"}


def test_servers_of_the_store_say_how_they_are() -> None:
    report = ServerReport("1.0", "http://a", "degraded", ("the store is slow",), {"m": "ab" * 16}, leads=True)
    row = machine.server_row(SeenServer("1", "host:1", 0.0, 0.0, 1.0, report))
    assert row[0] == "host:1" and row[2] == machine.Mark("unsure", "degraded, the store is slow, leads")
    gone = machine.server_row(SeenServer("2", "host:2", 0.0, 0.0, 60.0, report))
    assert gone[2] == machine.Mark("bad", "gone") and json.dumps(gone[6]) == '"m abababababab"'


@pytest.mark.parametrize(("scheme", "width", "scale"), [("light", 1280, 1), ("dark", 1280, 1), ("dark", 360, 3),
                                                        ("light", 640, 2)])
def test_axe_finds_nothing_in_a_plan(tiny: Path, tmp_path: Path, watch: Watch, scheme: str, width: int,
                                     scale: int) -> None:
    with live(load(tiny, threads=1), ServeSettings(page=page_of(PageOptions(tmp_path / "no.sqlite"))),
              EngineSettings(num_pages=96)) as server:
        found = watch(server, color_scheme=scheme, bypass_csp=True, viewport={"width": width, "height": 740},
                      device_scale_factor=scale)
        page = found.open("machine")
        page.locator(".plan").wait_for()
        assert not found.axe() and not overflow(page)
