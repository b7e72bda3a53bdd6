"""A bundle: what a device gets. A manifest in JSON, and blobs by SHA-256.

    bundles/NAME/VERSION.json     the manifest, a target of the release key
    blobs/sha256/HEX              each blob, a target of the release key, too

On a device the blobs lie under their `path` in a folder of the bundle: adapter/..., certificate.json, gate.jsonl,
base/...
Nothing of a bundle is read before its digest stands in verified metadata (trust.py).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, get_args

from brise.errors import StoreError
from brise.files.digests import DIGEST, NAME
from brise.files.typed_json import LARGEST_WHOLE
from brise.fleet.refusals import BundleError, UnsafePathError
from brise.fleet.strict_json import canonical, read
from brise.models.ops import CacheFormat
from brise.switch import rule as rules

FORMAT = 1
MOST_BYTES = 1 << 20  # of a manifest; one with a rule has about 5 kB
MOST_BLOBS = 256
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_FINGERPRINT = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Blob:
    """A file of the bundle: where it lies in the bundle's folder, its SHA-256 and its length."""

    path: str
    sha256: str
    nbytes: int

    def __post_init__(self) -> None:
        check_path(self.path)
        _check_digest("blob.sha256", self.sha256)
        _check_count("blob.nbytes", self.nbytes, 0)

    @property
    def target(self) -> str:
        """Its name in a repository."""
        return blob_target(self.sha256)


@dataclass(frozen=True)
class BundleBase:
    """The base model: `digest` is that of the store (checkpoint/adapters/lineage.py, base_digest).

    `blobs` is empty where the base comes to the device by another way (`brise pull`, an image of the disk).
    """

    name: str
    digest: str
    nbytes: int
    blobs: tuple[Blob, ...] = ()

    def __post_init__(self) -> None:
        _check_digest("base.digest", self.digest)
        _check_count("base.nbytes", self.nbytes, 1)


@dataclass(frozen=True)
class BundlePlan:
    """The memory plan with which it was measured: bytes of the whole process, and what they are for.

    `weights` is the format to which the base is quantized while it is read, None for as stored.
    """

    memory: int
    context: int
    parallel: int
    cache: str = "f16"
    weights: str | None = None

    def __post_init__(self) -> None:
        _check_count("plan.memory", self.memory, 1)
        _check_count("plan.context", self.context, 1)
        _check_count("plan.parallel", self.parallel, 1)
        if self.cache not in get_args(CacheFormat):
            raise BundleError("plan.cache", self.cache, ", ".join(get_args(CacheFormat)))


@dataclass(frozen=True)
class DeviceNeeds:
    """What a device must have: bytes of memory and disk, an instruction set (None: any), a version of brise."""

    ram_bytes: int
    disk_bytes: int
    brise: str
    isa: str | None = None

    def __post_init__(self) -> None:
        _check_count("needs.ram_bytes", self.ram_bytes, 1)
        _check_count("needs.disk_bytes", self.disk_bytes, 0)


@dataclass(frozen=True)
class GateLimits:
    """When the local gate passes. `kl` is the largest mean divergence of a prompt's shipped predictions, in nats.

    `same` is the least share of prompts whose answers are the shipped ones token by token; `p95_s` the longest time of
    an answer, None for any.
    """

    kl: float
    same: float
    p95_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.kl <= 100:
            raise BundleError("limits.kl", self.kl, "over 0, at most 100 nats")
        if not 0 <= self.same <= 1:
            raise BundleError("limits.same", self.same, "0 to 1")
        if self.p95_s is not None and not 0 < self.p95_s <= 86400:
            raise BundleError("limits.p95_s", self.p95_s, "over 0, at most 86400 s")


@dataclass(frozen=True)
class AdapterParity:
    """How the adapter in bf16 differed from the one that was trained, on the gate prompts, when it was shipped.

    `kl_mean` and `kl_max` are nats by token, `logprob_max` the largest difference of the log-probability of a token of
    the answer, `same` of `prompts` answers were equal token by token.
    """

    prompts: int
    tokens: int
    kl_mean: float
    kl_max: float
    logprob_max: float
    same: int


@dataclass(frozen=True)
class BundleLineage:
    """What the adapter was trained on: digests of the base, of the rows, and of the weights as they were trained."""

    base_digest: str
    data_digest: str
    adapter_digest: str
    created: str

    def __post_init__(self) -> None:
        for name in ("base_digest", "data_digest", "adapter_digest"):
            _check_digest(f"lineage.{name}", getattr(self, name))


@dataclass(frozen=True)
class Bundle:
    """What a device gets. `fingerprint` is what a server reports that runs this base and adapter by this plan.

    `certified` is the fingerprint that the certificate and the rule name, where the adapter was certified before its
    conversion to bf16; `parity` is what that conversion changed.
    """

    name: str
    version: int
    created_s: float
    base: BundleBase
    adapter: tuple[Blob, ...]
    template_digest: str | None
    rule: Mapping[str, Any] | None
    certificate: Blob | None
    gate: Blob | None
    limits: GateLimits
    plan: BundlePlan
    fingerprint: str
    licence: str
    needs: DeviceNeeds
    task: str | None = None
    certified: str | None = None
    parity: AdapterParity | None = None
    lineage: BundleLineage | None = None
    rights: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise BundleError("format", self.format, FORMAT, hint="a newer brise made this bundle")
        _check_name("name", self.name)
        _check_count("version", self.version, 1)
        if not 0 <= self.created_s <= LARGEST_WHOLE:
            raise BundleError("created_s", self.created_s, "seconds since 1970")
        for name in ("fingerprint", "certified"):
            value = getattr(self, name)
            if value is not None and _FINGERPRINT.fullmatch(value) is None:
                raise BundleError(name, value, "32 hexadecimal digits")
        if self.template_digest is not None:
            _check_digest("template_digest", self.template_digest)
        _check_places(self.blobs)
        if self.rule is not None:
            _check_rule(self.rule)

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """All files of the bundle; the base's are there only if they were shipped with it."""
        others = (one for one in (self.certificate, self.gate) if one is not None)
        return (*self.adapter, *others, *self.base.blobs)

    @property
    def digest(self) -> str:
        """The SHA-256 of its manifest, by which roll-outs name it."""
        return hashlib.sha256(bundle_json(self)).hexdigest()

    @property
    def target(self) -> str:
        """The name of its manifest in a repository."""
        return manifest_target(self.name, self.version)

    @property
    def nbytes(self) -> int:
        """Bytes of all its files."""
        return sum(blob.nbytes for blob in self.blobs)


def read_bundle(data: bytes) -> Bundle:
    """The bundle of a manifest whose digest was verified; BundleError names the field, its value and the limit."""
    return read(Bundle, data, "bundle", MOST_BYTES)


def bundle_json(bundle: Bundle) -> bytes:
    """The manifest, in the form that is signed."""
    return canonical(bundle)


def blob_target(sha256: str) -> str:
    """A blob's name in a repository."""
    return f"blobs/sha256/{sha256}"


def manifest_target(name: str, version: int) -> str:
    """A manifest's name in a repository."""
    return f"bundles/{name}/{version}.json"


def check_path(path: str) -> None:
    """Raises UnsafePathError unless the path stays in its folder on every file system: a/b-1.json, at most 4 deep."""
    segments = path.split("/")
    if not 1 <= len(segments) <= 4 or not all(map(_SEGMENT.fullmatch, segments)):
        raise UnsafePathError(f"the path {path[:100]!r} may lead out of the bundle's folder; allowed are up to 4 names "
                              "of letters, digits, '.', '_' and '-', of which none begins with '.' or '-'")


def _check_places(blobs: tuple[Blob, ...]) -> None:
    """Each path once, and none below another's."""
    if len(blobs) > MOST_BLOBS:
        raise BundleError("number of blobs", len(blobs), f"at most {MOST_BLOBS}")
    paths = {blob.path.lower() for blob in blobs}
    for blob in blobs:
        parents = {blob.path.lower()[:at] for at, char in enumerate(blob.path) if char == "/"}
        if parents & paths:
            raise BundleError("a blob's path", blob.path, "one that is below no other blob's")
    if len(paths) < len(blobs):
        raise BundleError("paths of blobs", "twice the same", "each path once, whatever its case")


def _check_rule(body: Mapping[str, Any]) -> None:
    try:
        rules.from_body(body)
    except (StoreError, ValueError, AttributeError) as error:
        raise BundleError("rule", str(error), "a rule as brise cascade certifies it") from None


def _check_name(place: str, name: str) -> None:
    if NAME.fullmatch(name) is None:
        raise BundleError(place, name, "1 to 100 letters, digits, '.', '_' and '-', of which the first is a letter or "
                                       "digit")


def _check_digest(place: str, value: str) -> None:
    if DIGEST.fullmatch(value) is None:
        raise BundleError(place, value, "a SHA-256 of 64 hexadecimal digits in lower case")


def _check_count(place: str, value: int, least: int) -> None:
    if not least <= value <= LARGEST_WHOLE:
        raise BundleError(place, value, f"{least} to {LARGEST_WHOLE}")
