"""A repository in an OCI registry, by plain HTTP: no tool and no library of containers is needed.

    oci://HOST[:PORT]/NAME[:TAG]     TLS, but for this machine itself; the tag is `repository` unless it is given

    tag TAG                          an artifact whose layers are the metadata of the repository
    tag BUNDLE-VERSION               each bundle as a ModelPack artifact, which KitOps and modctl pull as a model

Layers are the files themselves, so a device asks for a target by the SHA-256 that stands in its name. The registry's
manifests are not signed: they say where bytes lie, and what bytes are right, TUF's metadata say.
"""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from brise import __version__
from brise.errors import CheckpointError
from brise.files.digests import CHUNK_BYTES, file_digest
from brise.files.json_file import parse_json
from brise.fleet.bundle import Bundle, read_bundle
from brise.fleet.refusals import BundleError, SourceError, UntrustedError
from brise.fleet.repository import Repository
from brise.fleet.sources import CHANGING, METADATA, TARGETS, USUAL_PACE, FolderSource, HttpSource, Pace, Source

SCHEME, TAG = "oci://", "repository"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MODEL_MANIFEST = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHT, SETTINGS, DOCUMENT, DATA = (f"application/vnd.cncf.model.{kind}.v1.raw" for kind in (
    "weight", "weight.config", "doc", "dataset"))
FILE_PATH = "org.cncf.model.filepath"
REPOSITORY, METADATA_FILE = "application/vnd.brise.repository.v1+json", "application/vnd.brise.metadata.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
BUNDLE_FILE = "bundle.json"  # the manifest of a bundle among its layers
MOST_MANIFEST_BYTES = 4 << 20  # what registries take, too
_PLACE = re.compile(r"oci://([A-Za-z0-9.-]+(?::[0-9]{1,5})?|\[[0-9a-f:]+\](?::[0-9]{1,5})?)/"
                    r"([a-z0-9]+(?:[._/-][a-z0-9]+)*)(?::([A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?")
_TARGET = re.compile(rf"{TARGETS}/(?:[\w.-]+/)*([0-9a-f]{{64}})\.[\w.-]+")
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class RegistryPlace:
    """A name in a registry; `login` for it is USER:PASSWORD. Without TLS only on this machine."""

    host: str
    name: str
    tag: str = TAG

    @property
    def url(self) -> str:
        is_here = self.host.rpartition(":")[0] in ("localhost", "127.0.0.1", "[::1]") or self.host == "localhost"
        return f"{'http' if is_here else 'https'}://{self.host}/v2/{self.name}"


@dataclass(frozen=True)
class _Layer:
    """A file of an artifact."""

    path: str
    kind: str
    sha256: str
    nbytes: int
    content: Path | bytes


def open_source(place: str, login: str | None = None, tls: ssl.SSLContext | None = None) -> Source:
    """The source of a place that a user names: a folder or a stick, a web server, a registry. `login` is USER:PASSWORD
    of a registry."""
    if is_registry(place):
        return RegistrySource(place_of(place), login=login, tls=tls)
    return HttpSource(place, tls=tls) if place.startswith(("http://", "https://")) else FolderSource(Path(place))


def is_registry(place: str) -> bool:
    """Whether this is a name in a registry."""
    return place.startswith(SCHEME)


def place_of(text: str) -> RegistryPlace:
    """The place that a user wrote."""
    found = _PLACE.fullmatch(text)
    if found is None:
        raise SourceError(f"{text[:200]!r} is no place in a registry",
                          hint="oci://HOST[:PORT]/NAME[:TAG], NAME in lower case")
    return RegistryPlace(found[1], found[2], found[3] or TAG)


class RegistryAuth(httpx.Auth):
    """Name and password, or the token that the registry's own server gives for them (or for nobody)."""

    def __init__(self, login: str | None, host: str) -> None:
        self._basic = None if login is None else httpx.BasicAuth(*login.split(":", 1))
        self._host, self._header = host.rpartition(":")[0] or host, ""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """See httpx."""
        if self._header and request.url.host == self._host.strip("[]"):
            request.headers["Authorization"] = self._header
        response = yield request
        if response.status_code != 401:
            return
        challenge = response.headers.get("www-authenticate", "")
        values = dict(_CHALLENGE.findall(challenge))
        if challenge.lower().startswith("bearer") and values.get("realm", "").startswith("https://"):
            asked = httpx.Request("GET", values["realm"], params={
                name: values[name] for name in ("service", "scope") if name in values})
            if self._basic is not None:
                next(self._basic.auth_flow(asked))
            answer = yield asked
            answer.read()
            found = answer.json() if answer.is_success else {}
            self._header = f"Bearer {found.get('token') or found.get('access_token') or ''}"
        elif self._basic is not None:
            next(self._basic.auth_flow(request))
            self._header = request.headers["Authorization"]
        else:
            return
        request.headers["Authorization"] = self._header
        yield request


class RegistrySource(HttpSource):
    """A repository in a registry, as a device reads it."""

    def __init__(self, place: RegistryPlace, *, login: str | None = None, tls: ssl.SSLContext | None = None,
                 pace: Pace = USUAL_PACE, transport: httpx.BaseTransport | None = None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(place.url, headers={"Accept": f"{MANIFEST}, application/octet-stream"}, tls=tls, pace=pace,
                         transport=transport, clock=clock, auth=RegistryAuth(login, place.host), follows=True)
        self._tag, self._digests = place.tag, dict[str, str]()

    def read(self, name: str, most: int, offset: int = 0) -> Iterator[bytes]:
        """See Source. What the tag names is looked up anew with each root and each timestamp."""
        if name.startswith(f"{METADATA}/") and (name == CHANGING or name.endswith(".root.json") or not self._digests):
            self._look_up()
        target = _TARGET.fullmatch(name)
        sha256 = target[1] if target is not None else self._digests.get(name)
        if sha256 is None:
            raise SourceError(f"{self.url} has no {name}", is_missing=True)
        return super().read(f"blobs/{sha256}", most, offset)

    def place(self, name: str) -> str:
        """The path of a blob or a manifest in the registry's API."""
        kind, _, rest = name.partition("/")
        return f"blobs/sha256:{rest}" if kind == "blobs" else name

    def _look_up(self) -> None:
        data = b"".join(super().read(f"manifests/{self._tag}", MOST_MANIFEST_BYTES))
        try:
            layers = parse_json(data, "the registry's manifest").get("layers")
        except CheckpointError as error:
            raise SourceError(f"{self.url}: {error.args[0]}") from None
        found = dict[str, str]()
        for layer in layers if isinstance(layers, list) else ():
            notes, digest = (layer.get("annotations"), layer.get("digest")) if isinstance(layer, dict) else (None, None)
            path = notes.get(FILE_PATH) if isinstance(notes, dict) else None
            if isinstance(path, str) and isinstance(digest, str) and re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
                found[path] = digest.removeprefix("sha256:")
        self._digests = found


def push(repository: Repository, text: str, *, login: str | None = None, tls: ssl.SSLContext | None = None) -> None:
    """Takes a repository to a registry. What is there already is not sent again; the metadata come last.
    """
    place, folder = place_of(text), repository.folder
    with httpx.Client(trust_env=False, verify=tls or True, timeout=60.0, auth=RegistryAuth(login, place.host), headers={
            "User-Agent": f"brise/{__version__}"}) as client:
        registry = _Registry(client, place)
        for layers, bundle in _bundles(folder):
            config = _model_config(bundle, layers)
            registry.put(f"{bundle.name}-{bundle.version}"[:128], MODEL_MANIFEST, MODEL_CONFIG, config, layers)
        metadata = [_layer(path, f"{METADATA}/{path.name}", METADATA_FILE) for path in _current(folder / METADATA)]
        offered = repository.rollouts_path
        layers = [*metadata, _layer(offered, offered.relative_to(folder).as_posix(), METADATA_FILE)]
        registry.put(place.tag, REPOSITORY, EMPTY, b"{}", layers)


def _model_config(bundle: Bundle, layers: Sequence[_Layer]) -> bytes:
    """ModelPack's description of a bundle."""
    created = datetime.fromtimestamp(bundle.created_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return json.dumps({
        "descriptor": {"createdAt": created, "name": bundle.name, "version": str(bundle.version),
                       "family": bundle.base.name, "licenses": [bundle.licence],
                       "title": f"{bundle.name} {bundle.version} on {bundle.base.name}"},
        "config": {"format": "safetensors", "precision": "bf16"} if bundle.adapter else {"format": "gguf"},
        "modelfs": {"type": "layers", "diffIds": [f"sha256:{layer.sha256}" for layer in layers]}}).encode()


class _Registry:
    """The calls of a registry that pushing needs."""

    def __init__(self, client: httpx.Client, place: RegistryPlace) -> None:
        self._client, self._place = client, place

    def put(self, tag: str, kind: str, config_kind: str, config: bytes, layers: Sequence[_Layer]) -> None:
        """An artifact under a tag, after all its files."""
        own = _Layer("", config_kind, hashlib.sha256(config).hexdigest(), len(config), config)
        for layer in (own, *layers):
            self._blob(layer)
        manifest = json.dumps({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "config": _descriptor(own),
            "layers": [{**_descriptor(layer), "annotations": {
                FILE_PATH: layer.path, "org.opencontainers.image.title": layer.path}} for layer in layers]}).encode()
        self._send("PUT", f"{self._place.url}/manifests/{tag}", 201, content=manifest, headers={
            "Content-Type": MANIFEST})

    def _blob(self, layer: _Layer) -> None:
        where = f"{self._place.url}/blobs/sha256:{layer.sha256}"
        if self._send("HEAD", where, 200, 404).status_code == 200:
            return
        begun = self._send("POST", f"{self._place.url}/blobs/uploads/", 202)
        upload = httpx.URL(self._place.url).join(begun.headers.get("location", ""))
        content: bytes | Iterable[bytes] = layer.content if isinstance(layer.content, bytes) else _chunks(layer.content)
        self._send("PUT", str(upload.copy_merge_params({"digest": f"sha256:{layer.sha256}"})), 201, content=content,
                   headers={"Content-Length": str(layer.nbytes), "Content-Type": "application/octet-stream"})

    def _send(self, method: str, url: str, *allowed: int, **options: Any) -> httpx.Response:
        try:
            response = self._client.request(method, url, **options)
        except httpx.HTTPError as error:
            raise SourceError(f"the registry {self._place.host} cannot be reached: {type(error).__name__}: {error}"
                              ) from None
        if response.status_code not in allowed:
            raise SourceError(f"the registry {self._place.host} answers {method} {response.url.path} with "
                              f"{response.status_code}: {response.text[:200]}",
                              hint="may you push there? --registry-login-env names the variable with USER:PASSWORD"
                              if response.status_code in (401, 403) else None)
        return response


def _bundles(folder: Path) -> Iterator[tuple[list[_Layer], Bundle]]:
    """Each bundle of a repository, with its files."""
    for path in sorted((folder / TARGETS / "bundles").glob("*/*.json")):
        try:
            bundle = read_bundle(path.read_bytes())
        except (BundleError, UntrustedError):
            continue  # devices refuse it, too
        layers = [_layer(path, BUNDLE_FILE, SETTINGS)]
        for blob in bundle.blobs:
            place = folder / TARGETS / "blobs" / "sha256" / f"{blob.sha256}.{blob.sha256}"
            layers.append(_Layer(blob.path, _kind(blob.path), blob.sha256, blob.nbytes, place))
        if all(isinstance(layer.content, Path) and layer.content.is_file() for layer in layers):
            yield layers, bundle


def _kind(path: str) -> str:
    if path.endswith((".safetensors", ".gguf", ".bin")):
        return WEIGHT
    return DATA if path.endswith(".jsonl") else DOCUMENT if path == "certificate.json" else SETTINGS


def _current(metadata: Path) -> list[Path]:
    """All roots, the newest of each other role, and the timestamp."""
    found = [metadata / "timestamp.json", *metadata.glob("*.root.json")]
    for role in ("snapshot", "targets", "rollouts"):
        found += sorted(metadata.glob(f"*.{role}.json"), key=lambda path: int(path.name.partition(".")[0]))[-1:]
    return sorted(found)


def _layer(path: Path, name: str, kind: str) -> _Layer:
    return _Layer(name, kind, file_digest(path), path.stat().st_size, path)


def _descriptor(layer: _Layer) -> Mapping[str, object]:
    return {"mediaType": layer.kind, "digest": f"sha256:{layer.sha256}", "size": layer.nbytes}


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
