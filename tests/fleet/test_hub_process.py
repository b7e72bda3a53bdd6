"""`brise hub` as a process, `brise fleet` as its operator, a device that reports, and `brise audit` at the end."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509

from brise import settings
from brise.cli.main import main
from brise.errors import FleetError
from brise.fleet import device as devices
from brise.fleet.device import Device, HubClient
from brise.fleet.node_options import NodeOptions, enrol, hub_client, open_repository, source_of
from brise.fleet.outbox import Outbox
from brise.fleet.peer_certificates import CertificateKeeper, PeerTls, serial_and_end
from brise.fleet.refusals import SourceError
from brise.fleet.sources import HttpSource
from tests.fleet.devices import device, ship
from tests.fleet.hubs import pem
from tests.fleet.repositories import HUB, Clock, Fleet
from tests.waiting import wait_until


@dataclass
class RunningHub:
    """A hub in a process of its own, and its operator's command in this one."""

    url: str
    bundle: str
    capture: pytest.CaptureFixture[str]

    def fleet(self, *words: str, status: int = 0) -> str:
        """What `brise fleet` prints."""
        assert main(["fleet", *words, "--hub", self.url]) == status
        found = self.capture.readouterr()
        return found.out if status == 0 else found.err


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A BRISE_HOME with a repository, a bundle and the hub's key, where `brise hub` looks for them."""
    monkeypatch.setenv("BRISE_HOME", str(tmp_path))
    fleet = Fleet(tmp_path / "made")
    fleet.ship(1, is_running=False)
    keys = tmp_path / "fleet" / "keys"
    keys.mkdir(parents=True)
    shutil.copytree(fleet.repository.folder, tmp_path / "fleet" / "repository")
    (keys / "hub.key").write_text(pem(HUB))
    (keys / "hub.key").chmod(0o600)
    return tmp_path


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """A repository where `brise hub` looks for it, with bundles for a device with fake servers: 1 is good, 2 is not."""
    monkeypatch.setenv("BRISE_HOME", str(tmp_path))
    made = Fleet(tmp_path / "fleet", Clock(time.time()))
    ship(made, 1)
    ship(made, 2, fails="start")
    (tmp_path / "fleet" / "keys").mkdir()
    (tmp_path / "fleet" / "keys" / "hub.key").write_text(pem(HUB))
    (tmp_path / "fleet" / "keys" / "hub.key").chmod(0o600)
    return made


@contextmanager
def running(capture: pytest.CaptureFixture[str], *words: str) -> Iterator[RunningHub]:
    process = subprocess.Popen([sys.executable, "-m", "brise", "hub", "--port", "0", *words], stderr=subprocess.PIPE,
                               text=True, env=settings.child_environment({"PYTHONPATH": ":".join(sys.path)}))
    assert process.stderr is not None
    try:
        found = re.search(r"at (https?://127\.0\.0\.1:\d+)$", process.stderr.readline().strip())
        assert found is not None
        process.stderr.readline()
        yield RunningHub(found[1], "tickets", capture)
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
        process.stderr.close()
    assert status == 0


def joined(hub: RunningHub, folder: Path, token: str) -> tuple[HubClient, Device]:
    """A device that has enrolled, as `brise node` does it."""
    client = HubClient(hub.url)
    key = devices.signing_key(folder)
    return client, client.enrol(token, Device("robot-1"), key, folder)


def test_a_device_enrols_reports_and_is_seen(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(capsys) as hub:
        token = hub.fleet("token", "robots").strip()
        client, joined_as = joined(hub, home / "node", token)
        with closing(client):
            assert json.loads(hub.fleet("devices", "--json"))["device"] == "robot-1"
            begun = hub.fleet("roll-out", "tickets", "--trial-hours", "1", "--wait", "1m", "--reason", "the first")
            assert "tickets-1: tickets 1 is running, 1 of 1 devices are let in" in begun
            bundle = json.loads(hub.fleet("status", "--json"))["rollouts"][0]["bundle"]
            assert joined_as.seal_key is not None
            with closing(Outbox(home / "outbox.sqlite", 1 << 20, fleet=joined_as.fleet, device="robot-1",
                                hub_key=bytes.fromhex(joined_as.seal_key))) as outbox:
                for state in ("fetched", "committed"):
                    outbox.add("device-state", {"rollout": "tickets-1", "bundle": bundle, "state": state}, "alarm")
                assert client.send(outbox, joined_as, devices.signing_key(home / "node")) == 2
                assert len(outbox) == 0
        wait_until(lambda: json.loads(hub.fleet("status", "--json"))["rollouts"][0]["state"] == "complete")
        assert "committed: 1" in hub.fleet("status")
    assert main(["audit"]) == 0
    told = capsys.readouterr().out
    assert "rollout-complete" in told
    assert main(["audit", "--json"]) == 0
    (audited,) = json.loads(capsys.readouterr().out)["rollouts"]
    assert (audited["state"], audited["committed"], audited["wrong"]) == ("complete", 1, [])


def test_a_device_commits_a_good_bundle_and_goes_back_from_a_bad_one(
        fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin = ("--trial-requests", "0", "--trial-hours", "1", "--wait", "1m", "--reason", "a test")
    with running(capsys) as hub:
        token = hub.fleet("token", "robots").strip()

        def newest() -> Mapping[str, Any]:
            found: Mapping[str, Any] = json.loads(hub.fleet("status", "--json"))["rollouts"][-1]
            return found

        with device(fleet, tmp_path, hub=hub.url, token=token, name="robot-1", source=None, root=None,
                    clock=time.time) as rig:
            hub.fleet("roll-out", "tickets:1", *begin)
            rig.settle(1)
            rig.run_until(lambda: newest()["state"] == "complete")
            assert newest()["committed"] == 1
            hub.fleet("roll-out", "tickets:2", *begin)
            rig.run_until(lambda: newest()["state"] == "paused")
            assert rig.state.current is not None
            assert rig.state.current.version == 1
            found = newest()
            assert (found["failed"], found["committed"], found["has_statistic"]) == (1, 0, False)
            assert found["reasons"][0]["reason"]
            assert rig.ask()["version"] == 1


def test_the_operator_pauses_and_takes_back(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(capsys) as hub:
        hub.fleet("roll-out", "tickets:1", "--name", "first", "--tolerated", "2", "--refuted", "4")
        assert "first: tickets 1 is paused" in hub.fleet("pause", "first", "--reason", "lunch")
        assert "is running" in hub.fleet("resume", "first", "--reason", "fed")
        assert "is back" in hub.fleet("back", "first", "--reason", "too slow")
        assert "cannot resume" in hub.fleet("resume", "first", "--reason", "again", status=1)
        assert "there are tickets:1" in hub.fleet("roll-out", "ticket", status=1)
        assert re.fullmatch(r"[0-9a-f]{64}\n", hub.fleet("forget", "customer-17"))
        assert hub.fleet("records") == ""


def tls_options(home: Path) -> tuple[str, ...]:
    """Options of a hub with a certificate of an authority of its own, which is in `ca.pem`."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(home / "ca.pem"))
    issued.cert_chain_pems[0].write_to_path(str(home / "hub.pem"))
    issued.private_key_pem.write_to_path(str(home / "tls.key"))
    return "--tls-certificate", str(home / "hub.pem"), "--tls-key", str(home / "tls.key")


def test_the_hub_speaks_tls(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(capsys, *tls_options(home)) as hub:
        assert hub.url.startswith("https://")
        assert "0 devices" in hub.fleet("status", "--authority", str(home / "ca.pem"))
        assert "cannot be reached" in hub.fleet("status", status=1)


def test_a_device_enrols_and_polls_over_a_private_authority(fleet: Fleet, capsys: pytest.CaptureFixture[str],
                                                            tmp_path: Path) -> None:
    with running(capsys, *tls_options(tmp_path)) as hub:
        token = hub.fleet("token", "robots", "--authority", str(tmp_path / "ca.pem")).strip()
        options = NodeOptions(tmp_path / "device", settings.read(), hub.url, token, "robot-1")
        with pytest.raises(SourceError, match="CERTIFICATE_VERIFY_FAILED"):
            enrol(options)
        options = replace(options, authority=tmp_path / "ca.pem")
        device = enrol(options)
        assert device.name == "robot-1"
        source = source_of(options, device)
        assert isinstance(source, HttpSource)
        with closing(source):
            assert open_repository(options, source).refresh().metadata_time_s > 0


def test_a_hub_on_another_machine_without_tls_is_refused(tmp_path: Path) -> None:
    options = NodeOptions(tmp_path, settings.read(), "http://hub.example:8484", "bf-token")
    with pytest.raises(FleetError, match="without TLS"):
        enrol(options)
    hub_client(replace(options, allows_http=True), "http://hub.example:8484").close()


def test_certificates_are_renewed_and_those_of_revoked_devices_are_listed(
        home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with running(capsys) as hub:
        token = hub.fleet("token", "robots", "--devices", "2").strip()
        client, device = joined(hub, tmp_path / "device", token)
        folder, ended, now = tmp_path / "device", list[str](), [time.time()]
        tls = PeerTls.of(device, folder)
        keeper = CertificateKeeper(tls, client, folder, lambda: ended.append("ended"), lambda: now[0])
        first = serial_and_end(tls.certificate.read_text())
        keeper.step()
        assert serial_and_end(tls.certificate.read_text()) == first and ended == ["ended"]  # the first list
        now[0] = first[1] - 100 * 86400.0
        keeper.step()
        second = serial_and_end(tls.certificate.read_text())
        assert second[0] != first[0] and devices.read_device(folder).certificate == tls.certificate.read_text()
        hub.fleet("revoke", "robot-1")
        now[0] = time.time() + 7200.0  # the new certificate is far from its end
        keeper.step()
        assert ended == ["ended", "ended"]
        listed = x509.load_pem_x509_crl(tls.revoked.read_bytes())
        assert {one.serial_number for one in listed} == {first[0], second[0]}
        with pytest.raises(SourceError, match="401"):
            client.certificate(device, devices.signing_key(folder))
        client.close()


@pytest.mark.parametrize(("words", "said"), [
    (("hub", "--host", "0.0.0.0"), "without TLS"), (("hub", "--tls-key", "x"), "belong together"),
    (("hub",), "cannot read the key"), (("fleet", "status"), "cannot read the operator's key")])
def test_what_is_missing_is_named(words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path))
    assert main(list(words)) == 1
    assert said in capsys.readouterr().err
