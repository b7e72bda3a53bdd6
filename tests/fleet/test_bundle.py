"""The manifest of a bundle: one form, strict, bounded, and no path that leads out of its folder."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from brise.errors import FleetError
from brise.fleet.bundle import Blob, Bundle, bundle_json, check_path, read_bundle
from brise.fleet.offers import OfferedRollout, RolloutList, read_rollouts, rollouts_json
from brise.fleet.refusals import BundleError, UnsafePathError
from tests.fleet.bundles import DIGEST, bundle


def test_a_manifest_is_read_as_it_was_written() -> None:
    made = bundle(rights={"openai": "contract 4.2"}, task="tickets")
    assert read_bundle(bundle_json(made)) == made
    assert bundle_json(read_bundle(bundle_json(made))) == bundle_json(made)


@pytest.mark.parametrize("path", ["../x", "a/../b", "/etc/passwd", "a//b", "a\\b", ".hidden", "-rf", "", "a/b/c/d/e",
                                  "a\nb", "C:x", "a/", "x" * 101])
def test_a_path_that_may_lead_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(UnsafePathError):
        check_path(path)
    with pytest.raises(UnsafePathError):
        Blob(path, DIGEST, 1)


@pytest.mark.parametrize(("field", "value"), [
    ("version", 0), ("version", True), ("version", 1.0), ("name", "../x"), ("fingerprint", "x"), ("format", 2),
    ("created_s", -1), ("licence", 3), ("rights", ["x"]), ("adapter", {}), ("rule", {"x": 1}), ("unknown", 1),
    ("template_digest", "x"), ("created_s", 2**60)])
def test_a_wrong_field_is_named(field: str, value: object) -> None:
    with pytest.raises(FleetError) as caught:
        read_bundle(changed(**{field: value}))
    assert field in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a":NaN}', b'{"a":1,"a":2}'])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError):
        read_bundle(data)


def test_another_spelling_of_the_same_manifest_is_refused() -> None:
    text = json.dumps(json.loads(bundle_json(bundle())), indent=1)
    with pytest.raises(BundleError, match="canonical"):
        read_bundle(text.encode())


def test_a_path_is_there_once_and_is_no_folder_of_another() -> None:
    for path in ("adapter/A.bin", "adapter"):
        with pytest.raises(BundleError, match="path"):
            replace(bundle(), adapter=(Blob("adapter/a.bin", DIGEST, 1), Blob(path, DIGEST, 1)))


def test_a_larger_share_keeps_the_devices_of_a_smaller_one() -> None:
    devices = [f"device-{number}" for number in range(2000)]

    def inside(share: float) -> set[str]:
        offered = OfferedRollout("r1", DIGEST, share, "running", "salt", 0, 1e9)
        return {device for device in devices if offered.has(device)}

    assert inside(0.0) == set() and inside(1.0) == set(devices)
    assert inside(0.05) < inside(0.2) and 60 < len(inside(0.05)) < 140


def test_the_list_of_rollouts_is_read_as_it_was_written() -> None:
    offered = RolloutList((OfferedRollout("r1", DIGEST, 0.05, "running", "s", 0, 1e9, back_to=DIGEST),))
    assert read_rollouts(rollouts_json(offered)) == offered
    with pytest.raises(BundleError, match="state"):
        OfferedRollout("r1", DIGEST, 0.05, "started", "s", 0, 1e9)


def changed(**fields: Any) -> bytes:
    values = {**json.loads(bundle_json(bundle())), **fields}
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def test_the_blobs_are_all_files_of_the_bundle() -> None:
    made: Bundle = bundle(gate=Blob("gate.jsonl", DIGEST, 7))
    assert [blob.path for blob in made.blobs] == ["adapter/adapter_model.safetensors", "gate.jsonl"]
    assert made.nbytes == 17 and made.target == "bundles/tickets/3.json"
