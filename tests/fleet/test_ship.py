"""Shipping: what a bundle holds, what is refused before anything is signed, and the same tokens on an empty machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from brise.errors import FleetError
from brise.fleet.gate_prompts import read_gate
from brise.fleet.ship import ship
from brise.fleet.sources import FolderSource
from brise.fleet.trust import TrustedRepository
from tests.fleet.shipping import PROMPTS, Workshop, workshop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return workshop(tmp_path_factory.mktemp("shop"))


def test_a_bundle_holds_everything(shop: Workshop, tmp_path: Path) -> None:
    adapter = shop.adapter()
    shipped = ship(shop.options(adapter=adapter, with_base=True), now=shop.clock)
    bundle = shipped.bundle
    print(shipped.as_json())
    assert bundle.version == 1 and shipped.is_offered
    device = TrustedRepository(FolderSource(shipped.repository), tmp_path / "device", shop.repository.root_bytes,
                               shop.clock)
    device.refresh()
    found = device.bundle(bundle.digest)
    assert found == bundle
    device.fetch_bundle(found, tmp_path / "slot")
    prompts = read_gate((tmp_path / "slot/gate.jsonl").read_bytes())
    assert [prompt.messages[0]["content"] for prompt in prompts] == list(PROMPTS)
