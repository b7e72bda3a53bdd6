"""Bundles and roll-outs that are signed, and wrong: by mistake of their owner, or by a hub in an attacker's hands."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata, TargetFile

from brise.fleet.bundle import bundle_json, check_path
from brise.fleet.offers import TARGET
from brise.fleet.refusals import (
    BundleError,
    NotOfferedError,
    SourceError,
    TooLongError,
    UnsafePathError,
    UntrustedError,
    WrongDigestError,
)
from brise.fleet.repository import target_name
from brise.fleet.signing import FleetSigner
from tests.fleet.repositories import HUB, RELEASE, Fleet, Liar


@pytest.mark.parametrize(("path", "refusal"), [
    ("../../etc/passwd", UnsafePathError), ("/etc/passwd", UnsafePathError), ("adapter/../x", UnsafePathError)])
def test_a_signed_manifest_with_a_path_that_leads_elsewhere_is_refused(
        path: str, refusal: type[Exception], tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    good = fleet.ship()
    data = bundle_json(good).replace(b"adapter/adapter_model.safetensors", path.encode())
    fleet.repository.release({good.target: data}, RELEASE)
    fleet.repository.sign_hub(HUB)
    device = fleet.device()
    device.refresh()
    with pytest.raises(refusal):
        device.bundle(hashlib.sha256(data).hexdigest())
    with pytest.raises(refusal):
        check_path(path)


def test_a_manifest_under_another_name_or_with_unsigned_blobs_is_refused(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    good = fleet.ship()
    other = replace(good, version=9, adapter=(replace(good.adapter[0], nbytes=good.adapter[0].nbytes + 1),))
    fleet.repository.release({"bundles/other/9.json": bundle_json(good), other.target: bundle_json(other)}, RELEASE,
                             without=[good.target])
    fleet.repository.sign_hub(HUB)
    device = fleet.device()
    device.refresh()
    with pytest.raises(UntrustedError, match="is that of"):
        device.bundle(good.digest)
    with pytest.raises(WrongDigestError):
        device.bundle(other.digest)


def test_a_blob_that_is_longer_or_another_is_refused(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    blob = fleet.ship(content=b"weights" * 100).adapter[0]
    name = target_name(blob.target, blob.sha256)
    for content, refusal in ((b"weights" * 100 + b"!", TooLongError), (b"Weights" * 100, WrongDigestError),
                             (b"weights", SourceError), (None, SourceError)):
        device = fleet.device(source=Liar(fleet.source, {name: content}))
        device.refresh()
        with pytest.raises(refusal):
            device.fetch(blob.sha256, tmp_path / "to")
        assert not (tmp_path / "to").exists()


def test_roll_outs_cannot_name_what_the_release_key_did_not_sign(tmp_path: Path) -> None:
    """All that a compromised hub can do: choose among signed bundles."""
    fleet = Fleet(tmp_path)
    fleet.ship()
    offered = fleet.repository.rollouts
    evil = replace(offered.rollouts[0], rollout="evil", bundle="ee" * 32)
    fleet.repository.sign_hub(HUB, rollouts=replace(offered, rollouts=(evil,)))
    device = fleet.device()
    assert [one.bundle for one in device.refresh().rollouts] == ["ee" * 32]
    with pytest.raises(NotOfferedError):
        device.bundle("ee" * 32)


def test_signed_roll_outs_in_another_form_are_refused(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    fleet.ship()
    metadata = fleet.repository.folder / "metadata"
    number = max(int(path.name.split(".")[0]) for path in metadata.glob("*.rollouts.json"))
    data = b'{"rollouts": 7}'
    found = Metadata[Any].from_file(str(metadata / f"{number}.rollouts.json"))
    found.signed.version, found.signed.targets[TARGET] = number + 1, TargetFile.from_data(TARGET, data, ["sha256"])
    found.sign(FleetSigner(HUB))
    (metadata / f"{number + 1}.rollouts.json").write_bytes(found.to_bytes())
    (fleet.repository.folder / target_name(TARGET, hashlib.sha256(data).hexdigest())).write_bytes(data)
    fleet.repository.sign_hub(HUB)
    with pytest.raises(BundleError, match="rollouts"):
        fleet.device().refresh()
