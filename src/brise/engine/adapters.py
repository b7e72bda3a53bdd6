"""The adapters of one engine: known by name, in slots of the backend's table as far as there is room, and lent.

A name is added once and stays known until it is removed. What is known lies in a slot (resident) or only on disk: when
slots or memory run out, the one that nobody has used for longest leaves its slot, and is read again when a request asks
for it. A request borrows its adapter from when it is prepared until its last answer has ended; what is lent keeps its
slot. Reading happens in the thread that asks; the table itself changes between two steps (`settle`).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from brise.engine.adapter_loading import AdapterInvalidError, AdapterReader, ReadAdapter, reading_bytes
from brise.engine.model import LoadedModel
from brise.errors import RequestError
from brise.files.digests import NAME

MAX_KNOWN = 256  # names, resident or not


class AdapterNotFoundError(RequestError):
    """No adapter has this name."""

    status = 404

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no adapter {name[:128]!r}", param="model", code="adapter_not_found")


class AdapterExistsError(RequestError):
    """The name is taken."""

    status = 409

    def __init__(self, name: str) -> None:
        super().__init__(f"the name {name!r} is taken", param="name", code="adapter_exists",
                         hint="remove the adapter first, or take another name")


class AdaptersBusyError(RequestError):
    """All slots, or the memory, are held by adapters that answer at the moment."""

    status = 429
    retry_after_s = 1

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} by adapters that are in use; try again when they have answered",
                         param="model", code="adapters_busy")


class AdapterTooLargeError(RequestError):
    """It does not fit into the memory for adapters, whatever else leaves it."""

    def __init__(self, needed: int, limit: int) -> None:
        super().__init__(f"loading the adapter takes {needed} bytes (its file, its numbers and what is made of them), "
                         f"adapters have {limit}", param="path", code="adapter_too_large",
                         hint="start with more --adapter-memory")


@dataclass(frozen=True)
class AdapterInfo:
    """What is known of an adapter."""

    name: str
    path: Path
    digest: str
    rank: int
    nbytes: int
    is_resident: bool
    users: int  # requests that go through it now


@dataclass(eq=False)
class _Known:
    name: str
    path: Path
    any_base: bool
    digest: bytes
    rank: int
    nbytes: int
    slot: int | None = None
    users: int = 0
    is_removed: bool = False


@dataclass(frozen=True)
class Lease:
    """A borrowed adapter: where it lies, and whose pages its tokens may share. Give it back once."""

    known: _Known
    slot: int
    digest: bytes


class Adapters:
    """Safe to use from several threads, but `settle`, which belongs to the one that runs steps."""

    def __init__(self, model: LoadedModel, num_slots: int, max_rank: int, limit: int | None) -> None:
        self.table = model.backend.adapters(model.config, model.weights, num_slots, max_rank)
        self._reader, self._limit = AdapterReader(model, self.table), limit
        self._lock = Lock()  # of everything below; held for moments
        self._loading = Lock()  # one is read at a time, so that memory is bounded
        self._known: dict[str, _Known] = {}
        self._resident: OrderedDict[int, _Known] = OrderedDict()  # by slot, used longest ago first
        self._free = list(range(num_slots - 1, -1, -1))
        self._changes: dict[int, Any | None] = {}  # what the table's slots become between the next steps

    def add(self, name: str, path: Path, *, any_base: bool = False) -> AdapterInfo:
        """Reads an adapter and makes its name known; a RequestError leaves everything as it was."""
        check_name(name)
        with self._loading:
            with self._lock:
                if name in self._known:
                    raise AdapterExistsError(name)
                if len(self._known) == MAX_KNOWN:
                    raise RequestError(f"{MAX_KNOWN} adapters are known already", param="name",
                                       code="too_many_adapters", hint="remove one first")
            path = path.absolute()
            read = self._read(path, any_base=any_base)
            known = _Known(name, path, any_base, read.digest, read.rank, read.nbytes)
            with self._lock:
                self._settle_in(known, read)
                self._known[name] = known
                return _info(known)

    def remove(self, name: str) -> AdapterInfo:
        """Forgets a name at once; its slot is free when the last request that goes through it has ended."""
        with self._lock:
            known = self._find(name)
            del self._known[name]
            known.is_removed = True
            info = _info(known)
            if known.users == 0:
                self._evict(known)
            return info

    def list(self) -> tuple[AdapterInfo, ...]:
        """All that are known, in the order in which they came."""
        with self._lock:
            return tuple(map(_info, self._known.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def acquire(self, name: str) -> Lease:
        """Borrows an adapter for a request; reads it from disk first if it has left its slot."""
        with self._lock:
            known = self._find(name)
            if known.slot is not None:
                return self._lend(known)
        with self._loading:
            with self._lock:
                known = self._find(name)
                if known.slot is not None:
                    return self._lend(known)
            read = self._read(known.path, any_base=known.any_base)
            if read.digest != known.digest:
                raise AdapterInvalidError(f"the adapter {name!r} has changed on disk since it was loaded",
                                          param="model", code="adapter_invalid", hint="remove it and load it again")
            with self._lock:
                if known.is_removed:
                    raise AdapterNotFoundError(name)
                self._settle_in(known, read)
                return self._lend(known)

    def release(self, lease: Lease) -> None:
        """Gives a borrowed adapter back."""
        with self._lock:
            known = lease.known
            known.users -= 1
            if known.users == 0 and known.is_removed:
                self._evict(known)
            elif known.slot is not None:
                self._resident.move_to_end(known.slot)

    @property
    def has_changes(self) -> bool:
        """Whether `settle` would do anything."""
        return bool(self._changes)

    def settle(self) -> None:
        """Brings the table to where the books are; between two steps, in the thread that runs them."""
        with self._lock:
            changes, self._changes = self._changes, {}
        for slot, prepared in changes.items():
            self.table.put(slot, prepared)

    @property
    def num_resident(self) -> int:
        return len(self._resident)

    @property
    def nbytes(self) -> int:
        """Memory of those in slots."""
        with self._lock:
            return self._nbytes()

    def check(self) -> None:
        """Asserts that the books agree; for tests."""
        with self._lock:
            assert sorted([*self._free, *self._resident]) == list(range(self.table.num_slots)), "a slot is lost"
            assert all(known.slot == slot for slot, known in self._resident.items()), "a slot has two owners"
            assert all(not known.is_removed or known.users for known in self._resident.values()), "a slot is not freed"
            assert all(known.slot is None or known.slot in self._resident for known in self._known.values())
            assert all(known.users >= 0 for known in self._resident.values()), "given back twice"
            assert self._limit is None or self._nbytes() <= self._limit, "more memory than allowed"

    def _find(self, name: str) -> _Known:
        known = self._known.get(name)
        if known is None:
            raise AdapterNotFoundError(name)
        return known

    def _lend(self, known: _Known) -> Lease:
        assert known.slot is not None
        known.users += 1
        self._resident.move_to_end(known.slot)
        return Lease(known, known.slot, known.digest)

    def _read(self, path: Path, *, any_base: bool) -> ReadAdapter:
        """Makes room for what reading takes before it reads."""
        if self._limit is not None:
            needed = reading_bytes(path)
            with self._lock:
                self._make_room(needed)
        return self._reader.read(path, any_base=any_base)

    def _settle_in(self, known: _Known, read: ReadAdapter) -> None:
        """A slot for an adapter that was read; the lock is held."""
        self._make_room(read.nbytes)
        if not self._free:
            idle = self._idle()
            if idle is None:
                raise AdaptersBusyError(f"all {self.table.num_slots} slots are held")
            self._evict(idle)
        slot = self._free.pop()
        known.slot = slot
        self._resident[slot] = known
        self._changes[slot] = read.prepared

    def _make_room(self, nbytes: int) -> None:
        """Idle ones leave their slots until so much of the memory for adapters is free."""
        if self._limit is None:
            return
        if nbytes > self._limit:
            raise AdapterTooLargeError(nbytes, self._limit)
        held = sum(known.nbytes for known in self._resident.values() if known.users)
        if held + nbytes > self._limit:
            raise AdaptersBusyError(f"{held} of the {self._limit} bytes for adapters are held")
        while self._nbytes() + nbytes > self._limit:
            idle = self._idle()
            assert idle is not None, "what is left is held, and that fits"
            self._evict(idle)

    def _nbytes(self) -> int:
        return sum(known.nbytes for known in self._resident.values())

    def _idle(self) -> _Known | None:
        return next((known for known in self._resident.values() if known.users == 0), None)

    def _evict(self, known: _Known) -> None:
        if known.slot is None:
            return
        del self._resident[known.slot]
        self._free.append(known.slot)
        self._changes[known.slot] = None
        known.slot = None


def check_name(name: str) -> None:
    """RequestError unless requests can name an adapter so; the same rule as for models in the store."""
    if NAME.fullmatch(name) is None:
        raise RequestError(f"the name {name[:128]!r} is not allowed; names have 1 to 100 letters, digits, '.', '_', "
                           "'-', and begin with a letter or digit", param="name")


def _info(known: _Known) -> AdapterInfo:
    return AdapterInfo(known.name, known.path, known.digest.hex(), known.rank, known.nbytes, known.slot is not None,
                       known.users)
