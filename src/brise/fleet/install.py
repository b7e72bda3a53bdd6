"""What is installed on a device: two folders, one file that says which of them answers, and a counter of starts.

    state.json     the whole state: replaced by one rename, synced
    a/, b/         a bundle each: manifest.json and its files; they appear by one rename, and never change
    fetching/      the files of the next bundle, until all of them are there and checked
    starts.json    how often the bundle that is to answer was started since it was ready last
    checked.json   large files whose digests were checked, by size and time of change

A kill between any two writes leaves the state before or the one after; what is left over is removed at the next start.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from brise.errors import FleetError
from brise.files.atomic import output_errors, private_folder, staged_file, sync
from brise.files.digests import file_digest
from brise.fleet.bundle import Blob, Bundle, bundle_json, read_bundle
from brise.fleet.install_state import (
    BACK,
    COMMITTED,
    FETCHED,
    SLOTS,
    STAGED,
    VERIFIED,
    EndedAttempt,
    InstalledBundle,
    InstallState,
    StateReport,
    UpdateAttempt,
)
from brise.fleet.offers import OfferedRollout
from brise.fleet.refusals import WrongDigestError
from brise.fleet.strict_json import canonical, read
from brise.traffic.records import new_id

MANIFEST = "manifest.json"
MOST_STARTS = 3
MOST_ENDED, MOST_REPORTS = 100, 1000  # kept: of attempts that ended, and of reports that are not in the outbox yet
MOST_BYTES = 1 << 20
T = TypeVar("T")
LARGE_BYTES = 32 << 20  # from this size on a file that has not changed is not read again at each start


@dataclass(frozen=True)
class StartCount:
    """Starts of a bundle since it was ready last."""

    bundle: str = ""
    count: int = 0


@dataclass(frozen=True)
class _Checked:
    files: Mapping[str, str] = field(default_factory=dict)


class Installation:
    """The folder of a device. Its methods may be called from any thread; each change is on the disk when it returns."""

    def __init__(self, folder: Path, now: Callable[[], float]) -> None:
        self.folder, self._now, self._lock = folder, now, threading.RLock()
        private_folder(folder)
        self._state = _read(InstallState, folder / "state.json", InstallState())
        self._starts = _read(StartCount, folder / "starts.json", StartCount())
        self._checked = dict(_read(_Checked, folder / "checked.json", _Checked()).files)
        self._remove_left()

    @property
    def state(self) -> InstallState:
        return self._state

    @property
    def fetching(self) -> Path:
        """Where the files of the next bundle are fetched to, at their paths."""
        return self.folder / "fetching"

    def place(self, installed: InstalledBundle) -> Path:
        """The bundle's folder."""
        return self.folder / installed.slot

    def read(self, installed: InstalledBundle) -> Bundle:
        """The manifest; WrongDigestError if it is not the one that was installed."""
        try:
            data = (self.place(installed) / MANIFEST).read_bytes()
        except OSError as error:
            raise WrongDigestError(f"the manifest of {installed.name} {installed.version} cannot be read: "
                                   f"{error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != installed.bundle:
            raise WrongDigestError(f"the manifest of {installed.name} {installed.version} is not the one that was "
                                   "installed")
        return read_bundle(data)

    def check(self, installed: InstalledBundle) -> Bundle:
        """The manifest, after every file of the bundle has the digest that was signed; WrongDigestError names one that
        has not. A large file is read again only if it changed."""
        bundle, place = self.read(installed), self.place(installed)
        for blob in bundle.blobs:
            self._check_file(place / blob.path, blob)
        return bundle

    def find_blob(self, sha256: str) -> Path | None:
        """A file with this digest in one of the bundles here, for a peer or for the next bundle."""
        for installed in self._installed():
            try:
                bundle = self.read(installed)
            except FleetError:
                continue
            for blob in bundle.blobs:
                if blob.sha256 == sha256:
                    return self.place(installed) / blob.path
        return None

    # An update, step by step.

    def prepare(self, bundle: Bundle) -> None:
        """Makes `fetching` ready for the files of this bundle: what is not of it goes, and files that are here already,
        such as the base model, are linked into it."""
        with output_errors(self.fetching):
            paths = {self.fetching / blob.path for blob in bundle.blobs}
            for path in self.fetching.rglob("*") if self.fetching.exists() else ():
                if not path.is_dir() and path not in paths:
                    path.unlink()
            for blob in bundle.blobs:
                path, found = self.fetching / blob.path, self.find_blob(blob.sha256)
                path.parent.mkdir(parents=True, exist_ok=True)
                if found is not None and not path.exists():
                    with suppress(OSError):  # a file system without links: it is fetched
                        os.link(found, path)

    def fetched(self, bundle: Bundle, rollout: OfferedRollout) -> None:
        """All files are in `fetching`. The folder that does not answer is free from now on."""
        with self._lock:
            assert self._state.attempt is None, "one update at a time"
            current = self._state.current
            slot = SLOTS[0] if current is None or current.slot == SLOTS[1] else SLOTS[1]
            installed = InstalledBundle(slot, bundle.digest, bundle.name, bundle.version, rollout.rollout)
            self._write(replace(self._reported(installed, FETCHED), previous=None,
                                attempt=UpdateAttempt(installed, FETCHED, self._now(), rollout.trial)))

    def stage(self, bundle: Bundle) -> None:
        """Checks every file, and gives their folder its name by one rename."""
        with self._lock:
            attempt = self._attempt()
            for blob in bundle.blobs:
                self._check_file(self.fetching / blob.path, blob)
            self.advance(VERIFIED)
            place = self.place(attempt.bundle)
            with output_errors(place):
                self._discard(place)
                _complete(self.fetching, bundle_json(bundle))
                os.rename(self.fetching, place)
                sync(self.folder)
            self.advance(STAGED)

    def advance(self, state: str) -> None:
        """The update is one step further."""
        with self._lock:
            attempt = self._attempt()
            self._write(replace(self._reported(attempt.bundle, state),
                                attempt=replace(attempt, state=state, since_s=self._now())))

    def tried(self, requests: int) -> None:
        """So many requests were answered in the trial."""
        with self._lock:
            attempt = self._attempt()
            if requests != attempt.requests:
                self._write(replace(self._state, attempt=replace(attempt, requests=requests)))

    def commit(self) -> None:
        """The bundle on trial answers from now on; the one before stays in its folder until the next update."""
        with self._lock:
            attempt = self._attempt()
            self._write(replace(self._reported(attempt.bundle, COMMITTED), current=attempt.bundle,
                                previous=self._state.current, attempt=None))

    def give_up(self, reason: str, state: str = BACK) -> None:
        """The update under way ends; what was committed before it answers. Needs no network."""
        with self._lock:
            attempt = self._attempt()
            self._write(self._ended(replace(self._reported(attempt.bundle, state, reason), attempt=None),
                                    attempt.bundle, reason))

    def go_back(self, reason: str) -> bool:
        """The bundle before the committed one answers; False if it is not here any more."""
        with self._lock:
            current, previous = self._state.current, self._state.previous
            if current is None or previous is None or not self.place(previous).is_dir():
                return False
            attempt = self._state.attempt
            if attempt is not None:
                self.give_up(reason)
            self._write(self._ended(replace(self._reported(current, BACK, reason), current=previous, previous=None),
                                    current, reason))
            return True

    # Starts.

    def count_start(self, installed: InstalledBundle) -> int:
        """Counts a start before it is made; returns how many there are since the bundle was ready."""
        with self._lock:
            count = 1 + self.num_starts(installed)
            self._starts = StartCount(installed.bundle, count)
            _replace(self.folder / "starts.json", self._starts)
            return count

    def num_starts(self, installed: InstalledBundle) -> int:
        """Starts of this bundle since it was ready."""
        return self._starts.count if self._starts.bundle == installed.bundle else 0

    def is_ready(self, installed: InstalledBundle) -> None:
        """The bundle was started and is ready."""
        with self._lock:
            if self.num_starts(installed):
                self._starts = StartCount(installed.bundle, 0)
                _replace(self.folder / "starts.json", self._starts)

    # What the hub is to know.

    def take_reports(self, keep: Callable[[StateReport], None]) -> None:
        """Hands each report to `keep`, in order, and forgets it after that: after a kill one may come twice."""
        for report in self._state.reports:
            keep(report)
            with self._lock:
                self._write(replace(self._state, reports=tuple(
                    one for one in self._state.reports if one.event != report.event)))

    def set_forgotten(self, number: int, flagged: tuple[str, ...]) -> None:
        """The list of destroyed keys with this number was acted on."""
        with self._lock:
            self._write(replace(self._state, forgotten=number,
                                flagged=tuple(dict.fromkeys((*self._state.flagged, *flagged)))))

    def _installed(self) -> list[InstalledBundle]:
        state = self._state
        attempt = None if state.attempt is None or state.attempt.state in (FETCHED, VERIFIED) else state.attempt.bundle
        return [one for one in (state.current, attempt, state.previous) if one is not None]

    def _attempt(self) -> UpdateAttempt:
        assert self._state.attempt is not None, "an update is under way"
        return self._state.attempt

    def _reported(self, installed: InstalledBundle, state: str, reason: str = "") -> InstallState:
        now_s = self._now()
        report = StateReport(new_id(now_s), now_s, installed.rollout, installed.bundle, state, reason[:1000])
        return replace(self._state, reports=(*self._state.reports, report)[-MOST_REPORTS:])

    @staticmethod
    def _ended(state: InstallState, installed: InstalledBundle, reason: str) -> InstallState:
        ended = EndedAttempt(installed.rollout, installed.bundle, reason[:1000])
        return replace(state, ended=(*state.ended, ended)[-MOST_ENDED:])

    def _write(self, state: InstallState) -> None:
        _replace(self.folder / "state.json", state)
        self._state = state

    def _check_file(self, path: Path, blob: Blob) -> None:
        try:
            about = os.lstat(path)
            stamp = f"{blob.sha256} {about.st_size} {about.st_mtime_ns} {about.st_ino}"
            if not path.is_file() or path.is_symlink() or about.st_size != blob.nbytes:
                raise WrongDigestError(f"{blob.path!r} is not the file of {blob.nbytes} bytes that was signed")
            if about.st_size >= LARGE_BYTES and self._checked.get(blob.sha256) == stamp:
                return
            is_same = file_digest(path) == blob.sha256
        except OSError as error:
            raise WrongDigestError(f"{blob.path!r} cannot be read: {error.strerror}") from None
        if not is_same:
            raise WrongDigestError(f"{blob.path!r} has not the digest that was signed")
        if about.st_size >= LARGE_BYTES:
            self._checked[blob.sha256] = stamp
            _replace(self.folder / "checked.json", _Checked(self._checked))

    def _discard(self, place: Path) -> None:
        """Removes a bundle's folder: first its name, so that no half of it is ever called so."""
        if place.exists():
            old = place.with_name(f".{place.name}.{secrets.token_hex(8)}.old")
            os.rename(place, old)
            shutil.rmtree(old)

    def _remove_left(self) -> None:
        """What a kill left: an update that had its folder goes on, one that had none begins anew, and folders that
        nothing names are removed."""
        attempt = self._state.attempt
        if attempt is not None and attempt.state in (FETCHED, VERIFIED):
            if attempt.state == VERIFIED and self._is_staged(attempt.bundle):
                self.advance(STAGED)
            else:
                self._write(replace(self._state, attempt=None))
        named = {one.slot for one in self._installed()}
        for path in self.folder.iterdir():
            if path.name in SLOTS and path.name not in named:
                self._discard(path)
            elif path.suffix == ".old":
                shutil.rmtree(path)

    def _is_staged(self, installed: InstalledBundle) -> bool:
        try:
            self.check(installed)
        except FleetError:
            return False
        return True


def _complete(folder: Path, manifest: bytes) -> None:
    """Writes the manifest, and brings all of the folder to the disk."""
    with (folder / MANIFEST).open("wb") as file:
        file.write(manifest)
    for path in (*folder.rglob("*"), folder):
        sync(path)


def _read(kind: type[T], path: Path, default: T) -> T:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return default
    return read(kind, data, path.name, MOST_BYTES)


def _replace(path: Path, record: object) -> None:
    data = canonical(record)
    with staged_file(path, len(data), mode=0o600, replaces=True) as file:
        file.write(data)
