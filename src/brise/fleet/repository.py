"""The maker's side of a repository: signed metadata over targets, as static files that anything can serve.

    metadata/N.root.json          who may sign what; two of n offline keys. All versions are kept: devices sleep
    metadata/N.targets.json       the release key's: manifests and blobs, and the delegation to `rollouts`
    metadata/N.rollouts.json      the hub's: rollouts/current.json
    metadata/N.snapshot.json      the hub's: versions of the two above
    metadata/timestamp.json       the hub's: version of the snapshot; the only file that is written over
    targets/DIR/HEX.NAME          each target, with its SHA-256 in front of its name (TUF's consistent snapshots)
    proposed.root.json            a root that still lacks signatures

Files that others name are written first, timestamp.json last: who reads meanwhile gets the old state or the new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from brise.errors import FleetError, MissingExtraError
from brise.files.atomic import output_errors, staged_file
from brise.files.digests import CHUNK_BYTES, file_digest
from brise.fleet import offers
from brise.fleet.bundle import Bundle, read_bundle
from brise.fleet.offers import RolloutList, read_rollouts, rollouts_json
from brise.fleet.signing import FleetSigner, tuf_key
from brise.fleet.sources import CHANGING, METADATA, TARGETS
from brise.traffic.seal import SigningKey

try:
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import (
        DelegatedRole,
        Delegations,
        Metadata,
        MetaFile,
        Root,
        Snapshot,
        TargetFile,
        Targets,
        Timestamp,
    )
    from tuf.api.serialization.json import JSONSerializer
except ModuleNotFoundError as error:
    raise MissingExtraError("tuf", "fleet", "a fleet of devices") from error

DAY_S = 86400.0
ROOT_VALID_S, RELEASE_VALID_S, HUB_VALID_S = 5 * 365 * DAY_S, 365 * DAY_S, 7 * DAY_S
CREATED = "x-brise-created-s"  # a field of root and timestamp: when it was made, for devices without a clock
PROPOSED = "proposed.root.json"
HUB_ROLES = ("snapshot", "timestamp")

T = TypeVar("T", Root, Snapshot, Targets, Timestamp)


@dataclass(frozen=True)
class PublicKeys:
    """The public keys of a new repository, and how many of the root's must sign."""

    root: Sequence[bytes]
    threshold: int
    release: bytes
    hub: bytes

    def __post_init__(self) -> None:
        if not 2 <= self.threshold <= len(set(self.root)):
            raise FleetError(f"{self.threshold} of {len(set(self.root))} root keys are to sign; allowed are 2 or more "
                             "of them", hint="one lost or stolen root key must neither lock you out nor be enough")
        if len({*self.root, self.release, self.hub}) < len(self.root) + 2:
            raise FleetError("a key has two of the roles root, release and hub, or is there twice",
                             hint="make a key for each: brise fleet keys create")


class Repository:
    """A repository in a folder of this machine. One process changes it at a time."""

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        self.folder, self._now = folder, now
        if not (folder / METADATA).is_dir():
            raise FleetError(f"{str(folder)!r} is no repository: it has no folder {METADATA!r}",
                             hint="brise fleet keys create makes one")

    @classmethod
    def create(cls, folder: Path, keys: PublicKeys, root: Sequence[SigningKey], release: SigningKey, hub: SigningKey, *,
               now: Callable[[], float] = time.time) -> Repository:
        """A new repository without bundles. FleetError if fewer root keys sign than must."""
        if (folder / METADATA).exists():
            raise FleetError(f"{str(folder)!r} is a repository already", hint="give another folder")
        made = Root(1, consistent_snapshot=True, expires=_time(now() + ROOT_VALID_S),
                    unrecognized_fields={CREATED: int(now())})
        for role, publics in (("root", keys.root), ("targets", [keys.release]), *((name, [keys.hub])
                                                                                  for name in HUB_ROLES)):
            for public in publics:
                made.add_key(tuf_key(public), role)
        made.roles["root"].threshold = keys.threshold
        signed = Metadata(made)
        for key in root:
            signed.sign(FleetSigner(key), append=True)
        with output_errors(folder):
            (folder / METADATA).mkdir(parents=True)
        repository = cls(folder, now)
        repository._publish_root(signed)
        targets = Targets(1, expires=_time(now() + RELEASE_VALID_S), delegations=_delegations(keys.hub))
        repository._write("targets", repository._signed(targets, release))
        repository.sign_hub(hub, rollouts=RolloutList())
        return repository

    @property
    def root(self) -> Root:
        """The newest root. It is this folder's own: devices check the chain."""
        return self._newest("root", Root).signed

    @property
    def root_bytes(self) -> bytes:
        """The newest root as a file, which a device is given when it is enrolled."""
        return self._path("root", self._version("root")).read_bytes()

    @property
    def targets(self) -> Targets:
        """The newest targets of the release key; FleetError if another key signed them."""
        found = self._newest("targets", Targets)
        if not _is_signed(self.root, found):
            raise FleetError(f"the newest targets of {str(self.folder)!r} are not the release key's",
                             hint="after a rotation: brise fleet keys renew --release KEY")
        return found.signed

    @property
    def rollouts(self) -> RolloutList:
        """The list of roll-outs that was signed last."""
        return read_rollouts(self.rollouts_path.read_bytes())

    @property
    def rollouts_path(self) -> Path:
        """Its file."""
        target = self._newest("rollouts", Targets).signed.targets[offers.TARGET]
        return self.target_path(offers.TARGET, target.hashes["sha256"])

    def target_path(self, name: str, sha256: str) -> Path:
        """Where a target lies."""
        return self.folder / target_name(name, sha256)

    def bundle(self, target: str) -> Bundle:
        """The bundle of a signed manifest."""
        return read_bundle(self.target_path(target, self.targets.targets[target].hashes["sha256"]).read_bytes())

    def release(self, files: Mapping[str, Path | bytes], key: SigningKey, *, without: Sequence[str] = ()) -> None:
        """Adds targets and signs them with the release key; takes the targets `without` out. The hub, or `sign_hub`,
        makes it known."""
        with self._locked():
            targets = self.targets
            for name in without:
                targets.targets.pop(name, None)
            for name, content in files.items():
                targets.targets[name] = self._add(name, content)
            targets.version += 1
            targets.expires = _time(self._now() + RELEASE_VALID_S)
            self._write("targets", self._signed(targets, key))

    def renew(self, key: SigningKey) -> None:
        """Signs the newest targets again with the release key that the newest root names, and delegates roll-outs to
        its hub's key: after a rotation, and before they expire."""
        with self._locked():
            found = self._newest("targets", Targets)
            if not any(_is_signed(root, found) for root in map(self._root, range(self._version("root"), 0, -1))):
                raise FleetError(f"no root of {str(self.folder)!r} named the key that signed its newest targets")
            root = self.root
            (keyid, *_) = root.roles["timestamp"].keyids
            targets = found.signed
            targets.delegations = _delegations(bytes.fromhex(str(root.keys[keyid].keyval["public"])))
            targets.version += 1
            targets.expires = _time(self._now() + RELEASE_VALID_S)
            self._write("targets", self._signed(targets, key))

    def sign_hub(self, key: SigningKey, *, rollouts: RolloutList | None = None, valid_s: float = HUB_VALID_S) -> None:
        """Signs what is new (`rollouts`, the release key's targets) and a timestamp, with the hub's key."""
        with self._locked():
            self.targets  # noqa: B018 - what another key signed is not passed on
            until = _time(self._now() + valid_s)
            if rollouts is not None:
                self._sign_rollouts(key, rollouts, until)
            elif (last := self._newest("rollouts", Targets)).signed.expires < until or (
                    tuf_key(key.public).keyid not in last.signatures):
                self._sign_rollouts(key, self.rollouts, until)
            self._sign_snapshot(key, until)
            path = self.folder / METADATA / "timestamp.json"
            number = Metadata[Timestamp].from_bytes(path.read_bytes()).signed.version if path.exists() else 0
            made = Timestamp(number + 1, expires=until, unrecognized_fields={CREATED: int(self._now())},
                             snapshot_meta=self._meta("snapshot"))
            _put(path, self._signed(made, key), replaces=True)

    def propose_root(self, change: Callable[[Root], None]) -> Path:
        """Writes a root with this change, which still lacks its signatures (`sign_root`). One proposal at a time."""
        with self._locked():
            path = self.folder / PROPOSED
            if path.exists():
                raise FleetError(f"{str(path)!r} waits for signatures", hint="sign it (brise fleet keys sign), or "
                                                                              "remove it")
            made = self.root
            change(made)
            if made.roles["root"].threshold < 2 or any(len(role.keyids) < role.threshold
                                                       for role in made.roles.values()):
                raise FleetError("a role would have fewer keys than must sign, or one root key would be enough",
                                 hint="put a new key in the place of one that goes: brise fleet keys rotate")
            made.version += 1
            made.expires = _time(self._now() + ROOT_VALID_S)
            made.unrecognized_fields[CREATED] = int(self._now())
            _put(path, Metadata(made).to_bytes(JSONSerializer()))
            return path

    def sign_root(self, key: SigningKey) -> int:
        """Adds a signature to the proposed root. How many are still missing; at 0 it is published."""
        with self._locked():
            path = self.folder / PROPOSED
            if not path.exists():
                raise FleetError(f"there is no {str(path)!r} to sign")
            proposed = Metadata[Root].from_bytes(path.read_bytes())
            keyid = tuf_key(key.public).keyid
            if keyid not in {*self.root.roles["root"].keyids, *proposed.signed.roles["root"].keyids}:
                raise FleetError(f"the key {keyid[:12]} is no root key, neither of the old root nor of the new one")
            proposed.sign(FleetSigner(key), append=True)
            missing = self._missing(proposed)
            if missing:
                _put(path, proposed.to_bytes(JSONSerializer()), replaces=True)
                return missing
            self._publish_root(proposed)
            path.unlink()
            return 0

    def missing_signatures(self) -> int:
        """How many signatures the proposed root still lacks; 0 if there is none."""
        path = self.folder / PROPOSED
        return self._missing(Metadata[Root].from_bytes(path.read_bytes())) if path.exists() else 0

    def _missing(self, proposed: Metadata[Root]) -> int:
        result = proposed.signed.get_root_verification_result(self.root, proposed.signed_bytes, proposed.signatures)
        return max(result.first.missing, result.second.missing)

    def stale(self) -> list[str]:
        """Whose signatures are those of keys that may no longer sign: `release`, `hub`, both or neither."""
        root, found = self.root, []
        targets = self._newest("targets", Targets)
        delegated = targets.signed.delegations
        is_hubs = delegated is not None and set(delegated.keys) <= set(root.roles["timestamp"].keyids)
        if not _is_signed(root, targets) or not is_hubs:
            found.append("release")
        timestamp = Metadata[Timestamp].from_bytes((self.folder / CHANGING).read_bytes())
        if found or not root.get_verification_result("timestamp", timestamp.signed_bytes, timestamp.signatures):
            found.append("hub")
        return found

    def expiries(self) -> dict[str, str]:
        """Until when each role's newest file is good, in UTC."""
        timestamp = Metadata[Timestamp].from_bytes((self.folder / CHANGING).read_bytes()).signed
        newest: dict[str, Root | Snapshot | Targets | Timestamp] = {
            "root": self.root, "targets": self._newest("targets", Targets).signed,
            "rollouts": self._newest("rollouts", Targets).signed,
            "snapshot": self._newest("snapshot", Snapshot).signed, "timestamp": timestamp}
        return {role: f"{one.expires:%Y-%m-%dT%H:%M:%SZ}" for role, one in newest.items()}

    def files(self) -> Iterator[Path]:
        """All files that devices may ask for, those first that others name."""
        metadata = self.folder / METADATA
        yield from sorted(path for path in (self.folder / TARGETS).rglob("*") if path.is_file())
        yield from sorted(path for path in metadata.iterdir() if path.name != "timestamp.json" and path.is_file())
        yield metadata / "timestamp.json"

    def copy(self, folder: Path) -> None:
        """Copies what is not there yet, the timestamp last; `folder` then is a repository for devices."""
        for path in self.files():
            place = folder / path.relative_to(self.folder)
            if place.exists() and path.name != "timestamp.json" and place.stat().st_size == path.stat().st_size:
                continue
            with output_errors(place):
                place.parent.mkdir(parents=True, exist_ok=True)
            with staged_file(place, path.stat().st_size, replaces=True) as file, path.open("rb") as source:
                shutil.copyfileobj(source, file, CHUNK_BYTES)

    def _root(self, version: int) -> Root:
        return Metadata[Root].from_bytes(self._path("root", version).read_bytes()).signed

    def _publish_root(self, root: Metadata[Root]) -> None:
        result = root.signed.get_root_verification_result(None, root.signed_bytes, root.signatures)
        if not result:
            raise FleetError(f"{len(result.first.signed)} root keys signed, {result.first.threshold} must")
        self._write("root", root.to_bytes(JSONSerializer()))

    def _add(self, name: str, content: Path | bytes) -> TargetFile:
        """Puts a target's file into its place, whole or not at all."""
        sha256 = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else file_digest(content)
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        path = self.target_path(name, sha256)
        if not path.exists():
            with output_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            with staged_file(path, size) as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, file, CHUNK_BYTES)
        return TargetFile(size, {"sha256": sha256}, name)

    def _sign_rollouts(self, key: SigningKey, rollouts: RolloutList, until: datetime) -> None:
        target = self._add(offers.TARGET, rollouts_json(rollouts))
        made = Targets(self._version("rollouts") + 1, expires=until, targets={offers.TARGET: target})
        self._write("rollouts", self._signed(made, key))

    def _sign_snapshot(self, key: SigningKey, until: datetime) -> None:
        meta = {f"{role}.json": self._meta(role) for role in ("targets", "rollouts")}
        number = self._version("snapshot")
        last = self._newest("snapshot", Snapshot) if number else None
        if last is not None and last.signed.meta == meta and last.signed.expires >= until and (
                tuf_key(key.public).keyid in last.signatures):
            return
        self._write("snapshot", self._signed(Snapshot(number + 1, expires=until, meta=meta), key))

    def _meta(self, role: str) -> MetaFile:
        data = self._path(role, self._version(role)).read_bytes()
        return MetaFile(self._version(role), len(data), {"sha256": hashlib.sha256(data).hexdigest()})

    def _signed(self, signed: T, key: SigningKey) -> bytes:
        """The metadata with the key's signature; FleetError if that key may not sign them."""
        made = Metadata(signed)
        made.sign(FleetSigner(key))
        delegator: Root | Targets = self.root
        if signed.type == "targets" and isinstance(signed, Targets) and signed.delegations is None:
            delegator, role = self.targets, offers.ROLE
        else:
            role = signed.type
        try:
            delegator.verify_delegate(role, made.signed_bytes, made.signatures)
        except RepositoryError:
            raise FleetError(f"the key {tuf_key(key.public).keyid[:12]} may not sign {role}",
                             hint="brise fleet keys show lists the keys that may") from None
        return made.to_bytes(JSONSerializer())

    def _newest(self, role: str, kind: type[T]) -> Metadata[T]:
        path = self._path(role, self._version(role))
        try:
            found = Metadata[T].from_bytes(path.read_bytes())
        except (OSError, RepositoryError) as error:
            raise FleetError(f"{str(path)!r} cannot be read: {error}") from None
        if not isinstance(found.signed, kind):
            raise FleetError(f"{str(path)!r} is no {role}")
        return found

    def _version(self, role: str) -> int:
        """The newest version of a role's file; 0 without one."""
        return max((int(number) for path in (self.folder / METADATA).glob(f"*.{role}.json")
                    if (number := path.name.partition(".")[0]).isdigit()), default=0)

    def _path(self, role: str, version: int) -> Path:
        return self.folder / METADATA / f"{version}.{role}.json"

    def _write(self, role: str, data: bytes) -> None:
        _put(self._path(role, self._version(role) + 1), data)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with output_errors(self.folder):
            number = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(number, fcntl.LOCK_EX)
            yield
        finally:
            os.close(number)


def target_name(name: str, sha256: str) -> str:
    """The file of a target in a repository: its digest stands before its last name."""
    folder, _, last = name.rpartition("/")
    return f"{TARGETS}/{folder}/{sha256}.{last}" if folder else f"{TARGETS}/{sha256}.{last}"


def _is_signed(root: Root, found: Metadata[Targets]) -> bool:
    return bool(root.get_verification_result("targets", found.signed_bytes, found.signatures))


def _delegations(hub: bytes) -> Delegations:
    key = tuf_key(hub)
    return Delegations({key.keyid: key}, {offers.ROLE: DelegatedRole(offers.ROLE, [key.keyid], 1, True,
                                                                     paths=[f"{offers.ROLE}/*"])})


def _time(seconds: float) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(seconds))


def _put(path: Path, data: bytes, *, replaces: bool = False) -> None:
    with staged_file(path, len(data), replaces=replaces) as file:
        file.write(data)
