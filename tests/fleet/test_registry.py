"""A repository in an OCI registry: Debian's docker-registry where it is installed, and a small one that lies."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from brise.demo.child import reserved_port
from brise.fleet.checked import CheckOptions, check
from brise.fleet.offers import RolloutList
from brise.fleet.refusals import SourceError, WrongDigestError
from brise.fleet.registry import (
    FILE_PATH,
    MODEL_CONFIG,
    MODEL_MANIFEST,
    WEIGHT,
    RegistryAuth,
    RegistrySource,
    place_of,
    push,
)
from brise.fleet.repository import target_name
from tests.fleet.repositories import HUB, Fleet
from tests.waiting import wait_until

PROGRAM = shutil.which("docker-registry")
needs_registry = pytest.mark.skipif(PROGRAM is None, reason="needs Debian's docker-registry")
CONFIG = """version: 0.1
storage: {filesystem: {rootdirectory: %s}}
http: {addr: "127.0.0.1:%d"}
log: {level: error}
"""


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """A registry on this machine that nobody else uses."""
    assert PROGRAM is not None
    with reserved_port() as port:
        (tmp_path / "config.yml").write_text(CONFIG % (tmp_path / "storage", port))
        with subprocess.Popen([PROGRAM, "serve", str(tmp_path / "config.yml")], stderr=subprocess.DEVNULL) as process:
            try:
                wait_until(lambda: is_up(port))
                yield f"oci://127.0.0.1:{port}/fleet/repository"
            finally:
                process.terminate()


def is_up(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v2/", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@needs_registry
def test_a_device_reads_a_registry_as_any_other_place(registry: str, tmp_path: Path) -> None:
    fleet = Fleet(tmp_path / "fleet")
    shipped = fleet.ship(content=b"weights" * 10_000)
    push(fleet.repository, registry)
    source = RegistrySource(place_of(registry))
    device = fleet.device(source=source)
    assert [one.bundle for one in device.refresh().rollouts] == [shipped.digest]
    device.fetch_bundle(device.bundle(shipped.digest), tmp_path / "slot")
    assert (tmp_path / "slot/adapter/adapter_model.safetensors").read_bytes() == b"weights" * 10_000
    fleet.ship(2, b"newer")
    fleet.repository.sign_hub(HUB, rollouts=RolloutList())
    push(fleet.repository, registry)
    assert len(device.refresh().bundles) == 2
    source.close()
    (tmp_path / "root.json").write_bytes(fleet.root)
    found = check(CheckOptions(registry, tmp_path / "root.json"), fleet.clock)
    assert found.is_sound and [one.bundle.version for one in found.bundles] == [1, 2]


@needs_registry
def test_a_blob_is_read_from_the_middle_on_and_sent_once(registry: str, tmp_path: Path) -> None:
    fleet = Fleet(tmp_path / "fleet")
    blob = fleet.ship(content=b"0123456789").adapter[0]
    push(fleet.repository, registry)
    push(fleet.repository, registry)
    source = RegistrySource(place_of(registry))
    assert b"".join(source.read(target_name(blob.target, blob.sha256), 6, 4)) == b"456789"
    with pytest.raises(SourceError) as caught:
        list(source.read("metadata/9.root.json", 1000))
    assert caught.value.is_missing
    source.close()


@needs_registry
def test_a_bundle_is_a_model_of_modelpack(registry: str, tmp_path: Path) -> None:
    fleet = Fleet(tmp_path / "fleet")
    shipped = fleet.ship(content=b"weights")
    push(fleet.repository, registry)
    place = place_of(registry)
    with httpx.Client(trust_env=False, headers={"Accept": "application/vnd.oci.image.manifest.v1+json"}) as client:
        manifest = client.get(f"{place.url}/manifests/tickets-1").json()
        config = client.get(f"{place.url}/blobs/{manifest['config']['digest']}").json()
    assert manifest["artifactType"] == MODEL_MANIFEST and manifest["config"]["mediaType"] == MODEL_CONFIG
    (weights,) = [layer for layer in manifest["layers"] if layer["mediaType"] == WEIGHT]
    assert weights["digest"] == f"sha256:{shipped.adapter[0].sha256}" and weights["size"] == 7
    assert weights["annotations"][FILE_PATH] == "adapter/adapter_model.safetensors"
    # As the schema of ModelPack has it: these three, and a digest for each layer.
    assert set(config) == {"descriptor", "config", "modelfs"} and config["modelfs"]["type"] == "layers"
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]
    assert config["descriptor"]["name"] == "tickets" and config["descriptor"]["licenses"] == ["Apache-2.0"]


def lying(fleet: Fleet, **blobs: bytes) -> RegistrySource:
    """A registry whose manifest names the right files, and whose blobs are what the attacker likes."""
    files = {path.relative_to(fleet.repository.folder).as_posix(): path.read_bytes()
             for path in fleet.repository.files()}
    layers: list[Any] = [{"digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "annotations": {FILE_PATH: name}}
                         for name, data in files.items() if name.startswith("metadata/")]
    layers += [7, {"digest": "sha256:../../x", "annotations": {FILE_PATH: "metadata/9.root.json"}}, {"annotations": 1}]
    contents = {hashlib.sha256(data).hexdigest(): data for data in files.values()} | blobs

    def answer(request: httpx.Request) -> httpx.Response:
        last = request.url.path.rpartition("/")[2]
        if last == "repository":
            return httpx.Response(200, stream=httpx.ByteStream(json.dumps({"layers": layers}).encode()))
        data = contents.get(last.removeprefix("sha256:"))
        return httpx.Response(404) if data is None else httpx.Response(200, stream=httpx.ByteStream(data))

    return RegistrySource(place_of("oci://registry.example/fleet"), transport=httpx.MockTransport(answer))


def test_a_registry_that_lies_is_refused(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    shipped = fleet.ship()
    honest = fleet.device(source=lying(fleet))
    assert shipped.digest in honest.refresh().bundles
    blob = shipped.adapter[0]
    device = fleet.device("other", lying(fleet, **{blob.sha256: b"WEIGHTS"}))
    device.refresh()
    with pytest.raises(WrongDigestError):
        device.fetch(blob.sha256, tmp_path / "to")


@pytest.mark.parametrize("text", ["oci://", "oci://host", "oci://host/UPPER", "oci://host/a/../b", "oci://host/a:b:c",
                                  "https://host/a", "oci://user:secret@host/a"])
def test_a_place_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SourceError, match="no place"):
        place_of(text)


def test_a_registry_elsewhere_is_asked_over_tls() -> None:
    assert place_of("oci://ghcr.io/owner/fleet:v1").url == "https://ghcr.io/v2/owner/fleet"
    assert place_of("oci://127.0.0.1:5000/fleet").url == "http://127.0.0.1:5000/v2/fleet"
    assert place_of("oci://127.0.0.1.evil.example/fleet").url.startswith("https://")


def test_a_registry_that_wants_a_token_gets_one_and_other_hosts_do_not() -> None:
    asked = list[httpx.Request]()

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if request.url.host == "auth.example":
            return httpx.Response(200, json={"token": "t1"})
        if request.url.host == "blobs.example":
            return httpx.Response(200)
        if request.headers.get("authorization") != "Bearer t1":
            return httpx.Response(401, headers={
                "www-authenticate": 'Bearer realm="https://auth.example/token",service="r",scope="repository:a:pull"'})
        return httpx.Response(307, headers={"location": "https://blobs.example/x"})

    with httpx.Client(transport=httpx.MockTransport(answer), auth=RegistryAuth("user:pass", "registry.example"),
                      follow_redirects=True) as client:
        assert client.get("https://registry.example/v2/a/blobs/x").status_code == 200
    assert [request.url.host for request in asked] == ["registry.example", "auth.example", "registry.example",
                                                       "blobs.example"]
    assert asked[1].headers["authorization"].startswith("Basic ") and asked[1].url.params["service"] == "r"
    assert "authorization" not in asked[3].headers
