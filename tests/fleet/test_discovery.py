"""What devices announce of themselves, and which announcements count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from brise.fleet.discovery import FLEET, SERVICE, PeerDiscovery, SeenService, fleet_digest, url_of


@dataclass
class Announced:
    """As zeroconf gives it."""

    port: int | None
    properties: Mapping[bytes, bytes | None]
    addresses: tuple[str, ...] = ("192.0.2.7",)

    def parsed_addresses(self) -> list[str]:
        return list(self.addresses)


OWN = {FLEET: fleet_digest("fleet-1").encode()}


@pytest.mark.parametrize(("seen", "url"), [
    (Announced(8443, OWN), "https://192.0.2.7:8443"), (Announced(8443, OWN, ("2001:db8::1",)), "https://[2001:db8::1]:8443"),
    (Announced(8443, {FLEET: fleet_digest("fleet-2").encode()}), None), (Announced(8443, {}), None),
    (Announced(None, OWN), None), (Announced(8443, OWN, ()), None), (None, None)])
def test_only_devices_of_the_fleet_count(seen: SeenService | None, url: str | None) -> None:
    assert url_of(seen, "fleet-1") == url


def test_what_is_announced_tells_nothing_of_the_fleets_id() -> None:
    assert "fleet-1" not in fleet_digest("fleet-1") and len(fleet_digest("fleet-1")) == 16


def test_other_devices_are_told_and_the_own_announcement_is_not() -> None:
    found = list[str]()
    discovery = PeerDiscovery("fleet-1", "a", found.append)
    network = SimpleNamespace(get_service_info=lambda *_: Announced(8443, OWN))
    for name, change in (("a", "Added"), ("b", "Added"), ("b", "Removed")):
        discovery._changed(network, SERVICE, f"{name}.{SERVICE}", SimpleNamespace(name=change))
    assert found == ["https://192.0.2.7:8443"]
