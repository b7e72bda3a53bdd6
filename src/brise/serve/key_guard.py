"""KeyGuard knows the virtual keys of a store, and lets their requests begin within their limits.

No request waits for the disk as a rule. A thread reserves in the store for the next second of a busy key's requests,
and writes down twice a second what requests have cost; reservations that lie idle go back. A request waits for the
store only where nothing is reserved ahead: for the first request of a minute, and where little of a limit is left.

    caller      who sends a request: looked up in memory; the keys are read again every second
    reserve     the request may begin, or KeyLimitError
    settle      what it cost; it counts in the minute and day in which it began
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

from brise.errors import StoreError
from brise.serve.error_response import KeyLimitError, KeyStoreError
from brise.serve.key_pool import KeyPool
from brise.traffic import key_budgets, virtual_keys
from brise.traffic.key_budgets import MINUTE_S, Amounts, Demand, Exceeded, Grant, KeyBudgets, KeyChange, KeyUse
from brise.traffic.virtual_keys import KeyLimits, VirtualKey, VirtualKeys

TICK_S = 0.5  # from one writing to the next
REFRESH_S = 1.0  # from one reading of the keys to the next
PATIENCE_S = 2.0  # how long a request waits for the store
SETTLING_S, RETRY_S = 0.25, 0.02  # how long one waits for complete answers to be counted, and how often it looks
EDGE = 16  # a request that gives back more than this part of what is left is counted at once
FLUSH_S = 10.0  # to write what is left at the end


@dataclass(frozen=True)
class KeyOptions:
    """`grace_s`: how long known keys go on while the store fails, within what was left of their limits when it was read
    last; then requests get status 503. 0: they get it at once. `unknown_usd` is what a request counts whose cost is
    not known; None: an estimate from its tokens (key_admission.py).
    """

    grace_s: float = 60.0
    unknown_usd: float | None = None


@dataclass(frozen=True)
class Reservation:
    """What a request has reserved."""

    key: VirtualKey
    minute: int
    need: Amounts


@dataclass(eq=False)
class _Waiting:
    demand: Demand
    grant: Future[Grant | None] = field(default_factory=Future)  # None: the store fails


class KeyGuard:
    """Belongs to the event loop, but for the thread that it has for the store. End it with `close`."""

    def __init__(self, keys: VirtualKeys, budgets: KeyBudgets, options: KeyOptions = KeyOptions(),
                 clock: Callable[[], float] = time.time) -> None:
        self._store, self._budgets, self.options, self._clock = keys, budgets, options, clock
        self._keys: Mapping[str, VirtualKey] = {}
        self.has_keys = False  # also where all were removed: then nobody has one
        self._read()
        self._pools: dict[str, KeyPool] = {}
        self._changes: dict[tuple[str, int], KeyChange] = {}
        self._waiting: list[_Waiting] = []
        self._refreshing: list[Future[None]] = []
        self._changed = threading.Condition()
        self._is_closed = self._is_urgent = False
        self._working_since_s: float | None = None
        self._contact_s = self._refreshed_s = time.monotonic()  # when the store answered last
        self._expired_minute = 0
        self.failures_in_a_row = self.num_failures = 0
        self.last_error: str | None = None
        self.refused = Counter[str]()  # requests, by the limit that stood against them
        self._thread = threading.Thread(target=self._run, name="brise-keys", daemon=True)
        self._thread.start()

    async def caller(self, texts: Iterable[str]) -> VirtualKey | None:
        """The key whose text is among these. One that is not known yet may have been made a moment ago."""
        texts = [text for text in texts if virtual_keys.id_of(text) is not None]
        key = virtual_keys.find(self._keys, texts, self._clock())
        if key is None and texts:
            await self._refresh()
            key = virtual_keys.find(self._keys, texts, self._clock())
        return key

    def now_s(self) -> float:
        """The time by which keys expire and limits begin anew."""
        return self._clock()

    def current(self, key: VirtualKey) -> VirtualKey:
        """The key as it is now; a request may have waited for its body meanwhile."""
        return self._keys.get(key.id, key)

    async def reserve(self, key: VirtualKey, need: Amounts) -> Reservation:
        """Waits for the store if need be. KeyLimitError: a limit stands against it; KeyStoreError: the store fails."""
        need = _limited(need, key.limits)
        end_s = time.monotonic() + SETTLING_S
        while True:
            reservation = Reservation(key, int(self._clock() // MINUTE_S), need)
            exceeded = await self._try(reservation)
            if exceeded is None:
                return reservation
            # An answer may have come to its end a moment before it is counted, here or in another gateway.
            if exceeded.is_used_up or time.monotonic() >= end_s:
                self.refused[exceeded.limit] += 1
                raise KeyLimitError(key.name, exceeded.limit, key_budgets.wait_s(exceeded, self._clock()),
                                    is_used_up=exceeded.is_used_up)
            await asyncio.sleep(RETRY_S)

    def settle(self, reservation: Reservation, used: Amounts, *, is_known: bool) -> None:
        """What a request has cost. Call it once."""
        back = reservation.need - _limited(used, reservation.key.limits)
        with self._changed:
            # What is not limited was not reserved, and counts all the same: a limit may be set in the course of a day.
            self._change(reservation, KeyChange(used - reservation.need, used, 0 if is_known else used.nano_usd,
                                                int(not is_known)))
            room = self._pools[reservation.key.id].room
            if back.tokens * EDGE > room.tokens or back.nano_usd * EDGE > room.nano_usd:
                self._is_urgent = True
                self._changed.notify_all()

    def close(self) -> None:
        """Writes what is left, and ends the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(FLUSH_S)
        with suppress(StoreError):
            self._store.close()

    # Reserving, in the event loop.

    async def _try(self, reservation: Reservation) -> Exceeded | None:
        with self._changed:
            if _is_free(reservation.key.limits):
                self._pool(reservation.key, reservation.minute).used_s = self._clock()
                self._change(reservation, KeyChange(reserved=reservation.need))
                return None
            if self._take_ahead(reservation):
                return None
            if self._is_failing():
                return self._take_local(reservation)
            pool = self._pool(reservation.key, reservation.minute)
            waiting = self._demand(reservation.key, pool, reservation.need)
        try:
            async with asyncio.timeout(PATIENCE_S):
                grant = await asyncio.shield(asyncio.wrap_future(waiting.grant))
        except TimeoutError:
            grant = None
            waiting.grant.add_done_callback(lambda done: self._give_back(reservation, done))
        except asyncio.CancelledError:
            waiting.grant.add_done_callback(lambda done: self._give_back(reservation, done))
            raise
        if grant is not None:
            return grant.exceeded
        with self._changed:
            return self._take_local(reservation)

    def _take_ahead(self, reservation: Reservation) -> bool:
        """Takes what the request needs from what is reserved ahead, and sees to more before that ends."""
        key = reservation.key
        pool = self._pool(key, reservation.minute)
        pool.used_s = self._clock()
        if not pool.take_ahead(reservation.need):
            return False
        if pool.needs_more:
            pool.is_topping_up = True
            self._demand(key, pool, Amounts())
        return True

    def _take_local(self, reservation: Reservation) -> Exceeded | None:
        """The store fails: within what was left of the limits when it was read last, and for a short time only."""
        if time.monotonic() - self._contact_s > self.options.grace_s:
            raise KeyStoreError
        pool = self._pool(reservation.key, reservation.minute)
        exceeded = pool.take_local(reservation.need, reservation.key.limits)
        if exceeded is None:
            self._change(reservation, KeyChange(reserved=reservation.need))
        return exceeded

    def _demand(self, key: VirtualKey, pool: KeyPool, need: Amounts) -> _Waiting:
        waiting = _Waiting(Demand(key.id, key.limits, pool.minute, need, pool.each, pool.ahead))
        self._waiting.append(waiting)
        self._changed.notify_all()
        return waiting

    def _give_back(self, reservation: Reservation, done: Future[Grant | None]) -> None:
        """The grant came when nobody waited for it any more."""
        grant = done.result()
        if grant is not None and grant.exceeded is None:
            with self._changed:
                self._change(reservation, KeyChange(reserved=reservation.need * -1))

    def _pool(self, key: VirtualKey, minute: int) -> KeyPool:
        pool = self._pools.get(key.id)
        if pool is None:
            pool = self._pools[key.id] = KeyPool(minute, key_budgets.room(key.limits, KeyUse()))
        if minute != pool.minute:
            self._return_free(key.id, pool)
            pool.turn(minute, key.limits)
        return pool

    def _return_free(self, key: str, pool: KeyPool) -> None:
        free = pool.take_free()
        if free != Amounts():
            self._add_change((key, pool.minute), KeyChange(reserved=free * -1))

    def _add_change(self, place: tuple[str, int], change: KeyChange) -> None:
        self._changes[place] = self._changes.get(place, KeyChange()) + change

    def _change(self, reservation: Reservation, change: KeyChange) -> None:
        self._add_change((reservation.key.id, reservation.minute), change)

    def _is_failing(self) -> bool:
        """Whether the thread waits for the store for too long, or has just failed."""
        since_s = self._working_since_s
        return self.failures_in_a_row > 0 or since_s is not None and time.monotonic() - since_s > PATIENCE_S

    async def _refresh(self) -> None:
        """Waits until the thread has read the keys again, or the store has failed. Whoever tries out keys makes it read
        four times a second at most."""
        asked_s = time.monotonic()
        await asyncio.sleep(max(self._refreshed_s + REFRESH_S / 4 - asked_s, 0.0))
        if self._refreshed_s > asked_s:  # somebody else made it
            return
        with self._changed:
            refreshed = Future[None]()
            self._refreshing.append(refreshed)
            self._changed.notify_all()
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.shield(asyncio.wrap_future(refreshed))

    # The rest runs on the thread.

    def _run(self) -> None:
        next_tick_s = time.monotonic() + TICK_S
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._is_closed or self._waiting or self._refreshing or self._is_urgent,
                    max(next_tick_s - time.monotonic(), 0.0))
                is_closed, refreshing = self._is_closed, self._refreshing
                self._refreshing = []
            is_tick = is_closed or time.monotonic() >= next_tick_s
            if is_tick:
                next_tick_s = time.monotonic() + TICK_S
            self._exchange(is_tick=is_tick, is_last=is_closed)
            if refreshing or is_tick and time.monotonic() - self._refreshed_s >= REFRESH_S:
                self._refresh_keys(refreshing)
            if is_closed:
                return

    def _exchange(self, *, is_tick: bool, is_last: bool) -> None:
        """Writes what has changed, and reserves for the requests that wait."""
        with self._changed:
            if is_tick:
                self._tick(is_last)
            waiting, self._waiting = self._waiting, []
            for each in waiting:  # what is reserved ahead did not suffice: it is looked at together with the rest
                if each.demand.need != Amounts():
                    self._return_free(each.demand.key, self._pools[each.demand.key])
            is_due, self._is_urgent = is_tick or self._is_urgent or bool(waiting), False
            changes = self._changes if is_due else {}
            if not changes and not waiting:
                return
            self._changes = {}
            used_s = {key: pool.used_s for key, pool in self._pools.items() if is_tick and pool.used_s is not None}
            self._working_since_s = time.monotonic()
        try:
            grants = self._budgets.exchange(changes, [each.demand for each in waiting], used_s)
        except Exception as error:  # of the database's client too: requests must not wait for a thread that has ended
            self._has_failed(error, changes, waiting)
            return
        with self._changed:
            self._has_worked()
            for key in used_s:
                self._pools[key].used_s = None
            for each, grant in zip(waiting, grants, strict=True):
                self._granted(each, grant)
        for each, grant in zip(waiting, grants, strict=True):
            each.grant.set_result(grant)

    def _tick(self, is_last: bool) -> None:
        """Measures how busy each key is, and takes back what is reserved ahead of a key that is idle."""
        for key, pool in self._pools.items():
            if not pool.measure(TICK_S) or is_last:
                self._return_free(key, pool)

    def _granted(self, waiting: _Waiting, grant: Grant) -> None:
        pool = self._pools[waiting.demand.key]
        if pool.minute == waiting.demand.minute:
            pool.free += grant.ahead
            pool.room = grant.room
        else:
            self._add_change((waiting.demand.key, waiting.demand.minute), KeyChange(reserved=grant.ahead * -1))
        if waiting.demand.need == Amounts():
            pool.is_topping_up = False

    def _has_failed(self, error: Exception, changes: Mapping[tuple[str, int], KeyChange],
                    waiting: Iterable[_Waiting]) -> None:
        with self._changed:
            self._working_since_s = None
            self.num_failures += 1
            self.failures_in_a_row += 1
            self.last_error = str(error)
            for place, change in changes.items():
                self._add_change(place, change)
            for each in waiting:
                if each.demand.need == Amounts():
                    self._pools[each.demand.key].is_topping_up = False
        for each in waiting:
            each.grant.set_result(None)

    def _has_worked(self) -> None:
        self._working_since_s, self.failures_in_a_row, self._contact_s = None, 0, time.monotonic()

    def _refresh_keys(self, refreshing: Iterable[Future[None]]) -> None:
        begun_s = time.monotonic()
        try:
            self._read()
            minute = int(self._clock() // MINUTE_S)
            if minute != self._expired_minute:
                self._budgets.expire(minute)
                self._expired_minute = minute
        except Exception as error:  # as in `_exchange`
            with self._changed:
                self.num_failures += 1
                self.failures_in_a_row += 1
                self.last_error = str(error)
        else:
            with self._changed:
                self._has_worked()
        self._refreshed_s = begun_s
        for each in refreshing:
            each.set_result(None)

    def _read(self) -> None:
        keys = self._store.read()
        self._keys = {key.id: key for key in keys}
        self.has_keys = self.has_keys or bool(keys)


def _limited(need: Amounts, limits: KeyLimits) -> Amounts:
    """Without what is not limited: it need not be reserved."""
    has_budget = limits.usd_per_day is not None or limits.usd_per_month is not None
    return Amounts(need.requests, need.tokens if limits.tokens_per_minute is not None else 0,
                   need.nano_usd if has_budget else 0)


def _is_free(limits: KeyLimits) -> bool:
    """Whether nothing but the models is limited."""
    return (limits.usd_per_day is None and limits.usd_per_month is None and limits.requests_per_minute is None
            and limits.tokens_per_minute is None)
