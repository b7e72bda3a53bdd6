"""A device's options, and what they name: its fleet, its hub, and the repository that it looks at."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from brise.errors import FleetError
from brise.fleet.device import Device, HubClient, read_device, read_root, signing_key, write_device, write_root
from brise.fleet.sources import Source, trusted
from brise.fleet.supervisor import PROGRAM
from brise.serve.access import is_loopback
from brise.settings import Settings


@dataclass(frozen=True)
class NodeOptions:
    """A device. `source` is a folder or a URL of a repository (None: the hub's); `token` enrols it with the hub first.
    `install` is NAME or NAME:VERSION of a bundle that is wanted without a roll-out.

    `safe` is a command (status 0: now) or a URL (status 200: now) that is asked before a swap, for `safe_wait_s` at
    most. `serve` are further options of `brise serve`, `upstream` those of the large model; without, there is none.
    `peers` are URLs of other devices, `peer_listen` is the address at which they may ask this one; with `finds_peers`
    they find each other by multicast. `authority` is a PEM file with the certificate that signed those of the hub and
    the source, `registry_login` is USER:PASSWORD. `note` is told what happens, a line each. `program` runs the servers,
    and `clock` is the system's.
    """

    folder: Path
    settings: Settings
    hub: str | None = None
    token: str | None = field(default=None, repr=False)
    name: str | None = None
    source: str | None = None
    install: str | None = None
    root: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: Path | None = None
    upstream: Sequence[str] = ()
    serve: Sequence[str] = ()
    poll_s: float = 300.0
    jitter: float = 0.1
    safe: str | None = None
    safe_wait_s: float = 86400.0
    outbox_bytes: int = 64 << 20
    peers: Sequence[str] = ()
    peer_listen: tuple[str, int] | None = None
    finds_peers: bool = False
    authority: Path | None = None
    registry_login: str | None = field(default=None, repr=False)
    allows_http: bool = False
    note: Callable[[str], None] = lambda text: None
    program: Sequence[str] = PROGRAM
    clock: Callable[[], float] = time.time


def enrol(options: NodeOptions) -> Device:
    """Gives the device its name, its root and its place in a fleet, as far as the options say so."""
    device = read_device(options.folder)
    if options.name is not None and options.name != device.name:
        if device.fleet:
            raise FleetError(f"this device is enrolled as {device.name!r}, and cannot be called {options.name!r} now")
        device = replace(device, name=options.name)
        write_device(device, options.folder)
    if options.root is not None:
        write_root(options.root.read_bytes(), options.folder)
    if options.token is not None and not device.fleet:  # a service is started with it again and again
        if options.hub is None:
            raise FleetError("a token enrols a device with a hub, and none is named", hint="--hub URL")
        with closing(hub_client(options, options.hub)) as hub:
            device = hub.enrol(options.token, device, signing_key(options.folder), options.folder)
    return device


def hub_client(options: NodeOptions, url: str) -> HubClient:
    """Refuses a hub on another machine without TLS: whoever is between them reads the token and gives another root."""
    place = urlsplit(url)
    if place.scheme == "http" and not is_loopback(place.hostname or "") and not options.allows_http:
        raise FleetError(f"refusing to speak to the hub {url!r} without TLS: the token would cross the network in the "
                         "clear, and the answer could come from anybody", hint="an https URL, or --allow-http")
    return HubClient(url, tls=trusted(options.authority))


def source_of(options: NodeOptions, device: Device) -> Source:
    """Where the repository is: a folder, a stick, a web server, a registry."""
    from brise.fleet.registry import open_source  # noqa: PLC0415 - tuf is an extra

    place = options.source or (None if device.hub is None else f"{device.hub}/repository")
    if place is None:
        raise FleetError("there is no repository to look at", hint="--source FOLDER or URL, or --hub URL")
    return open_source(place, options.registry_login, trusted(options.authority))


def open_repository(options: NodeOptions, source: Source) -> Any:
    """The repository that the device verifies and trusts (trust.TrustedRepository)."""
    from brise.fleet.trust import TrustedRepository  # noqa: PLC0415 - tuf is an extra

    return TrustedRepository(source, options.folder / "repository", read_root(options.folder), options.clock)
