"""The circuit breaker of one upstream: where it fails again and again it is left alone, and tried now and then.

A failure may be the server's, the model's, or that of one poisoned request, and nobody can tell from one. So there are
circuits of four scopes, each of which opens for its own part only, on evidence that the part below it cannot make:

    upstream   all requests         no connection, 5 times in a row: no request has any influence on that
    model      one model            failures of 3 clients, 5 in all, and no answer to anybody in between
    client     one client's on it   failures of 5 different requests of that client, and no answer to anybody in between
    request    one request's body   5 failures of that body

An open circuit lets one request through after a pause, as a probe; at first one that it has not seen fail.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Literal

BreakerState = Literal["closed", "open", "half-open"]
Scope = Literal["upstream", "model", "client", "request"]
SCOPES: tuple[Scope, ...] = ("upstream", "model", "client", "request")
Key = tuple[Hashable, ...]
MAX_CIRCUITS = 4096  # of what failed lately; clients invent models and bodies
MAX_PARTS = 64  # different clients or requests that a circuit remembers


@dataclass(frozen=True)
class BreakerSettings:
    """When it opens, and for how long. The pause doubles with every probe that fails."""

    failures: int = 5  # in a row; of a client, of as many different requests
    pause_s: float = 5.0
    longest_pause_s: float = 60.0
    clients: int = 3  # whose failures count against a model
    window_s: float = 60.0  # failures are forgotten when nothing has failed for so long
    fresh_s: float = 1.0  # for so long after the pause, the probe is a request that has not failed before


@dataclass(frozen=True)
class Caller:
    """Whose request it is, for which model. Equal bodies are one request."""

    model: str
    client: Hashable
    body: bytes = field(repr=False)

    def key(self, scope: Scope) -> Key:
        """The circuit of this scope. A hash that differs from process to process, so that nobody can make two alike."""
        match scope:
            case "upstream":
                return ()
            case "model":
                return (self.model,)
            case "client":
                return (self.model, self.client)
            case "request":
                return (self.model, self.client, hash(self.body))


@dataclass(frozen=True)
class Permit:
    """A request that was let through; it is given back when its result is known."""

    caller: Caller | None
    probes: tuple[_Circuit, ...] = ()

    @property
    def is_probe(self) -> bool:
        """Whether it is to show that the upstream answers again."""
        return bool(self.probes)


class _Circuit:
    """Closed: everything goes through. Open: nothing does. Half-open: one request at a time does, as a probe."""

    def __init__(self, settings: BreakerSettings, scope: Scope) -> None:
        self.settings, self.scope = settings, scope
        self.failures, self.last_s, self.pause_s = 0, 0.0, settings.pause_s
        self.parts = set[Hashable]()  # what failed: of a model its clients, of a client its requests
        self.opened_s: float | None = None
        self.until_s = 0.0
        self.answers = 0  # how often it was closed by one
        self.answers_above = 0  # of a client: that of its model, when it failed last
        self.probe: Permit | None = None

    def state(self, now_s: float) -> BreakerState:
        if self.opened_s is None:
            return "closed"
        return "half-open" if now_s >= self.until_s else "open"

    def lets_through(self, now_s: float, part: Hashable) -> bool:
        match self.state(now_s):
            case "closed":
                return True
            case "open":
                return False
            case "half-open":
                has_failed = part is not None and part in self.parts and now_s < self.until_s + self.settings.fresh_s
                return self.probe is None and not has_failed

    def count(self, now_s: float, part: Hashable) -> None:
        if self.opened_s is None and now_s - self.last_s > self.settings.window_s:
            self.failures = 0
            self.parts.clear()
        self.failures, self.last_s = self.failures + 1, now_s
        if len(self.parts) < MAX_PARTS:
            self.parts.add(part)

    def has_enough(self, *, is_shared: bool) -> bool:
        """`is_shared`: the failure was none of a single request's, such as a limit of the key that all use."""
        parts = {"model": 1 if is_shared else self.settings.clients, "client": self.settings.failures}
        return self.failures >= self.settings.failures and len(self.parts) >= parts.get(self.scope, 1)

    def open(self, now_s: float, wait_s: float | None) -> None:
        self.opened_s = now_s
        self.until_s = now_s + max(self.pause_s, min(wait_s or 0.0, self.settings.longest_pause_s))

    def close(self) -> None:
        self.failures, self.pause_s, self.opened_s = 0, self.settings.pause_s, None
        self.answers += 1
        self.parts.clear()


class Breaker:
    """Time is that of a monotonic clock, so that setting the machine's clock opens and closes nothing."""

    def __init__(self, settings: BreakerSettings, now: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._now = settings, now
        self._upstream = _Circuit(settings, "upstream")
        self._circuits: OrderedDict[Key, _Circuit] = OrderedDict()
        self.num_opened = 0

    @property
    def state(self) -> BreakerState:
        """The state for all requests, as the next one meets it."""
        return self._upstream.state(self._now())

    @property
    def wait_s(self) -> float:
        """Seconds until the next probe may go."""
        return self.wait_of(None)

    def wait_of(self, caller: Caller | None) -> float:
        """The same for a request of this caller's."""
        now_s = self._now()
        return max((circuit.until_s - now_s for circuit, _ in self._path(caller) if circuit.state(now_s) == "open"),
                   default=0.0)

    def num_open(self) -> Counter[Scope]:
        """How many circuits of each scope are open now."""
        now_s = self._now()
        return Counter(circuit.scope for circuit in (self._upstream, *self._circuits.values())
                       if circuit.state(now_s) != "closed")

    def open_models(self) -> list[str]:
        """Models that are left alone now. Other threads may ask."""
        now_s = self._now()
        return [str(key[0]) for key, circuit in list(self._circuits.items())
                if circuit.scope == "model" and circuit.state(now_s) != "closed"]

    def enter(self, caller: Caller | None = None) -> Permit | None:
        """Lets a request through, or returns None. For each permit `succeeded`, `failed` or `left` is called."""
        now_s, path = self._now(), [*self._path(caller)]
        if not all(circuit.lets_through(now_s, part) for circuit, part in path):
            return None
        probes = tuple(circuit for circuit, _ in path if circuit.opened_s is not None)
        permit = Permit(caller, probes)
        for circuit in probes:
            circuit.probe = permit
        return permit

    def succeeded(self, permit: Permit) -> None:
        """The upstream answered: it is there again, whoever asked."""
        self.left(permit)
        for circuit, _ in self._path(permit.caller):
            circuit.close()

    def failed(self, permit: Permit, wait_s: float | None = None, *, scope: Scope = "upstream") -> None:
        """The upstream did not answer; `wait_s` is how long it asks to wait. `scope` is the smallest part that may be
        at fault: "request" where everything may be."""
        self.left(permit)
        caller = permit.caller
        if scope == "upstream" or caller is None:
            self._count(self._upstream, permit, None, wait_s, is_shared=True)
            return
        if self._upstream.opened_s is None or self._upstream in permit.probes:
            self._upstream.close()  # it could be reached
        self._make(caller, scope)
        for circuit, part in self._path(caller):
            if circuit is not self._upstream and SCOPES.index(circuit.scope) <= SCOPES.index(scope):
                self._count(circuit, permit, part, wait_s, is_shared=scope == "model")

    def left(self, permit: Permit) -> None:
        """The result is unknown: the client went away before there was an answer."""
        for circuit in permit.probes:
            if circuit.probe is permit:
                circuit.probe = None

    def _count(self, circuit: _Circuit, permit: Permit, part: Hashable, wait_s: float | None, *,
               is_shared: bool) -> None:
        now_s = self._now()
        circuit.count(now_s, part)
        if circuit.opened_s is None:
            if circuit.has_enough(is_shared=is_shared):
                circuit.open(now_s, wait_s)
                self.num_opened += 1
        elif circuit in permit.probes:  # other requests began before it opened, and tell nothing new
            circuit.pause_s = min(circuit.pause_s * 2, self._settings.longest_pause_s)
            circuit.open(now_s, wait_s)
            self.num_opened += 1

    def _path(self, caller: Caller | None) -> Iterator[tuple[_Circuit, Hashable]]:
        """The circuits that a request goes through, and the part of it that each one sees."""
        yield self._upstream, None
        if caller is None or not self._circuits:
            return
        model = self._circuits.get(caller.key("model"))
        client = None if model is None else self._circuits.get(caller.key("client"))
        if model is None:
            return
        yield model, caller.client
        if client is None:
            return
        if client.answers_above != model.answers:
            client.close()  # others were answered: the model is there
            client.answers_above = model.answers
        key = caller.key("request")
        yield client, key
        request = self._circuits.get(key)
        if request is not None:
            yield request, None

    def _make(self, caller: Caller, down_to: Scope) -> None:
        """The circuits of a failure, most recent last."""
        for scope in SCOPES[1:SCOPES.index(down_to) + 1]:
            key = caller.key(scope)
            self._circuits.setdefault(key, _Circuit(self._settings, scope))
            self._circuits.move_to_end(key)
        while len(self._circuits) > MAX_CIRCUITS:
            self._circuits.popitem(last=False)
