"""Watches which model a remote server serves, and knows its fingerprint, or why there is none now.

A model that was seen is a line of the ledger (`remote`): what its server says of it, its probe, and how far another
probe may be from that one. So all gateways of a store know it by one fingerprint, and it keeps it over restarts. A
look that finds the facts of a line and a probe within its tolerance finds this model again; any other is new, and its
line says what differs. A lost connection, or an answer in another model's name, ends what is known at once: a server
that comes back may have another model. Then nothing that is certified is answered until a look has succeeded.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TextIO

from brise.dialects.bodies import Body
from brise.dialects.table import CHAT
from brise.errors import BriseError, RequestError
from brise.gateway.remote import probe as probes
from brise.gateway.remote.engines import KINDS, EngineIdentity, engine_of, identify
from brise.gateway.remote.probe import Probe
from brise.gateway.remote.server import RefusedError, RemoteServer
from brise.gateway.small_models import SmallModelDownError
from brise.traffic.store import TrafficStore

LINE = "remote"  # the kind of a line in the ledger
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 5.0  # between looks at a server that is down
MOST_LINES = 64  # of one model: a server that shows another one at each look is not written down for ever
Wait = Callable[[asyncio.Event, float], Awaitable[object]]


@dataclass(frozen=True)
class SeenModel:
    """A model that was seen behind a name: a line of the ledger."""

    fingerprint: str
    identity: EngineIdentity
    probe: Probe
    tolerance: float
    noise: float

    def why_not(self, identity: EngineIdentity, found: Probe) -> str | None:
        """Why what was found now is another model; None if it may be this one."""
        other = identity.difference(self.identity)
        if other is not None:
            return other
        if self.noise > self.tolerance:  # the server's probes are too far from each other to tell anything
            return None
        distance = probes.distance(self.probe, found)
        if distance <= self.tolerance:
            return None
        return f"its probe is {distance:.4f} from the one that was kept, {self.tolerance:.4f} is tolerated"


@dataclass(frozen=True)
class CurrentModel:
    """What answers now."""

    seen: SeenModel
    identity: EngineIdentity
    gives_logprobs: bool
    names: tuple[str | None, str | None]  # its model and system_fingerprint in answers, if they are always the same

    @property
    def missing(self) -> tuple[str, ...]:
        """What this server does not give, by name."""
        return self.identity.missing(gives_logprobs=self.gives_logprobs)


class RemoteWatch:
    """Looks at one remote model again and again. `wait` is for tests."""

    def __init__(self, server: RemoteServer, store: TrafficStore, *, log: TextIO | None = None,
                 wait: Wait | None = None) -> None:
        self._server, self._store, self._log = server, store, log or sys.stderr
        self._wait = wait or _wait
        self._current: CurrentModel | None = None
        self._last: CurrentModel | None = None  # also while it is not known whether it is still there
        self._why = "it has not been looked at yet"
        self._doubt = asyncio.Event()
        self._num_doubts = 0
        self.num_changes = 0
        self.has_looked = False  # at least once

    @property
    def name(self) -> str:
        return self._server.name

    @property
    def last(self) -> CurrentModel | None:
        """The model as it was known last: enough to ask it, not to certify it."""
        return self._last

    @property
    def why(self) -> str | None:
        """Why no model is known now; None if one is."""
        return None if self._current is not None else self._why

    def current(self) -> CurrentModel:
        """The model that answers now; SmallModelDownError if that is not known."""
        if self._current is None:
            raise SmallModelDownError(self.name, self._why)
        return self._current

    def doubt(self, why: str) -> None:
        """Ends what is known, until the next look, which comes at once."""
        self._num_doubts += 1
        if self._current is not None:  # otherwise it is looked at again and again already
            self._current, self._why = None, f"its server is to show again which model it has: {why}"
            self._doubt.set()

    def check_names(self, answer: Body) -> None:
        """SmallModelDownError if an answer comes from another model than the one that was seen."""
        current = self._last
        if current is None:
            return
        found = _string(answer.get("model")), _string(answer.get("system_fingerprint"))
        for what, known, now in zip(("model", "system_fingerprint"), current.names, found, strict=True):
            if known is not None and now is not None and now != known:
                why = f"the {what} of its answers was {known!r} and is {now!r}"
                self.doubt(why)
                raise SmallModelDownError(self.name, why)

    async def run(self) -> None:
        """Until it is cancelled."""
        pause_s = FIRST_WAIT_S
        while True:
            is_known = await self.look()
            pause_s = FIRST_WAIT_S if is_known else min(2 * pause_s, LONGEST_WAIT_S)
            await self._wait(self._doubt, self._server.remote.probe_every_s if is_known else pause_s)

    async def look(self) -> bool:
        """Finds out which model answers; whether it is known now. It raises nothing."""
        self._doubt.clear()
        num_doubts = self._num_doubts
        try:
            found = await self._found()
        except (BriseError, ValueError, TypeError, LookupError) as error:  # a stranger's answers, which may be anything
            why = error.why if isinstance(error, SmallModelDownError) else str(
                error.args[0]) if isinstance(error, BriseError) else f"its answers cannot be read: {error!r}"[:200]
            if self._current is not None or self._why != why:
                self._say(f"the small model {self.name!r} is not available: {why}")
            self._current, self._why, self.has_looked = None, why, True
            return False
        if self._num_doubts != num_doubts:  # a connection was lost while it was looked at
            return False
        if self._last is None or found.seen.fingerprint != self._last.seen.fingerprint:
            self._say(f"the small model {self.name!r} is {found.identity.model!r} of {found.identity.kind.name} at "
                      f"{self._server.remote.url}, fingerprint {found.seen.fingerprint}; missing: "
                      f"{', '.join(found.missing)}")
            self.num_changes += self._last is not None
        self._current = self._last = found
        self.has_looked = True
        return True

    async def _found(self) -> CurrentModel:
        remote = self._server.remote
        identity = await identify(self._server.fetch, remote.model, remote.engine)
        if self._current is None:
            self._server.is_back()
        found = await self._probed(identity.model)
        if found.seen[1] is not None:
            identity = replace(identity, facts={**identity.facts, "system_fingerprint": found.seen[1]})
        book = await asyncio.to_thread(self._read)
        seen, why = self._matching(book, identity, found)
        if seen is None and book:
            found = await self._probed(identity.model)  # once more: a single probe may have met a rare batch
            seen, why = self._matching(book, identity, found)
        if seen is None:
            seen = await self._new(book, identity, found, why)
        return CurrentModel(seen, identity, found.has_logprobs, found.seen)

    def _matching(self, book: Sequence[SeenModel], identity: EngineIdentity, found: Probe
                  ) -> tuple[SeenModel | None, str]:
        """The line that this is, the oldest one first, as every gateway finds it; or why it is not the one that was
        known last."""
        known = next((seen for seen in book if seen.why_not(identity, found) is None), None)
        last = self._last.seen if self._last is not None else book[-1] if book else None
        why = None if known is not None or last is None else last.why_not(identity, found)
        return known, why or "it was not seen before"

    async def _probed(self, model: str) -> Probe:
        """A probe with log-probabilities, or without if the server gives none."""
        try:
            gives_them = await probes.gives_logprobs(self._ask, model)
        except RefusedError:
            gives_them = False
        return await probes.probe(self._ask, model, has_logprobs=gives_them)

    async def _ask(self, body: Body) -> Body:
        outcome = await self._server.ask(CHAT, body)
        return outcome.response or {}

    async def _new(self, book: Sequence[SeenModel], identity: EngineIdentity, found: Probe, why: str) -> SeenModel:
        """Writes the line of a model that was not seen before, and reads it back: another gateway may have been
        first."""
        if len(book) >= MOST_LINES:
            raise RequestError(f"its server has shown {len(book)} different models under this name, which is not "
                               "followed any more", hint="give it another NAME")
        has_logprobs = found.has_logprobs
        again = [await probes.probe(self._ask, identity.model, has_logprobs=has_logprobs, is_batched=True)
                 for _ in range(probes.ROUNDS - 1)]
        steady = probes.steadiness([found, *again])
        line = {"name": self.name, "url": self._server.remote.url, "engine": identity.kind.name,
                "model": identity.model, "facts": dict(identity.facts), "probe": found.to_body(),
                "noise": round(steady.noise, 6), "tolerance": steady.tolerance,
                "missing": list(identity.missing(gives_logprobs=has_logprobs)), "by": "gateway", "reason": why}
        line["fingerprint"] = _digest(line)
        await asyncio.to_thread(self._store.append, LINE, line)
        seen, _ = self._matching(await asyncio.to_thread(self._read), identity, found)
        if not steady.is_steady:
            self._say(f"the small model {self.name!r}: two probes of it differ by {steady.noise:.3f}, so that only "
                      "what its server says of itself can be certified")
        assert seen is not None, "its own line is among them"
        return seen

    def _read(self) -> list[SeenModel]:
        """The lines about this name, of which each fingerprint counts once."""
        found = dict[str, SeenModel]()
        for entry in self._store.ledger():
            if entry.kind == LINE and entry.body.get("name") == self.name and (seen := _seen(entry.body)) is not None:
                found.setdefault(seen.fingerprint, seen)
        return list(found.values())

    def _say(self, line: str) -> None:
        print(f"brise: {line}", file=self._log, flush=True)


def _seen(body: Body) -> SeenModel | None:
    """A line of the ledger; None if this version cannot read it: then the model is seen anew."""
    try:
        kind = KINDS[engine_of(str(body["engine"]), "engine")]
        facts = {str(name): str(value) for name, value in body["facts"].items()}
        return SeenModel(str(body["fingerprint"]), EngineIdentity(kind, str(body["model"]), facts, kind.continues),
                         probes.from_body(body["probe"]), float(body["tolerance"]), float(body["noise"]))
    except (KeyError, TypeError, ValueError, AttributeError, BriseError):
        return None


def _digest(line: Body) -> str:
    """32 hexadecimal digits of what the model was seen to be."""
    known = {name: line[name] for name in ("engine", "model", "facts", "probe")}
    return blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=16).hexdigest()


def _string(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Until something is in doubt, or so many seconds have passed."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        pass
