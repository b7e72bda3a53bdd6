"""The device's side of a repository: nothing is read before signatures and digests hold, and every refusal has a name.

    FOLDER/metadata/       what TUF's client keeps: the chain of roots, and the last of each other role
    FOLDER/seen.json       the highest versions and the latest time that were ever verified
    FOLDER/incoming/       blobs on their way (incoming.py)

The metadata go through python-tuf's client; targets are fetched here, since that client knows no resuming.
Expiry blocks new installations only: whoever calls `refresh` goes on serving what is committed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from brise.errors import MissingExtraError
from brise.files.atomic import output_errors, private_folder, staged_file
from brise.files.digests import DIGEST
from brise.fleet import bundle as bundles
from brise.fleet import offers
from brise.fleet.bundle import Blob, Bundle, blob_target, read_bundle
from brise.fleet.incoming import Incoming, has_digest
from brise.fleet.offers import Forgotten, OfferedRollout, read_rollouts
from brise.fleet.refusals import (
    BundleError,
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
from brise.fleet.repository import CREATED, target_name
from brise.fleet.sources import METADATA, Source
from brise.fleet.strict_json import canonical, read

try:
    from tuf.api import exceptions as tuf_errors
    from tuf.api.metadata import Metadata, Root, TargetFile, Timestamp
    from tuf.api.serialization import DeserializationError
    from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig
except ModuleNotFoundError as error:
    raise MissingExtraError("tuf", "fleet", "a fleet of devices") from error

MOST_TARGETS_BYTES = 8 << 20  # about 40,000 targets
_LIMITS = UpdaterConfig(root_max_length=256 << 10, timestamp_max_length=16 << 10, snapshot_max_length=64 << 10,
                        targets_max_length=MOST_TARGETS_BYTES, max_delegations=2)
_SEEN, _INCOMING = "seen.json", "incoming"


@dataclass(frozen=True)
class Offer:
    """What a repository offers at this moment, verified: roll-outs, bundles by the digest of their manifests, what was
    forgotten, and when its timestamp was signed (seconds since 1970)."""

    rollouts: tuple[OfferedRollout, ...]
    bundles: Mapping[str, str]  # of each manifest: SHA-256, and its target's name
    forgotten: Forgotten
    metadata_time_s: float


@dataclass(frozen=True)
class Seen:
    """The highest versions that were verified, the time of the newest, and the keys that signed it.

    With other keys the versions begin anew: whoever stole the old ones may have signed a very high version.
    """

    timestamp: int = 0
    snapshot: int = 0
    time_s: float = 0.0
    keys: tuple[str, ...] = ()


class TrustedRepository:
    """A repository as one device sees it. `root` is the root that it was enrolled with; one thread uses it."""

    def __init__(self, source: Source, folder: Path, root: bytes, now: Callable[[], float] = time.time) -> None:
        self._source, self.folder, self._root, self._clock = source, folder, root, now
        self._targets: Mapping[str, TargetFile] = {}
        self._begun_s = _created(_parsed(root).signed)
        self._incoming = Incoming(folder / _INCOMING)

    def now(self) -> float:
        """The time, on a device whose clock may have stopped: never before the newest metadata that were verified."""
        return max(self._clock(), self._seen().time_s, self._begun_s)

    def refresh(self) -> Offer:
        """Reads the newest metadata. SourceError if they cannot be reached, or an UntrustedError that names the reason;
        then the last offer is no longer valid, and what is installed goes on."""
        self._targets = {}
        seen = self._seen()
        with output_errors(self.folder):
            private_folder(self.folder)
            updater, rollouts = self._updated(seen)
        trusted = updater._trusted_set
        keys = _keys_of(trusted.root)
        self._check_seen(seen, keys, trusted.timestamp.version, trusted.snapshot.version)
        signed_s = _created(trusted.timestamp)
        self._keep(Seen(trusted.timestamp.version, trusted.snapshot.version,
                        max(signed_s, seen.time_s if keys == seen.keys else 0.0), keys))
        if rollouts is None:
            raise NotOfferedError(f"the repository has no {offers.TARGET}")
        offered = read_rollouts(self._small(rollouts, offers.MOST_BYTES))
        self._targets = trusted.targets.targets
        bundles = {target.hashes["sha256"]: name for name, target in trusted.targets.targets.items()
                   if name.startswith("bundles/")}
        return Offer(offered.rollouts, bundles, offered.forgotten, signed_s)

    def _updated(self, seen: Seen) -> tuple[Updater, TargetFile | None]:
        """python-tuf's client after its work. The time that stolen keys signed counts no longer once they are rotated.
        """
        fetcher = _SourceFetcher(self._source)
        for now_s in (self.now(), max(self._clock(), self._begun_s)):
            with _named_refusals(fetcher):
                updater = Updater(str(self.folder / METADATA), METADATA, None, None, fetcher, _LIMITS,
                                  bootstrap=self._root)
                trusted = updater._trusted_set  # the client has no other place for a clock
                trusted.reference_time = datetime.fromtimestamp(now_s, UTC)
                try:
                    updater.refresh()
                except tuf_errors.ExpiredMetadataError:
                    if now_s == self._clock() or _keys_of(trusted.root) == seen.keys:
                        raise
                else:
                    return updater, updater.get_targetinfo(offers.TARGET)
        raise AssertionError("the second try returns or raises")

    def bundle(self, digest: str) -> Bundle:
        """The bundle whose manifest has this digest, and whose blobs are all targets of the release key."""
        name = next((name for name, target in self._targets.items()
                     if name.startswith("bundles/") and target.hashes["sha256"] == digest), None)
        if name is None:
            raise NotOfferedError(f"no bundle that the release key signed has the digest {digest[:64]!r}")
        found = read_bundle(self._small(self._target(name), bundles.MOST_BYTES))
        if found.target != name:
            raise UntrustedError(f"the manifest {name!r} is that of {found.target!r}")
        for blob in found.blobs:
            if self._target(blob.target).length != blob.nbytes:
                raise WrongDigestError(f"{blob.path} has {blob.nbytes} bytes in the manifest, "
                                       f"{self._target(blob.target).length} in the signed targets")
        return found

    def fetch(self, name: str, to: Path, sources: Sequence[Source] = ()) -> Path:
        """The target of this name (or the blob of this digest) as the file `to`, resumed where it stopped.

        It is asked of `sources` first (peers), in their order, and of the repository's own source last.
        """
        target = self._target(blob_target(name) if DIGEST.fullmatch(name) else name)
        sha256 = target.hashes["sha256"]
        if not has_digest(to, sha256, target.length):
            self._incoming.fetch(target_name(target.path, sha256), sha256, target.length, to, (*sources, self._source))
        return to

    def verify(self, name: str) -> None:
        """Reads a target from the repository and keeps nothing; WrongDigestError if its bytes are not those signed."""
        target, digest = self._target(name), hashlib.sha256()
        sha256 = target.hashes["sha256"]
        for chunk in self._source.read(target_name(target.path, sha256), target.length):
            digest.update(chunk)
        if digest.hexdigest() != sha256:
            raise WrongDigestError(f"{name} has the digest {digest.hexdigest()[:12]}, signed is {sha256[:12]}")

    def fetch_bundle(self, bundle: Bundle, folder: Path, sources: Sequence[Source] = ()) -> None:
        """All blobs of a bundle at their paths below `folder`. The disk's room for all of them is reserved first."""
        self._incoming.reserve({blob.sha256: blob.nbytes for blob in bundle.blobs
                                if not has_digest(folder / blob.path, blob.sha256, blob.nbytes)})
        for blob in bundle.blobs:
            path = folder / blob.path
            with output_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            self.fetch(blob.target, path, sources)

    def drop_incoming(self, keep: Sequence[Blob] = ()) -> None:
        """Gives back the room of downloads that nobody waits for any longer."""
        self._incoming.drop([blob.sha256 for blob in keep])

    def _small(self, target: TargetFile, most: int) -> bytes:
        """A target that is read as a whole. Its digest is checked before anybody sees a byte."""
        name, sha256 = target.path, target.hashes.get("sha256", "")
        if target.length > most:
            raise TooLongError(f"{name} has {target.length} bytes, at most {most} are allowed")
        data = b"".join(self._source.read(target_name(name, sha256), target.length))
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise WrongDigestError(f"{name} has the digest {found[:12]}, signed is {sha256[:12]}")
        return data

    def _target(self, name: str) -> TargetFile:
        target = self._targets.get(name)
        if target is None or DIGEST.fullmatch(target.hashes.get("sha256", "")) is None:
            raise NotOfferedError(f"no signed target is called {name[:120]!r}")
        return target

    def _check_seen(self, seen: Seen, keys: tuple[str, ...], timestamp: int, snapshot: int) -> None:
        if keys == seen.keys and (timestamp < seen.timestamp or snapshot < seen.snapshot):
            raise RolledBackError(f"the repository offers timestamp {timestamp} and snapshot {snapshot}; this device "
                                  f"has seen {seen.timestamp} and {seen.snapshot}")

    def _seen(self) -> Seen:
        try:
            return read(Seen, (self.folder / _SEEN).read_bytes(), _SEEN, 1 << 16)
        except (OSError, BundleError):  # the device's own file: without it, the metadata beside it count
            return Seen()

    def _keep(self, seen: Seen) -> None:
        if seen != self._seen():
            data = canonical(seen)
            with staged_file(self.folder / _SEEN, len(data), mode=0o600, replaces=True) as file:
                file.write(data)


class _SourceFetcher(FetcherInterface):
    """Gives python-tuf's client a Source, and remembers which role it read last."""

    def __init__(self, source: Source) -> None:
        self._source, self.name = source, ""

    def _fetch(self, url: str) -> Iterator[bytes]:
        self.name = url
        try:  # the client's own limits are smaller for all but targets
            yield from self._source.read(url, MOST_TARGETS_BYTES)
        except SourceError as error:
            if error.is_missing:
                raise tuf_errors.DownloadHTTPError(str(error), 404) from error
            raise

    def close(self) -> None:
        """Nothing is kept open."""


@contextmanager
def _named_refusals(fetcher: _SourceFetcher) -> Iterator[None]:
    """Turns the errors of python-tuf's client into refusals that name the attack."""
    try:
        yield
    except tuf_errors.ExpiredMetadataError as error:
        raise ExpiredError(f"{error}: nothing new is installed until there are newer ones",
                           hint="is the device's clock right? Else the repository is frozen, or the stick is too "
                                "old") from None
    except tuf_errors.UnsignedMetadataError as error:
        raise WrongKeyError(f"{fetcher.name}: {error}") from None
    except tuf_errors.BadVersionNumberError as error:
        is_mixed = fetcher.name.endswith(("targets.json", "rollouts.json")) or str(error).startswith(
            "Expected snapshot version")
        raise (MixedVersionsError if is_mixed else RolledBackError)(f"{fetcher.name}: {error}") from None
    except tuf_errors.LengthOrHashMismatchError as error:
        raise MixedVersionsError(f"{fetcher.name} is not the file that the metadata before it name: {error}") from None
    except DeserializationError:
        raise MalformedError(f"{fetcher.name} is no metadata of TUF") from None
    except tuf_errors.RepositoryError as error:
        raise MixedVersionsError(f"{fetcher.name}: {error}") from None
    except tuf_errors.DownloadLengthMismatchError as error:
        raise TooLongError(f"{fetcher.name}: {error}") from None
    except tuf_errors.DownloadHTTPError as error:
        raise SourceError(str(error), is_missing=True) from None
    except tuf_errors.DownloadError as error:
        raise SourceError(str(error)) from None


def check_root(data: bytes) -> str:
    """The digest of a root that a person may compare; UntrustedError if it is none that signed itself."""
    root = _parsed(data)
    try:
        root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
    except tuf_errors.UnsignedMetadataError as error:
        raise WrongKeyError(f"this root did not sign itself: {error}") from None
    return hashlib.sha256(data).hexdigest()


def _parsed(root: bytes) -> Metadata[Root]:
    try:
        found = Metadata[Root].from_bytes(root)
    except DeserializationError:
        found = None
    if found is None or not isinstance(found.signed, Root):
        raise MalformedError("the root is no root of TUF")
    return found


def _keys_of(root: Root) -> tuple[str, ...]:
    return tuple(sorted(root.roles["timestamp"].keyids))


def _created(signed: Root | Timestamp) -> float:
    """When it was made, as it says itself; 0 if it does not say, or says a time at which it had expired."""
    value = signed.unrecognized_fields.get(CREATED)
    is_time = isinstance(value, int) and 0 <= value <= signed.expires.timestamp()
    return float(value) if is_time else 0.0  # type: ignore[arg-type]
