"""Repositories for tests: a fleet's keys, a small bundle, a clock that stands, and a source that can be made to lie."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from brise.fleet.bundle import Blob, Bundle, bundle_json
from brise.fleet.offers import OfferedRollout, RolloutList
from brise.fleet.refusals import SourceError
from brise.fleet.repository import PublicKeys, Repository
from brise.fleet.sources import FolderSource, Source
from brise.fleet.trust import TrustedRepository
from brise.traffic.seal import SigningKey
from tests.fleet.bundles import bundle

NOW = 1_800_000_000.0


def key(name: str) -> SigningKey:
    """A key that is the same in each run."""
    return SigningKey(hashlib.sha256(name.encode()).digest())


ROOTS = (key("root-1"), key("root-2"), key("root-3"))
RELEASE, HUB, STRANGER = key("release"), key("hub"), key("stranger")


@dataclass
class Clock:
    """A clock that a test sets."""

    at: float = NOW

    def __call__(self) -> float:
        return self.at


@dataclass
class Fleet:
    """A repository, and the source through which devices of the test see it."""

    folder: Path
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        keys = PublicKeys([one.public for one in ROOTS], 2, RELEASE.public, HUB.public)
        self.repository = Repository.create(self.folder / "repository", keys, ROOTS[:2], RELEASE, HUB, now=self.clock)
        self.root = self.repository.root_bytes

    @property
    def source(self) -> FolderSource:
        return FolderSource(self.repository.folder)

    def ship(self, version: int = 1, content: bytes = b"weights", *, is_running: bool = True) -> Bundle:
        """A bundle of one blob, signed, and offered to all devices."""
        sha256 = hashlib.sha256(content).hexdigest()
        made = bundle(version=version, adapter=(Blob("adapter/adapter_model.safetensors", sha256, len(content)),))
        self.repository.release({made.target: bundle_json(made), made.adapter[0].target: content}, RELEASE)
        offered = OfferedRollout(f"r{version}", made.digest, 1.0, "running", "salt", self.clock.at, self.clock.at + 1e6)
        before = self.repository.rollouts
        self.repository.sign_hub(HUB, rollouts=replace(before, rollouts=(*before.rollouts, offered))
                                 if is_running else RolloutList())
        return made

    def device(self, name: str = "device", source: Source | None = None) -> TrustedRepository:
        """A device that knows the first root only."""
        return TrustedRepository(source or self.source, self.folder / name, self.root, self.clock)


@dataclass
class Liar:
    """A source in front of another. `files` replaces some of its files; what is None is not there."""

    inner: Source
    files: dict[str, bytes | None | Callable[[], Iterator[bytes]]] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)

    def read(self, name: str, most: int, offset: int = 0) -> Iterator[bytes]:
        self.asked.append((name, offset))
        if name not in self.files:
            yield from self.inner.read(name, most, offset)
            return
        content = self.files[name]
        if callable(content):
            yield from content()
        elif content is None:
            raise SourceError(f"there is no {name}", is_missing=True)
        else:
            yield content[offset:]


def state_of(folder: Path) -> Mapping[str, bytes]:
    """All files below a folder, to see whether something changed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
