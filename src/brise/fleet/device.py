"""A device: its name, its keys, what it got when it enrolled, and how it sends its reports.

    FOLDER/device.json       name, fleet, hub, the hub's key for sealed records, certificates; for its owner only
    FOLDER/keys/signing.key  the device's own key, Ed25519: it never leaves the device
    FOLDER/root.json         the root of the fleet's repository that this device trusts
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from brise import __version__
from brise.errors import FleetError
from brise.files.atomic import private_folder, staged_file
from brise.fleet.outbox import Outbox
from brise.fleet.refusals import SourceError
from brise.fleet.sealed_records import MOST_BATCH_BYTES, RecordBatch, batch_json, check_device, signed_headers
from brise.fleet.strict_json import canonical, read
from brise.traffic.seal import SigningKey, load_or_create_signing_key

FILE, ROOT, KEYS = "device.json", "root.json", "keys"
MOST_BYTES = 1 << 18
MOST_LIST_BYTES = 1 << 24  # of 200,000 revoked certificates
MOST_BATCHES = 20  # in one go
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Device:
    """Who this device is. Without a `hub` it lives from sticks and folders. `seal_key` is hexadecimal; `certificate`
    and `authority` are PEM, for other devices of the fleet."""

    name: str
    fleet: str = ""
    hub: str | None = None
    seal_key: str | None = None
    certificate: str | None = None
    authority: str | None = None

    def __post_init__(self) -> None:
        check_device(self.name)


def signing_key(folder: Path) -> SigningKey:
    """The device's own key, made when it is asked for first."""
    return load_or_create_signing_key(folder / KEYS)


def read_device(folder: Path) -> Device:
    """Who this device is; one that never enrolled gets a name, and keeps it."""
    path = folder / FILE
    try:
        return read(Device, path.read_bytes(), FILE, MOST_BYTES)
    except FileNotFoundError:
        device = Device(f"device-{secrets.token_hex(6)}")
        write_device(device, folder)
        return device
    except OSError as error:
        raise FleetError(f"cannot read {str(path)!r}: {error.strerror}") from None


def write_device(device: Device, folder: Path) -> None:
    """Keeps it."""
    private_folder(folder)
    _write(folder / FILE, canonical(device))


def read_root(folder: Path) -> bytes:
    """The root that this device trusts."""
    try:
        return (folder / ROOT).read_bytes()
    except OSError:
        raise FleetError("this device trusts no fleet yet",
                         hint="brise node --hub URL --token-env VARIABLE; or --root FILE, from whoever keeps its keys"
                         ) from None


def write_root(root: bytes, folder: Path) -> None:
    """Trusts this root from now on; another one than before is refused."""
    path = folder / ROOT
    if path.exists() and path.read_bytes() != root:
        raise FleetError("this device trusts another root already",
                         hint=f"a fleet changes its root by signed metadata; {str(path)!r} is the one of another")
    private_folder(folder)
    _write(path, root)


def facts() -> Mapping[str, str | int]:
    """What the hub is told of this machine when it enrols."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"system": platform.system(), "machine": platform.machine(), "brise": __version__,
            "cores": os.cpu_count() or 1, "memory_bytes": memory, "host": socket.gethostname()[:64]}


class HubClient:
    """What a device asks of its hub. `client` is for tests."""

    def __init__(self, url: str, client: httpx.Client | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._url = url.rstrip("/")
        self._client = client or httpx.Client(trust_env=False, timeout=TIMEOUT_S, verify=tls or True)

    def enrol(self, token: str, device: Device, key: SigningKey, folder: Path) -> Device:
        """Joins the fleet with a token, and keeps what the hub gives: the root that is trusted from now on."""
        body = {"token": token, "device": device.name, "public_key": key.public.hex(), "facts": dict(facts())}
        value = self._post("enrol", canonical(body), {"content-type": "application/json"})
        root, tls = value.get("root"), value.get("tls") or {}
        if not isinstance(root, str) or not isinstance(tls, dict):
            raise FleetError("the hub's answer to enrolling has no root")
        write_root(root.encode(), folder)
        joined = Device(device.name, _text(value, "fleet"), self._url, _text(value, "hub_seal_key"),
                        tls.get("certificate"), tls.get("authority"))
        write_device(joined, folder)
        return joined

    def send(self, outbox: Outbox, device: Device, key: SigningKey) -> int:
        """Sends what waits, batch by batch, and returns how many records the hub has acknowledged. SourceError if it
        cannot be reached: nothing is lost, and what it has twice is counted once."""
        number = 0
        for _ in range(MOST_BATCHES):
            records = outbox.batch(MOST_BATCH_BYTES - (16 << 10))
            if not records:
                break
            batch = batch_json(RecordBatch(device.name, device.fleet, tuple(records), outbox.dropped))
            value = self._post("reports", batch, signed_headers(key, device.name, batch))
            upto = _text(value, "acknowledged")
            outbox.acknowledge(upto)
            acknowledged = sum(record.id <= upto for record in records)
            number += acknowledged
            if not acknowledged:
                break
        return number

    def certificate(self, device: Device, key: SigningKey) -> str:
        """A new certificate for other devices, in PEM, in the place of one that ends soon."""
        body = canonical({"device": device.name, "fleet": device.fleet, "wants": "certificate"})
        return _text(self._post("certificate", body, signed_headers(key, device.name, body)), "certificate")

    def revocations(self) -> str:
        """The list of certificates that devices must not accept any more, in PEM, as the fleet's authority signed it;
        empty from a hub without one."""
        return _text(self._read("GET", "revocations", b"", {}, MOST_LIST_BYTES), "list")

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def _post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Mapping[str, object]:
        return self._read("POST", path, body, headers)

    def _read(self, method: str, path: str, body: bytes, headers: Mapping[str, str],
              most: int = MOST_BYTES) -> Mapping[str, object]:
        try:
            response = self._client.request(method, f"{self._url}/{path}", content=body, headers=dict(headers))
        except httpx.HTTPError as error:
            raise SourceError(f"the hub {self._url} cannot be reached: {type(error).__name__}: {error}") from None
        if response.status_code != 200:
            raise SourceError(f"the hub answers {path} with status {response.status_code}: {response.text[:300]}")
        value = response.json() if len(response.content) <= most else None
        if not isinstance(value, dict):
            raise SourceError(f"the hub's answer to {path} is no JSON object")
        return value


def status(folder: Path) -> Mapping[str, Any]:
    """What is installed in a device's folder, whether its node runs or not."""
    path = folder / "bundles" / "state.json"
    state = json.loads(path.read_bytes()) if path.exists() else {}
    return {"device": read_device(folder).name, **state}


def _text(value: Mapping[str, object], name: str) -> str:
    found = value.get(name)
    if not isinstance(found, str):
        raise FleetError(f"the hub's answer has no {name!r}")
    return found


def _write(path: Path, data: bytes) -> None:
    with staged_file(path, len(data), mode=0o600, replaces=True) as file:
        file.write(data)
