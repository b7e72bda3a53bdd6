"""The adapters of an engine: registered by name, cached in the slots of the backend's table, and leased to requests.

A name is added once and stays until it is removed. Its adapter is resident in a slot, or only on disk: when slots or
memory run out, the least recently used one leaves its slot, and is read again when a request names it. A request leases
its adapter from the time it is prepared until its last answer has ended; a leased adapter keeps its slot. Reading
happens in the caller's thread; the table itself changes between two steps (`apply_changes`).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from brise.data.ngrams import FILE as NGRAMS_FILE
from brise.engine.adapter_loading import AdapterInvalidError, AdapterReader, ReadAdapter, reading_bytes
from brise.engine.drafts import DraftTables
from brise.engine.model import LoadedModel
from brise.errors import RequestError
from brise.files.digests import NAME
from brise.text.action_space import Actions

MAX_ADAPTERS = 256  # names, resident or not


class AdapterNotFoundError(RequestError):
    """No adapter has the requested name."""

    status = 404

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no adapter {name[:128]!r}", param="model", code="adapter_not_found")


class AdapterExistsError(RequestError):
    """The name belongs to another adapter."""

    status = 409

    def __init__(self, name: str) -> None:
        super().__init__(f"the name {name!r} is taken", param="name", code="adapter_exists",
                         hint="remove the adapter first, or choose another name")


class AdaptersBusyError(RequestError):
    """All slots, or all memory for adapters, are held by adapters in use."""

    status = 429
    retry_after_s = 1

    def __init__(self, resource: str) -> None:
        super().__init__(f"{resource} by adapters that are in use; try again when they have answered",
                         param="model", code="adapters_busy")


class AdapterTooLargeError(RequestError):
    """The adapter does not fit into the memory for adapters, even if it is alone there."""

    def __init__(self, needed: int, limit: int) -> None:
        super().__init__(f"loading the adapter takes {needed} bytes (its file, its numbers and what is made of them), "
                         f"adapters have {limit}", param="path", code="adapter_too_large",
                         hint="start with more --adapter-memory")


@dataclass(frozen=True)
class AdapterInfo:
    """An adapter as callers see it."""

    name: str
    path: Path
    digest: str
    rank: int
    nbytes: int
    is_resident: bool
    users: int  # requests that use it now
    drafts: str = ""  # what became of the table of n-grams in its folder, if there is one
    actions: Actions | None = None  # that it was trained on, if it moves a robot


@dataclass(eq=False)
class _Entry:
    name: str
    path: Path
    any_base: bool
    digest: bytes
    rank: int
    nbytes: int
    actions: Actions | None
    slot: int | None = None
    users: int = 0
    is_removed: bool = False
    drafts: str = ""


@dataclass(frozen=True)
class Lease:
    """A request's hold on an adapter: its slot, and the digest that keys its cache pages. Released once."""

    entry: _Entry
    slot: int
    digest: bytes


class Adapters:
    """Safe to use from several threads, except `apply_changes`, which is for the thread that runs steps."""

    def __init__(self, model: LoadedModel, num_slots: int, max_rank: int, limit: int | None,
                 draft_tables: DraftTables | None = None) -> None:
        self.table = model.backend.adapters(model.config, model.weights, num_slots, max_rank)
        self._reader, self._limit, self._draft_tables = AdapterReader(model, self.table), limit, draft_tables
        self._lock = Lock()  # guards everything below; held briefly
        self._loading = Lock()  # one adapter is read at a time, so that memory is bounded
        self._entries: dict[str, _Entry] = {}
        self._resident: OrderedDict[int, _Entry] = OrderedDict()  # by slot, least recently used first
        self._free = list(range(num_slots - 1, -1, -1))
        self._changes: dict[int, Any | None] = {}  # what the table's slots become before the next step

    def add(self, name: str, path: Path, *, any_base: bool = False) -> AdapterInfo:
        """Reads an adapter and registers its name; a RequestError leaves everything as it was."""
        check_name(name)
        with self._loading:
            with self._lock:
                if name in self._entries:
                    raise AdapterExistsError(name)
                if len(self._entries) == MAX_ADAPTERS:
                    raise RequestError(f"{MAX_ADAPTERS} adapters are registered already", param="name",
                                       code="too_many_adapters", hint="remove one first")
            path = path.absolute()
            read = self._read(path, any_base=any_base)
            entry = _Entry(name, path, any_base, read.digest, read.rank, read.nbytes, read.actions)
            with self._lock:
                self._put_in_slot(entry, read)
            if self._draft_tables is not None:
                entry.drafts = self._draft_tables.put(name, path / NGRAMS_FILE)
            with self._lock:
                self._entries[name] = entry
                return _info(entry)

    def remove(self, name: str) -> AdapterInfo:
        """Removes a name at once; its slot is freed when the last request that uses it has ended."""
        with self._lock:
            entry = self._find(name)
            del self._entries[name]
            entry.is_removed = True
            if self._draft_tables is not None:
                self._draft_tables.remove(name)
            info = _info(entry)
            if entry.users == 0:
                self._evict(entry)
            return info

    def list(self) -> tuple[AdapterInfo, ...]:
        """All adapters, in the order in which they were added."""
        with self._lock:
            return tuple(map(_info, self._entries.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def acquire(self, name: str) -> Lease:
        """Leases an adapter to a request; reads it from disk first if it is not resident."""
        with self._lock:
            entry = self._find(name)
            if entry.slot is not None:
                return self._lend(entry)
        with self._loading:
            with self._lock:
                entry = self._find(name)
                if entry.slot is not None:
                    return self._lend(entry)
            read = self._read(entry.path, any_base=entry.any_base)
            if read.digest != entry.digest:
                raise AdapterInvalidError(f"the adapter {name!r} has changed on disk since it was loaded",
                                          param="model", code="adapter_invalid", hint="remove it and load it again")
            with self._lock:
                if entry.is_removed:
                    raise AdapterNotFoundError(name)
                self._put_in_slot(entry, read)
                return self._lend(entry)

    def release(self, lease: Lease) -> None:
        """Ends a lease."""
        with self._lock:
            entry = lease.entry
            entry.users -= 1
            if entry.users == 0 and entry.is_removed:
                self._evict(entry)
            elif entry.slot is not None:
                self._resident.move_to_end(entry.slot)

    @property
    def has_changes(self) -> bool:
        """Whether `apply_changes` would do anything."""
        return bool(self._changes)

    def apply_changes(self) -> None:
        """Fills and empties slots of the table as recorded here. Between two steps, in the thread that runs them."""
        with self._lock:
            changes, self._changes = self._changes, {}
        for slot, prepared in changes.items():
            self.table.put(slot, prepared)

    @property
    def num_resident(self) -> int:
        return len(self._resident)

    @property
    def nbytes(self) -> int:
        """Memory of the resident adapters."""
        with self._lock:
            return self._nbytes()

    def check(self) -> None:
        """Asserts that slots and entries agree; for tests."""
        with self._lock:
            assert sorted([*self._free, *self._resident]) == list(range(self.table.num_slots)), "a slot is lost"
            assert all(entry.slot == slot for slot, entry in self._resident.items()), "a slot has two owners"
            assert all(not entry.is_removed or entry.users for entry in self._resident.values()), "a slot is not freed"
            assert all(entry.slot is None or entry.slot in self._resident for entry in self._entries.values())
            assert all(entry.users >= 0 for entry in self._resident.values()), "released twice"
            assert self._limit is None or self._nbytes() <= self._limit, "more memory than allowed"

    def _find(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise AdapterNotFoundError(name)
        return entry

    def _lend(self, entry: _Entry) -> Lease:
        assert entry.slot is not None
        entry.users += 1
        self._resident.move_to_end(entry.slot)
        return Lease(entry, entry.slot, entry.digest)

    def _read(self, path: Path, *, any_base: bool) -> ReadAdapter:
        """Reads an adapter, after making room for the memory that reading takes."""
        if self._limit is not None:
            needed = reading_bytes(path)
            with self._lock:
                self._make_room(needed)
        return self._reader.read(path, any_base=any_base)

    def _put_in_slot(self, entry: _Entry, read: ReadAdapter) -> None:
        """Gives an adapter that was read a slot; the lock is held."""
        self._make_room(read.nbytes)
        if not self._free:
            idle = self._least_recently_used()
            if idle is None:
                raise AdaptersBusyError(f"all {self.table.num_slots} slots are held")
            self._evict(idle)
        slot = self._free.pop()
        entry.slot = slot
        self._resident[slot] = entry
        self._changes[slot] = read.prepared

    def _make_room(self, nbytes: int) -> None:
        """Evicts idle adapters until `nbytes` of the memory for adapters are free."""
        if self._limit is None:
            return
        if nbytes > self._limit:
            raise AdapterTooLargeError(nbytes, self._limit)
        held = sum(entry.nbytes for entry in self._resident.values() if entry.users)
        if held + nbytes > self._limit:
            raise AdaptersBusyError(f"{held} of the {self._limit} bytes for adapters are held")
        while self._nbytes() + nbytes > self._limit:
            idle = self._least_recently_used()
            assert idle is not None, "only adapters in use are left, and they fit"
            self._evict(idle)

    def _nbytes(self) -> int:
        return sum(entry.nbytes for entry in self._resident.values())

    def _least_recently_used(self) -> _Entry | None:
        return next((entry for entry in self._resident.values() if entry.users == 0), None)

    def _evict(self, entry: _Entry) -> None:
        if entry.slot is None:
            return
        del self._resident[entry.slot]
        self._free.append(entry.slot)
        self._changes[entry.slot] = None
        entry.slot = None


def check_name(name: str) -> None:
    """RequestError unless this may be the name of an adapter; the rule is that for models in the store."""
    if NAME.fullmatch(name) is None:
        raise RequestError(f"the name {name[:128]!r} is not allowed; names have 1 to 100 letters, digits, '.', '_', "
                           "'-', and begin with a letter or digit", param="name")


def _info(entry: _Entry) -> AdapterInfo:
    return AdapterInfo(entry.name, entry.path, entry.digest.hex(), entry.rank, entry.nbytes, entry.slot is not None,
                       entry.users, entry.drafts, entry.actions)
