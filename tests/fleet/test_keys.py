"""The rehearsal: every ceremony that an owner may need one day, with devices that sleep through some of them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from brise.errors import BriseError, FleetError
from brise.fleet import keys
from brise.fleet.keys import CeremonyOptions, CreateKeys, RootChange, RootState
from brise.fleet.refusals import ExpiredError, RolledBackError, UntrustedError
from brise.fleet.repository import DAY_S, PublicKeys, Repository
from brise.fleet.signing import new_key, read_key, read_public
from brise.fleet.sources import FolderSource
from brise.fleet.trust import TrustedRepository
from tests.fleet.repositories import key


@dataclass(frozen=True)
class Office:
    """Where the ceremonies are held."""

    folder: Path
    root: bytes  # of the first day

    @property
    def options(self) -> CeremonyOptions:
        return CeremonyOptions(self.folder / "repository")

    @property
    def repository(self) -> Repository:
        return Repository(self.folder / "repository")

    def key(self, name: str) -> Path:
        return self.folder / "keys" / f"{name}.key"

    def new(self, name: str) -> Path:
        new_key(self.key(name))
        return self.key(name).with_suffix(".pub")

    def change(self, role: keys.KeyRole, new: str | None, old: str | None, *, sign: tuple[str, ...] = ("root-1",
                                                                                                       "root-2"),
               release: str | None = "release", hub: str | None = "hub") -> RootState:
        return keys.change(self.options, RootChange(
            role, None if new is None else self.new(new), None if old is None else self.key(old).with_suffix(".pub"),
            tuple(map(self.key, sign)), None if release is None else self.key(release),
            None if hub is None else self.key(hub)))

    def device(self, name: str = "device", source: Path | None = None) -> TrustedRepository:
        return TrustedRepository(FolderSource(source or self.folder / "repository"), self.folder / name, self.root)


@pytest.fixture
def office(tmp_path: Path) -> Office:
    root = keys.create(CeremonyOptions(tmp_path / "repository"), CreateKeys(tmp_path / "keys"))
    return Office(tmp_path, root.read_bytes())


def test_keys_and_a_repository_are_made_at_once(office: Office) -> None:
    shown = keys.show(office.options)
    assert shown["root"] == 1 and not shown["proposed"]
    assert {role: (one["threshold"], len(one["keys"])) for role, one in shown["roles"].items()} == {
        "root": (2, 3), "release": (1, 1), "hub": (1, 1)}
    assert shown["roles"]["hub"]["keys"] == [read_public(office.key("hub").with_suffix(".pub")).hex()]
    assert office.device().refresh().rollouts == ()
    with pytest.raises(BriseError, match="there already"):
        keys.create(office.options, CreateKeys(office.folder / "keys"))


def test_a_device_sleeps_through_all_rotations_and_follows(office: Office) -> None:
    asleep = office.device("asleep")
    asleep.refresh()
    assert office.change("root", "root-4", "root-1", sign=("root-2", "root-3")) == RootState(2, 0)
    assert office.change("release", "release-2", "release", sign=("root-4", "root-2"), release="release-2").missing == 0
    state = office.change("hub", "hub-2", "hub", sign=("root-3", "root-4"), release="release-2", hub="hub-2")
    assert state == RootState(4, 0)
    office.repository.release({"bundles/a/1.json": b"{}"}, read_key(office.key("release-2")))
    office.repository.sign_hub(read_key(office.key("hub-2")))
    assert set(asleep.refresh().bundles.values()) == {"bundles/a/1.json"}
    assert set(office.device("new").refresh().bundles.values()) == {"bundles/a/1.json"}


def test_old_keys_sign_nothing_any_more(office: Office) -> None:
    device = office.device()
    device.refresh()
    office.change("release", "release-2", "release", release="release-2")
    office.change("hub", "hub-2", "hub", release="release-2", hub="hub-2")
    with pytest.raises(FleetError, match="may not sign"):
        office.repository.release({}, read_key(office.key("release")))
    with pytest.raises(FleetError, match="may not sign"):
        office.repository.sign_hub(read_key(office.key("hub")))
    device.refresh()


def test_holders_sign_one_after_the_other(office: Office) -> None:
    state = office.change("root", "root-4", "root-3", sign=())
    assert state.missing == 2 and "sign" in state.next_steps[0]
    assert keys.sign(office.options, [office.key("root-1")]).missing == 1
    assert office.device().refresh() and office.repository.root.version == 1
    with pytest.raises(FleetError, match="waits for signatures"):
        office.change("root", "root-5", "root-2", sign=())
    assert keys.sign(office.options, [office.key("root-4")]).missing == 1  # of the new root's, not of the old one's
    assert keys.sign(office.options, [office.key("root-2")]) == RootState(2, 0)
    with pytest.raises(FleetError, match="no .*to sign"):
        keys.sign(office.options, [office.key("root-2")])


def test_after_a_rotation_the_next_step_is_named(office: Office) -> None:
    state = office.change("hub", "hub-2", "hub", release=None, hub=None)
    assert state.next_steps == ("brise fleet keys renew --release KEY", "brise fleet keys renew --hub KEY")
    with pytest.raises(UntrustedError):
        office.device().refresh()
    assert keys.renew(office.options, office.key("release"), None).next_steps == ("brise fleet keys renew --hub KEY",)
    assert keys.renew(office.options, None, office.key("hub-2")).next_steps == ()
    office.device().refresh()


def test_an_old_copy_of_the_repository_is_taken_again_once_the_hubs_key_is_rotated(office: Office) -> None:
    device, place, copy = office.device(), office.repository.folder, office.folder / "copy"
    shutil.copytree(place, copy)
    office.repository.sign_hub(read_key(office.key("hub")))
    device.refresh()
    shutil.rmtree(place)
    copy.rename(place)
    with pytest.raises(RolledBackError):
        device.refresh()
    office.change("hub", "hub-2", "hub", release="release", hub=None)
    office.repository.sign_hub(read_key(office.key("hub-2")))  # as a hub does that has the new key
    assert device.refresh().rollouts == ()


def test_a_lost_root_key_is_replaced_by_the_others(office: Office) -> None:
    office.key("root-2").unlink()
    assert office.change("root", "root-4", "root-2", sign=("root-1", "root-3")).missing == 0
    assert office.device().refresh().rollouts == ()


def test_a_stolen_root_key_is_revoked_and_is_not_enough_before(office: Office) -> None:
    office.change("root", "thief", "root-2", sign=("root-1",))
    assert office.repository.root.version == 1
    (office.folder / "repository/proposed.root.json").unlink()
    assert office.change("root", None, "root-1", sign=("root-2", "root-3")).missing == 0
    assert len(keys.show(office.options)["roles"]["root"]["keys"]) == 2
    with pytest.raises(FleetError, match="no root key"):
        office.change("root", "root-5", "root-2", sign=("root-1",))


@pytest.mark.parametrize("role", ["release", "hub"])
def test_the_last_key_of_a_role_is_rotated_and_not_revoked(role: keys.KeyRole, office: Office) -> None:
    with pytest.raises(FleetError, match="fewer keys"):
        office.change(role, None, role)
    with pytest.raises(FleetError, match="none of"):
        office.change(role, "other", "root-1")


def test_the_threshold_of_the_root_stays_at_two(office: Office, tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="2 or more"):
        CreateKeys(tmp_path, roots=3, threshold=1)
    office.change("root", None, "root-1", sign=("root-2", "root-3"))
    with pytest.raises(FleetError, match="fewer keys"):
        office.change("root", None, "root-2", sign=("root-3",))


def test_one_key_has_one_role() -> None:
    same = key("a").public
    with pytest.raises(FleetError, match="two of the roles"):
        PublicKeys([key("r1").public, key("r2").public], 2, same, same)


def test_renewing_ends_an_expiry(office: Office) -> None:
    late = Repository(office.folder / "repository", lambda: 1_900_000_000.0)
    device = TrustedRepository(FolderSource(late.folder), office.folder / "late", office.root, lambda: 1.8e9 + 40e6)
    with pytest.raises(ExpiredError):
        device.refresh()
    keys.renew(office.options, office.key("release"), office.key("hub"), valid_s=9000 * DAY_S)
    assert late.expiries()["timestamp"] > "2050"
