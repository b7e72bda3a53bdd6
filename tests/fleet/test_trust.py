"""The device's client: what was signed arrives, whatever breaks off; the clock never runs back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
from securesystemslib.signer import SSlibKey

from brise.fleet.bundle import bundle_json
from brise.fleet.incoming import MARGIN_BYTES, Incoming
from brise.fleet.offers import Forgotten, RolloutList
from brise.fleet.refusals import (
    ExpiredError,
    MalformedError,
    NoRoomError,
    NotOfferedError,
    RolledBackError,
    SourceError,
    WrongDigestError,
    WrongKeyError,
)
from brise.fleet.repository import DAY_S, target_name
from brise.fleet.signing import tuf_key
from brise.fleet.sources import FolderSource, HttpSource, PeerSource
from brise.fleet.trust import TrustedRepository, check_root
from tests.fleet.repositories import HUB, RELEASE, Fleet, Liar


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def test_a_device_gets_what_was_shipped(fleet: Fleet, tmp_path: Path) -> None:
    shipped = fleet.ship(content=b"weights" * 1000)
    device = fleet.device()
    offer = device.refresh()
    assert [one.bundle for one in offer.rollouts] == [shipped.digest]
    assert offer.bundles == {shipped.digest: "bundles/tickets/1.json"} and offer.metadata_time_s == fleet.clock.at
    found = device.bundle(shipped.digest)
    assert found == shipped
    device.fetch_bundle(found, tmp_path / "slot")
    assert (tmp_path / "slot/adapter/adapter_model.safetensors").read_bytes() == b"weights" * 1000
    assert list((device.folder / "incoming").iterdir()) == []


def test_what_is_new_comes_with_the_next_refresh(fleet: Fleet) -> None:
    first, device = fleet.ship(1), fleet.device()
    device.refresh()
    second = fleet.ship(2, b"other weights")
    offer = device.refresh()
    assert set(offer.bundles) == {first.digest, second.digest} and len(offer.rollouts) == 2
    fleet.repository.sign_hub(HUB, rollouts=RolloutList(forgotten=Forgotten(1, ("ab" * 32,))))
    assert device.refresh().forgotten.digests == ("ab" * 32,)


def test_a_bundle_that_is_withdrawn_is_no_longer_offered(fleet: Fleet) -> None:
    shipped, device = fleet.ship(), fleet.device()
    fleet.repository.release({}, RELEASE, without=[shipped.target])
    fleet.repository.sign_hub(HUB)
    device.refresh()
    with pytest.raises(NotOfferedError):
        device.bundle(shipped.digest)


def test_a_download_goes_on_where_it_stopped(fleet: Fleet, tmp_path: Path) -> None:
    content = os.urandom(10_000)
    blob = fleet.ship(content=content).adapter[0]
    name = target_name(blob.target, blob.sha256)

    def cut() -> Iterator[bytes]:
        yield content[:4000]
        raise SourceError("the cable is out")

    source = Liar(fleet.source, {name: cut})
    device = fleet.device(source=source)
    device.refresh()
    with pytest.raises(SourceError, match="cable"):
        device.fetch(blob.sha256, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()
    del source.files[name]
    again = fleet.device(source=source)  # the device started anew
    again.refresh()
    again.fetch(blob.sha256, tmp_path / "weights")
    assert (tmp_path / "weights").read_bytes() == content and source.asked[-1] == (name, 4000)


def test_wrong_bytes_are_fetched_anew_from_their_beginning_once(fleet: Fleet, tmp_path: Path) -> None:
    content = b"right " * 1000
    blob = fleet.ship(content=content).adapter[0]
    name = target_name(blob.target, blob.sha256)
    peer = Liar(fleet.source, {name: b"wrong " * 1000})
    device = fleet.device(source=Liar(fleet.source))
    device.refresh()
    device.fetch(blob.target, tmp_path / "weights", [peer])  # the peer lies, the repository has it
    assert (tmp_path / "weights").read_bytes() == content
    alone = fleet.device("other", source=Liar(fleet.source, {name: b"wrong " * 1000}))
    alone.refresh()
    with pytest.raises(WrongDigestError):
        alone.fetch(blob.target, tmp_path / "again")
    assert not (tmp_path / "again").exists()


class Files(SimpleHTTPRequestHandler):
    """A web server that knows neither ranges nor ETags, and says nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """See BaseHTTPRequestHandler."""


def test_any_web_server_will_do(fleet: Fleet, tmp_path: Path) -> None:
    shipped = fleet.ship(content=b"weights" * 1000)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(fleet.repository.folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        source = HttpSource(f"http://127.0.0.1:{server.server_address[1]}/")
        try:
            device = fleet.device(source=source)
            device.refresh()
            device.fetch_bundle(device.bundle(shipped.digest), tmp_path / "slot")
            assert device.refresh().bundles.keys() == {shipped.digest}
        finally:
            source.close()
            server.shutdown()
    assert (tmp_path / "slot/adapter/adapter_model.safetensors").read_bytes() == b"weights" * 1000


def test_a_blob_comes_from_a_peer_and_the_hub_is_not_asked(fleet: Fleet, tmp_path: Path) -> None:
    shipped, source = fleet.ship(content=b"weights" * 1000), Liar(fleet.source)
    blob = shipped.adapter[0]
    peer = PeerSource("http://127.0.0.1:1", transport=httpx.MockTransport(lambda request: httpx.Response(
        200 if request.url.path == f"/blobs/sha256/{blob.sha256}" else 404,
        stream=httpx.ByteStream(b"weights" * 1000))))
    device = fleet.device(source=source)
    device.refresh()
    asked = len(source.asked)
    device.fetch(blob.sha256, tmp_path / "weights", [peer])
    assert (tmp_path / "weights").read_bytes() == b"weights" * 1000 and len(source.asked) == asked


def test_room_is_reserved_before_a_byte_is_fetched(fleet: Fleet, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    shipped, source = fleet.ship(content=b"x" * 5000), Liar(fleet.source)
    device = fleet.device(source=source)
    device.refresh()
    bundle = device.bundle(shipped.digest)
    asked = len(source.asked)
    real = os.statvfs

    class Full:
        f_bavail, f_frsize = MARGIN_BYTES + 4999, 1

    monkeypatch.setattr(os, "statvfs", lambda path: Full())
    with pytest.raises(NoRoomError, match="free"):
        device.fetch_bundle(bundle, tmp_path / "slot")
    assert len(source.asked) == asked and list((device.folder / "incoming").iterdir()) == []
    monkeypatch.setattr(os, "statvfs", real)
    device.fetch_bundle(bundle, tmp_path / "slot")


def test_a_disk_that_fills_up_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(NoRoomError, match="No space"):
        Incoming(tmp_path / "incoming").reserve({"ab" * 32: 10})
    assert list((tmp_path / "incoming").iterdir()) == []


def test_what_is_not_waited_for_gives_its_room_back(tmp_path: Path) -> None:
    incoming = Incoming(tmp_path)
    incoming.reserve({"ab" * 32: 10, "cd" * 32: 20})
    incoming.drop(["ab" * 32])
    assert {path.name for path in tmp_path.iterdir()} == {"ab" * 32, "ab" * 32 + ".at"}


def test_a_clock_that_stopped_is_set_by_the_metadata(fleet: Fleet) -> None:
    fleet.ship()
    device = fleet.device()
    device.refresh()
    now = fleet.clock.at
    fleet.clock.at = 0.0
    assert device.now() == now
    fresh = fleet.device("without a clock")
    assert fresh.now() == now  # the root that it was enrolled with
    fresh.refresh()
    fleet.clock.at = now + 8 * DAY_S
    fleet.repository.sign_hub(HUB)
    fleet.clock.at = 0.0
    device.refresh()
    assert device.now() == now + 8 * DAY_S


def test_a_repository_that_expired_offers_nothing_until_it_is_signed_anew(fleet: Fleet) -> None:
    fleet.ship()
    device = fleet.device()
    device.refresh()
    fleet.clock.at += 30 * DAY_S
    with pytest.raises(ExpiredError, match="timestamp"):
        device.refresh()
    with pytest.raises(NotOfferedError):
        device.bundle(fleet.repository.rollouts.rollouts[0].bundle)
    fleet.repository.sign_hub(HUB)
    assert device.refresh().rollouts


def test_a_stick_is_the_same_tree_for_longer(fleet: Fleet, tmp_path: Path) -> None:
    shipped = fleet.ship()
    fleet.repository.sign_hub(HUB, valid_s=90 * DAY_S)
    fleet.repository.copy(tmp_path / "stick")
    device = fleet.device(source=FolderSource(tmp_path / "stick"))
    fleet.clock.at += 89 * DAY_S
    assert device.refresh().bundles.keys() == {shipped.digest}
    fleet.clock.at += 2 * DAY_S
    with pytest.raises(ExpiredError):
        device.refresh()


def test_devices_verify_without_cryptography(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    from securesystemslib.signer import _key  # noqa: PLC0415 - the switch of what is installed

    def unused(*args: object) -> None:
        raise AssertionError("cryptography was used")

    monkeypatch.setattr(_key, "CRYPTO_IMPORT_ERROR", "not installed")
    monkeypatch.setattr(SSlibKey, "_verify", unused)
    shipped = fleet.ship()
    assert shipped.digest in fleet.device().refresh().bundles


def test_a_key_has_the_name_that_other_tools_give_it() -> None:
    from securesystemslib.signer._utils import compute_default_keyid  # noqa: PLC0415 - the oracle

    public = RELEASE.public.hex()
    assert tuf_key(RELEASE.public).keyid == compute_default_keyid("ed25519", "ed25519", {"public": public})


def test_a_root_is_known_by_its_digest(fleet: Fleet) -> None:
    assert len(check_root(fleet.root)) == 64
    assert bundle_json(fleet.ship()) in [path.read_bytes() for path in fleet.repository.files()]


def test_a_replayed_stick_is_refused_though_it_did_not_expire(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    fleet.ship(1)
    fleet.repository.sign_hub(HUB, valid_s=90 * DAY_S)
    fleet.repository.copy(tmp_path / "stick")
    fleet.ship(2, b"newer")
    device = fleet.device()
    device.refresh()
    old = TrustedRepository(FolderSource(tmp_path / "stick"), device.folder, fleet.root, fleet.clock)
    with pytest.raises(RolledBackError):
        old.refresh()


def test_the_root_of_a_device_must_have_signed_itself(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    for data, refusal in ((b"{}", MalformedError), (b"\xff", MalformedError),
                          (fleet.root.replace(b'"sig": "', b'"sig": "00'), WrongKeyError)):
        with pytest.raises(refusal):
            check_root(data)
