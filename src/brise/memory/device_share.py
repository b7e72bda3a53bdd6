"""A serving plan's share of a device: what its limit bounds, what lies on the host besides, and what is free now.

On a card with memory of its own the limit bounds that memory; on one that shares the host's, it bounds both. A second
limit, of a model that is split between the card and the CPU, bounds the host's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from brise.models.ops import DeviceMemory, Planner, Room


@dataclass(frozen=True)
class HostTerm:
    """Bytes on the host that the limit of a device does not bound, with what they are for."""

    name: str
    nbytes: int


@dataclass(frozen=True)
class DeviceShare:
    """The device of a plan. `fixed` and `page` are what lies on it: whatever the cache, and for each page of it."""

    memory: DeviceMemory
    free: Room
    num_layers: int
    num_on_device: int  # of the layers, the last ones
    fixed: int
    page: int
    host: tuple[HostTerm, ...]  # without what every page takes; empty where memory is shared
    host_cache_page: int  # keys and values of the layers on the CPU
    host_page: int  # requests
    host_loading: int  # what loading takes for a moment in place of what runs later
    host_later: int  # of the process: what is allocated only after the model has been loaded
    host_limit: int | None = None  # None: the host's memory has no limit

    @property
    def has_own_memory(self) -> bool:
        return not self.memory.is_shared

    @property
    def is_split(self) -> bool:
        """Whether layers lie on the CPU."""
        return self.num_on_device < self.num_layers

    @property
    def label(self) -> str:
        return self.memory.label

    def device_bytes(self, num_pages: int) -> int:
        """Bytes on the device."""
        return self.fixed + num_pages * self.page

    def host_terms(self, num_pages: int) -> Sequence[HostTerm]:
        """Bytes on the host that the first limit does not bound, the largest first."""
        pages = {"requests": self.host_page * num_pages, "cache": self.host_cache_page * num_pages}
        terms = [HostTerm(term.name, term.nbytes + pages.pop(term.name, 0)) for term in self.host]
        terms += [HostTerm("cache", pages["cache"])] if self.host else []
        return sorted((term for term in terms if term.nbytes), key=lambda term: -term.nbytes)

    def host_bytes(self, num_pages: int) -> int:
        """The sum of `host_terms`: the second total of a plan."""
        running = sum(term.nbytes for term in self.host_terms(num_pages))
        return max(running, self._kept("process", "staging", "weights", "adapters") + self.host_loading)

    def host_running(self, num_pages: int) -> int:
        """Bytes on the host that come after loading."""
        return (sum(term.nbytes for term in self.host_terms(num_pages)) - self._kept("process", "staging", "weights")
                + self.host_later)

    def pages_on_host(self, most: int) -> int:
        """How many pages of the cache the second limit leaves room for, of at most `most`."""
        if self.host_limit is None:
            return most
        rest = self.host_limit - sum(term.nbytes for term in self.host)
        page = self.host_page + self.host_cache_page
        fitting = 0 if rest < 0 or self.host_bytes(0) > self.host_limit else rest // page if page else most
        return min(most, fitting)

    def lacks_on_host(self, num_pages: int) -> int:
        """Bytes over the second limit."""
        return 0 if self.host_limit is None else max(self.host_bytes(num_pages) - self.host_limit, 0)

    def lacking(self, promised: int, num_pages: int) -> tuple[int, int]:
        """Bytes that were promised and bytes that are free, where less is free; two zeros otherwise."""
        pairs = [(self.device_bytes(num_pages), self.free.device)]
        pairs.insert(0, (promised, self.free.host if self.memory.is_shared else self.free.device))
        return next(((needed, free) for needed, free in pairs if needed > free), (0, 0))

    def _kept(self, *names: str) -> int:
        return sum(term.nbytes for term in self.host if term.name in names)


class MemorySplit:
    """Divides the terms of a plan between what its limit bounds and what it does not, and adds up both."""

    def __init__(self, backend: Planner) -> None:
        self._backend, self._memory = backend, backend.device
        self._fixed = 0
        self._host: dict[str, int] = {}

    def bounded(self, room: Room) -> int:
        """The bytes of a room that the limit bounds."""
        return room.device + (0 if self._is_apart else room.host)

    def on_host(self, room: Room) -> int:
        """The bytes of a room that lie in the host's memory."""
        return room.host + (0 if self._is_apart else room.device)

    def term(self, name: str, room: Room) -> int:
        """The bounded bytes of a term; the others are kept under its name."""
        self._fixed += room.device
        if self._is_apart:
            self._host[name] = self._host.get(name, 0) + room.host
        return self.bounded(room)

    def share(self, num_layers: int, page: Room, host_page: int, *, loading: int, later: int,
              host_limit: int | None) -> DeviceShare | None:
        """What lies where, for the plan of a device; None without one."""
        if self._memory is None:
            return None
        host = tuple(HostTerm(name, nbytes) for name, nbytes in self._host.items())
        on_host = (page.host, host_page, loading, later) if self._is_apart else (0, 0, 0, 0)
        split = self._backend.split
        return DeviceShare(self._memory, self._backend.available(), num_layers,
                           num_layers if split is None else split.num_on_device, self._fixed, page.device, host,
                           *on_host, host_limit)

    @property
    def _is_apart(self) -> bool:
        return self._memory is not None and not self._memory.is_shared
