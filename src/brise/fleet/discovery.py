"""Devices of one network find each other by multicast DNS, beside the list that they were given.

A device says where it may be asked, and a digest of the fleet's id, so that fleets on one network leave each other
alone. That is a hint and no proof: who answers shows a certificate of the fleet. Many access points drop multicast
between their clients, so a list (`--peer`) is the first choice.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from brise.errors import FleetError, MissingExtraError
from brise.files.digests import text_digest

SERVICE = "_brise-node._tcp.local."
DIGITS = 16  # of the digest
FLEET = b"fleet"
LOOK_MS = 3000


class SeenService(Protocol):
    """What another device announced (zeroconf.ServiceInfo)."""

    port: int | None
    properties: Mapping[bytes, bytes | None]

    def parsed_addresses(self) -> list[str]: ...


def fleet_digest(fleet: str) -> str:
    """What is announced of a fleet: neither its id nor a token."""
    return text_digest(f"brise fleet {fleet}")[:DIGITS]


def url_of(seen: SeenService | None, fleet: str) -> str | None:
    """Where a device of this fleet may be asked; None for any other announcement."""
    if seen is None or seen.properties.get(FLEET) != fleet_digest(fleet).encode() or not seen.port:
        return None
    address = next(iter(seen.parsed_addresses()), None)
    if address is None:
        return None
    return f"https://{f'[{address}]' if ':' in address else address}:{seen.port}"


class PeerDiscovery:
    """Announces this device, and calls `on_found` with the URL of each other one, on a thread of its own."""

    def __init__(self, fleet: str, device: str, on_found: Callable[[str], None]) -> None:
        self._fleet, self._device, self._on_found = fleet, device, on_found
        self._zeroconf: Any = None

    def start(self, address: tuple[str, int] | None) -> None:
        """Begins to look, and to announce where this device may be asked, if it may be."""
        try:
            import zeroconf  # noqa: PLC0415 - an extra
        except ModuleNotFoundError:
            raise MissingExtraError("zeroconf", "peers", "finding devices on the network") from None
        try:
            self._zeroconf = zeroconf.Zeroconf()
        except OSError as error:
            raise FleetError(f"this network takes no multicast: {error}", hint="name the devices: --peer URL") from None
        if address is not None:
            host, port = address
            info = zeroconf.ServiceInfo(
                SERVICE, f"{self._device}.{SERVICE}", port=port, properties={FLEET: fleet_digest(self._fleet)},
                parsed_addresses=[own_address() if host in ("0.0.0.0", "::") else host])
            self._zeroconf.register_service(info)
        zeroconf.ServiceBrowser(self._zeroconf, SERVICE, handlers=[self._changed])

    def close(self) -> None:
        """Takes the announcement back."""
        if self._zeroconf is not None:
            self._zeroconf.close()

    def _changed(self, zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        if name == f"{self._device}.{SERVICE}" or state_change.name == "Removed":
            return
        url = url_of(zeroconf.get_service_info(service_type, name, LOOK_MS), self._fleet)
        if url is not None:
            self._on_found(url)


def own_address() -> str:
    """The address of this machine in its network, as its name resolves."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"
