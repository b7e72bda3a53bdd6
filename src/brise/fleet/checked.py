"""What a repository holds, and whether it verifies, as a device would see it: `brise ship --check`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brise import settings
from brise.errors import FleetError
from brise.fleet.bundle import Bundle
from brise.fleet.offers import OfferedRollout
from brise.fleet.registry import open_source
from brise.fleet.repository import Repository
from brise.fleet.sources import METADATA, HttpSource, Source, trusted
from brise.fleet.strict_json import as_json
from brise.fleet.trust import TrustedRepository, check_root

MOST_ROOT_BYTES = 256 << 10


@dataclass(frozen=True)
class CheckOptions:
    """`place` is a folder, http(s):// or oci://...; None: this machine's repository. `root` is a file with a root that
    is trusted; None: that of this machine's repository, else the place's own first one. `login` is for a registry, and
    `authority` a PEM file with the certificate that signed the place's."""

    place: str | None = None
    root: Path | None = None
    login: str | None = None
    authority: Path | None = None


@dataclass(frozen=True)
class CheckedBundle:
    """A bundle of a repository; `problem` says what does not verify."""

    bundle: Bundle
    problem: str | None = None


@dataclass(frozen=True)
class CheckedRepository:
    """All that a device could get. `is_own_root`: the root came from the place itself and vouches for nothing."""

    place: str
    root_digest: str
    is_own_root: bool
    signed_s: float
    bundles: tuple[CheckedBundle, ...]
    rollouts: tuple[OfferedRollout, ...]
    problems: tuple[str, ...] = ()

    @property
    def is_sound(self) -> bool:
        return not self.problems and all(one.problem is None for one in self.bundles)

    def as_json(self) -> dict[str, Any]:
        """Everything, as `brise ship --check --json` prints it."""
        return {"place": self.place, "root": self.root_digest, "own_root": self.is_own_root, "signed_s": self.signed_s,
                "sound": self.is_sound, "problems": list(self.problems), "bundles": [{
                    "digest": one.bundle.digest, "bytes": one.bundle.nbytes, "problem": one.problem,
                    "manifest": as_json(one.bundle)} for one in self.bundles],
                "rollouts": [{"rollout": one.rollout, "bundle": one.bundle, "share": one.share, "state": one.state}
                             for one in self.rollouts]}


def check(options: CheckOptions, now: Callable[[], float] = time.time) -> CheckedRepository:
    """Verifies metadata, manifests and every byte of every blob. SourceError or UntrustedError if not even the metadata
    hold."""
    own = settings.read().home / "fleet" / "repository"
    place = options.place or str(own)
    source = open_source(place, options.login, trusted(options.authority))
    try:
        return _check(options, place, source, own, now)
    finally:
        if isinstance(source, HttpSource):
            source.close()


def _check(options: CheckOptions, place: str, source: Source, own: Path, now: Callable[[], float]) -> CheckedRepository:
    root, is_own = _root(options, source, own)
    with tempfile.TemporaryDirectory(prefix="brise-check-") as folder:
        trusted = TrustedRepository(source, Path(folder), root, now)
        offer = trusted.refresh()
        bundles, problems = list[CheckedBundle](), list[str]()
        for digest, name in sorted(offer.bundles.items(), key=lambda item: item[1]):
            try:
                bundles.append(_checked(trusted, trusted.bundle(digest)))
            except FleetError as error:
                problems.append(f"{name}: {error.args[0]}")
        return CheckedRepository(place, check_root(root), is_own, offer.metadata_time_s, tuple(bundles), offer.rollouts,
                                 tuple(problems))


def _checked(trusted: TrustedRepository, bundle: Bundle) -> CheckedBundle:
    try:
        for blob in bundle.blobs:
            trusted.verify(blob.target)
    except FleetError as error:
        return CheckedBundle(bundle, str(error.args[0]))
    return CheckedBundle(bundle)


def _root(options: CheckOptions, source: Source, own: Path) -> tuple[bytes, bool]:
    if options.root is not None:
        try:
            return options.root.read_bytes()[:MOST_ROOT_BYTES], False
        except OSError as error:
            raise FleetError(f"cannot read the root {str(options.root)!r}: {error.strerror}") from None
    if (own / METADATA).is_dir():
        return Repository(own).root_bytes, False
    return b"".join(source.read(f"{METADATA}/1.root.json", MOST_ROOT_BYTES)), True
