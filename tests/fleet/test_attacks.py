"""Hostile repositories: each attack is refused by name, the device's files stay as they were, and an honest repository
is believed again afterwards.

The checklist is that of python-tuf's own client tests (top level updates, key rotations, fast-forward, delegations,
target files), and what a source can do besides: endless files, trickles, links and names that lead elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from brise.fleet.keys import rotate
from brise.fleet.refusals import (
    ExpiredError,
    MalformedError,
    MixedVersionsError,
    NotOfferedError,
    RolledBackError,
    SourceError,
    TooLongError,
    UntrustedError,
    WrongDigestError,
    WrongKeyError,
)
from brise.fleet.repository import CREATED, DAY_S
from brise.fleet.signing import FleetSigner, tuf_key
from brise.fleet.trust import TrustedRepository
from brise.traffic.seal import SigningKey
from tests.fleet.repositories import HUB, RELEASE, ROOTS, STRANGER, Fleet, Liar, key, state_of

Attack = Callable[[Fleet, Liar], None]


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of files are written, and no power is cut."""
    monkeypatch.setattr(os, "fsync", lambda number: None)


def metadata(fleet: Fleet, name: str) -> Metadata[Any]:
    return Metadata[Any].from_file(str(fleet.repository.folder / "metadata" / name))


def newest(fleet: Fleet, role: str) -> int:
    return max(int(path.name.split(".")[0]) for path in (fleet.repository.folder / "metadata").glob(f"*.{role}.json"))


def signed(found: Metadata[Any], *keys: SigningKey) -> bytes:
    found.signatures.clear()
    for one in keys:
        found.sign(FleetSigner(one), append=True)
    return found.to_bytes()


def forge(fleet: Fleet, liar: Liar, role: str, change: Callable[[Any], None], *keys: SigningKey) -> None:
    """Puts a changed file of a role, signed by these keys, in the place of the newest, under its next version."""
    name = "timestamp.json" if role == "timestamp" else f"{newest(fleet, role)}.{role}.json"
    found = metadata(fleet, name)
    found.signed.version += 1
    change(found.signed)
    liar.files[f"metadata/{name if role == 'timestamp' else f'{found.signed.version}.{role}.json'}"] = signed(found,
                                                                                                             *keys)


def old_timestamp(fleet: Fleet, liar: Liar) -> None:
    forge(fleet, liar, "timestamp", lambda one: setattr(one, "version", 1), HUB)


def old_snapshot(fleet: Fleet, liar: Liar) -> None:
    forge(fleet, liar, "timestamp", lambda one: setattr(one.snapshot_meta, "version", 1), HUB)


def rolled_back_targets(fleet: Fleet, liar: Liar) -> None:
    """A snapshot of the hub's key that names older targets."""
    def change(snapshot: Snapshot) -> None:
        snapshot.meta["targets.json"].version = 1
    name_snapshot(fleet, liar, change)


def removed_role(fleet: Fleet, liar: Liar) -> None:
    name_snapshot(fleet, liar, lambda one: one.meta.pop("rollouts.json"))


def name_snapshot(fleet: Fleet, liar: Liar, change: Callable[[Any], None], signer: SigningKey = HUB) -> None:
    forge(fleet, liar, "snapshot", change, signer)
    number = newest(fleet, "snapshot") + 1
    data = liar.files[f"metadata/{number}.snapshot.json"]
    assert isinstance(data, bytes)

    def point(timestamp: Timestamp) -> None:
        timestamp.snapshot_meta.version = number
        timestamp.snapshot_meta.length, timestamp.snapshot_meta.hashes = len(data), {
            "sha256": hashlib.sha256(data).hexdigest()}
    forge(fleet, liar, "timestamp", point, HUB)


def mixed_snapshot(fleet: Fleet, liar: Liar) -> None:
    """The snapshot of one day under the name of another's."""
    old = (fleet.repository.folder / "metadata" / "1.snapshot.json").read_bytes()
    liar.files[f"metadata/{newest(fleet, 'snapshot')}.snapshot.json"] = old


def mixed_targets(fleet: Fleet, liar: Liar) -> None:
    old = (fleet.repository.folder / "metadata" / "1.targets.json").read_bytes()
    liar.files[f"metadata/{newest(fleet, 'targets')}.targets.json"] = old


def mixed_version(fleet: Fleet, liar: Liar) -> None:
    """A timestamp without hashes that names another version of the snapshot than the file has."""
    def point(timestamp: Timestamp) -> None:
        timestamp.snapshot_meta.version += 1
        timestamp.snapshot_meta.length = timestamp.snapshot_meta.hashes = None
    forge(fleet, liar, "timestamp", point, HUB)
    number = newest(fleet, "snapshot")
    liar.files[f"metadata/{number + 1}.snapshot.json"] = (
        fleet.repository.folder / "metadata" / f"{number}.snapshot.json").read_bytes()


def stranger_signs(role: str) -> Attack:
    def attack(fleet: Fleet, liar: Liar) -> None:
        forge(fleet, liar, role, lambda one: None, STRANGER)
    return attack


def one_root_key(fleet: Fleet, liar: Liar) -> None:
    forge(fleet, liar, "root", lambda one: None, ROOTS[0])


def root_of_new_keys_alone(fleet: Fleet, liar: Liar) -> None:
    """Whoever takes over the server makes a root of their own keys."""
    def change(root: Root) -> None:
        root.roles["root"].keyids.clear()
        for one in (key("a"), key("b")):
            root.add_key(tuf_key(one.public), "root")
    forge(fleet, liar, "root", change, key("a"), key("b"))


def same_key_twice(fleet: Fleet, liar: Liar) -> None:
    """One root key's signature under two ids."""
    found = metadata(fleet, "1.root.json")
    found.signed.version = 2
    found.signatures.clear()
    found.sign(FleetSigner(ROOTS[0]), append=True)
    (own,) = found.signatures.values()
    value = found.to_dict()
    value["signatures"].append({"keyid": tuf_key(ROOTS[1].public).keyid, "sig": own.signature})
    liar.files["metadata/2.root.json"] = json.dumps(value).encode()


def skipped_root(fleet: Fleet, liar: Liar) -> None:
    forge(fleet, liar, "root", lambda one: setattr(one, "version", 3), *ROOTS[:2])
    liar.files["metadata/2.root.json"] = liar.files.pop("metadata/3.root.json")


def old_root(fleet: Fleet, liar: Liar) -> None:
    """The first root again, in the place of the second."""
    liar.files["metadata/2.root.json"] = fleet.root


def expired_root(fleet: Fleet, liar: Liar) -> None:
    forge(fleet, liar, "root", lambda one: setattr(one, "expires", datetime(2020, 1, 1, tzinfo=UTC)), *ROOTS[:2])


def expired(role: str, signer: SigningKey) -> Attack:
    def attack(fleet: Fleet, liar: Liar) -> None:
        def change(one: Any) -> None:
            one.expires = datetime(2020, 1, 1, tzinfo=UTC)
        if role == "snapshot":
            name_snapshot(fleet, liar, change)
        elif role == "targets":
            change_targets(fleet, liar, change, signer)
        else:
            forge(fleet, liar, role, change, signer)
    return attack


def change_targets(fleet: Fleet, liar: Liar, change: Callable[[Any], None], signer: SigningKey) -> None:
    named_by_a_snapshot(fleet, liar, "targets", change, signer)


def named_by_a_snapshot(fleet: Fleet, liar: Liar, role: str, change: Callable[[Any], None],
                        signer: SigningKey) -> None:
    """Targets or roll-outs by this key, named by a right snapshot: the hub is in the attacker's hands."""
    forge(fleet, liar, role, change, signer)
    number = newest(fleet, role) + 1
    data = liar.files[f"metadata/{number}.{role}.json"]
    assert isinstance(data, bytes)

    def point(snapshot: Snapshot) -> None:
        found = snapshot.meta[f"{role}.json"]
        found.version, found.length, found.hashes = number, len(data), {"sha256": hashlib.sha256(data).hexdigest()}
    name_snapshot(fleet, liar, point)


def stranger_signs_named(role: str) -> Attack:
    """A file by a stranger's key, which right metadata name by its digest: those before it are the hub's."""
    def attack(fleet: Fleet, liar: Liar) -> None:
        if role == "targets":
            change_targets(fleet, liar, lambda one: None, STRANGER)
        elif role == "snapshot":
            name_snapshot(fleet, liar, lambda one: None, STRANGER)
        else:
            named_by_a_snapshot(fleet, liar, role, lambda one: None, STRANGER)
    return attack


def hub_signs_bundles(fleet: Fleet, liar: Liar) -> None:
    """A compromised hub adds a bundle of its own."""
    def change(targets: Targets) -> None:
        targets.targets["bundles/evil/1.json"] = TargetFile.from_data("bundles/evil/1.json", b"evil", ["sha256"])
    change_targets(fleet, liar, change, HUB)


def frozen(fleet: Fleet, liar: Liar) -> None:
    fleet.clock.at += 8 * DAY_S


def is_no_metadata(content: bytes) -> Attack:
    def attack(fleet: Fleet, liar: Liar) -> None:
        liar.files["metadata/timestamp.json"] = content
    return attack


def endless(name: str) -> Attack:
    def attack(fleet: Fleet, liar: Liar) -> None:
        def zeros() -> Iterator[bytes]:
            for _ in range(1000):  # of 64 kB: more than any limit; an endless one would look the same
                yield b"0" * 65536
            raise AssertionError("64 MB were read")
        liar.files[name.format(snapshot=newest(fleet, "snapshot"), targets=newest(fleet, "targets"))] = zeros
    return attack


def wrong_rollouts(fleet: Fleet, liar: Liar) -> None:
    name = next(str(path.relative_to(fleet.repository.folder)) for path in fleet.repository.files()
                if path.name.endswith("current.json") and b"running" in path.read_bytes())
    liar.files[name] = b"[" * 1000


def nothing_there(fleet: Fleet, liar: Liar) -> None:
    liar.files["metadata/timestamp.json"] = None


ATTACKS: dict[str, tuple[Attack, type[Exception]]] = {
    "old timestamp": (old_timestamp, RolledBackError),
    "old snapshot in a new timestamp": (old_snapshot, RolledBackError),
    "rolled-back targets": (rolled_back_targets, RolledBackError),
    "old root": (old_root, RolledBackError),
    "root that skips a version": (skipped_root, RolledBackError),
    "role taken out of the snapshot": (removed_role, UntrustedError),
    "frozen timestamp": (frozen, ExpiredError),
    "expired root": (expired_root, ExpiredError),
    "expired timestamp": (expired("timestamp", HUB), ExpiredError),
    "expired snapshot": (expired("snapshot", HUB), ExpiredError),
    "expired targets": (expired("targets", RELEASE), ExpiredError),
    "mixed snapshot": (mixed_snapshot, MixedVersionsError),
    "mixed targets": (mixed_targets, MixedVersionsError),
    "snapshot of another version": (mixed_version, MixedVersionsError),
    "timestamp by a stranger": (stranger_signs("timestamp"), WrongKeyError),
    "root by a stranger": (stranger_signs("root"), WrongKeyError),
    "root by one of two keys": (one_root_key, WrongKeyError),
    "root by its own new keys": (root_of_new_keys_alone, WrongKeyError),
    "one key under two ids": (same_key_twice, WrongKeyError),
    "snapshot by a stranger": (stranger_signs_named("snapshot"), WrongKeyError),
    "targets by a stranger": (stranger_signs_named("targets"), WrongKeyError),
    "roll-outs by a stranger": (stranger_signs_named("rollouts"), WrongKeyError),
    "bundles by the hub's key": (hub_signs_bundles, WrongKeyError),
    "timestamp that is no JSON": (is_no_metadata(b"\xff\x00"), MalformedError),
    "timestamp of 16,000 brackets": (is_no_metadata(b"[" * 16_000), MalformedError),
    "timestamp that is a root": (is_no_metadata(b'{"signed": {"_type": "root"}, "signatures": []}'), MalformedError),
    "endless timestamp": (endless("metadata/timestamp.json"), TooLongError),
    "endless root": (endless("metadata/2.root.json"), TooLongError),
    "endless snapshot": (endless("metadata/{snapshot}.snapshot.json"), TooLongError),
    "endless targets": (endless("metadata/{targets}.targets.json"), TooLongError),
    "other roll-outs than signed": (wrong_rollouts, WrongDigestError),
    "no timestamp": (nothing_there, SourceError),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_by_name_and_the_device_goes_on(name: str, tmp_path: Path) -> None:
    attack, refusal = ATTACKS[name]
    fleet = Fleet(tmp_path)
    shipped, liar = fleet.ship(), Liar(fleet.source)
    device = fleet.device(source=liar)
    device.refresh()
    device.fetch_bundle(device.bundle(shipped.digest), tmp_path / "slot")
    if name.startswith(("mixed", "endless")):
        fleet.ship(2, b"newer")  # so that the next refresh reads everything
    slot = state_of(tmp_path / "slot")
    attack(fleet, liar)
    with pytest.raises(refusal) as caught:
        device.refresh()
    assert type(caught.value).__name__ == refusal.__name__ or refusal is UntrustedError
    with pytest.raises(NotOfferedError):  # nothing is installed meanwhile
        device.bundle(shipped.digest)
    assert state_of(tmp_path / "slot") == slot
    liar.files.clear()
    get_ahead(fleet)
    assert shipped.digest in device.refresh().bundles


def get_ahead(fleet: Fleet) -> None:
    """The owner signs more versions than the attacker did, whose keys were the owner's in some of the attacks."""
    for number in range(10, 13):
        fleet.ship(number, b"honest again %d" % number)
        fleet.repository.propose_root(lambda root: None)
        assert [fleet.repository.sign_root(one) for one in ROOTS[:2]] == [1, 0]
    fleet.repository.sign_hub(HUB)


def test_metadata_that_are_lost_do_not_open_a_way_back(tmp_path: Path) -> None:
    """A power cut may take python-tuf's files, which are not synced; what was seen is remembered beside them."""
    fleet = Fleet(tmp_path)
    fleet.ship()
    liar = Liar(fleet.source, {"metadata/timestamp.json": (
        fleet.repository.folder / "metadata/timestamp.json").read_bytes()})
    fleet.ship(2, b"newer")
    device = fleet.device()
    device.refresh()
    (device.folder / "metadata/timestamp.json").write_bytes(b"")
    (device.folder / "metadata/snapshot.json").unlink()
    with pytest.raises(RolledBackError, match="has seen"):
        TrustedRepository(liar, device.folder, fleet.root, fleet.clock).refresh()


def test_versions_that_a_thief_signed_high_are_forgotten_with_his_key(tmp_path: Path) -> None:
    """Fast-forward: the stolen hub's key signed a timestamp of version 2**40 and the year 2090."""
    fleet = Fleet(tmp_path)
    shipped, liar = fleet.ship(), Liar(fleet.source)

    def change(timestamp: Timestamp) -> None:
        timestamp.version, timestamp.expires = 2**40, datetime(2099, 1, 1, tzinfo=UTC)
        timestamp.unrecognized_fields[CREATED] = 3_800_000_000
    forge(fleet, liar, "timestamp", change, HUB)
    device = fleet.device(source=liar)
    device.refresh()
    liar.files.clear()
    with pytest.raises(UntrustedError):
        device.refresh()
    new = key("hub 2")
    fleet.repository.propose_root(rotate("hub", new.public, HUB.public))
    assert [fleet.repository.sign_root(one) for one in ROOTS[:2]] == [1, 0]
    fleet.repository.renew(RELEASE)
    fleet.repository.sign_hub(new, rollouts=fleet.repository.rollouts)
    assert shipped.digest in device.refresh().bundles and device.now() == fleet.clock.at


def test_a_root_that_expired_on_the_way_is_passed(tmp_path: Path) -> None:
    """Only the last root must be in time: devices sleep for longer than a root lives."""
    fleet = Fleet(tmp_path)
    device = fleet.device()
    device.refresh()
    fleet.repository.propose_root(lambda root: None)
    assert [fleet.repository.sign_root(one) for one in ROOTS[:2]] == [1, 0]
    fleet.clock.at += 6 * 365 * DAY_S
    with pytest.raises(ExpiredError, match="root"):
        device.refresh()
    fleet.repository.propose_root(lambda root: None)
    assert [fleet.repository.sign_root(one) for one in ROOTS[:2]] == [1, 0]
    fleet.repository.renew(RELEASE)
    fleet.repository.sign_hub(HUB, rollouts=fleet.repository.rollouts)
    device.refresh()


def test_another_timestamp_of_the_same_version_changes_nothing(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    fleet.ship()
    liar = Liar(fleet.source)
    device = fleet.device(source=liar)
    before = device.refresh()

    def change(timestamp: Timestamp) -> None:
        timestamp.version -= 1  # which `forge` raised
        timestamp.snapshot_meta.version += 7
    forge(fleet, liar, "timestamp", change, HUB)
    assert device.refresh() == before
