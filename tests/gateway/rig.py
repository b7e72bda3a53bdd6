"""A gateway as a user has it: brise's server on a real socket, in front of a fake large model."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from brise.engine.engine_thread import EngineThread
from brise.engine.model import LoadedModel
from brise.gateway.anthropic_upstream import AnthropicUpstream
from brise.gateway.breaker import Breaker, BreakerSettings
from brise.gateway.gateway import Components, Gateway
from brise.gateway.large_model import LargeModel, Wait
from brise.gateway.retry import Retries, RetrySettings
from brise.gateway.small_models import SmallModels
from brise.gateway.upstream import Limits, Upstream, UpstreamSettings
from brise.gateway.upstreams import Routes, Upstreams
from brise.serve.engine_models import EngineModels
from brise.serve.key_admission import KeyAdmission
from brise.serve.serving import ServeSettings
from brise.serve.telemetry import Telemetry
from brise.traffic.records import Exchange, Pending, RecordedAnswer
from tests.gateway.fake_upstream import FakeUpstream, Hold, fake_upstream
from tests.serve.live import Live, live
from tests.waiting import wait_until

SHORT_S = 10  # limits that a test reaches by moving the server's clock on, and comments in silent streams come later
SHORT = Limits(connect_s=SHORT_S, first_byte_s=SHORT_S, answer_s=SHORT_S, between_s=SHORT_S)


@dataclass
class Memory:
    """A capture that keeps everything where a test can look at it."""

    exchanges: list[Exchange] = field(default_factory=list)
    answers: list[RecordedAnswer] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def record(self, exchange: Exchange | None = None, answers: Sequence[RecordedAnswer] = (),
               pending: Sequence[Pending] = ()) -> None:
        self.answers += answers
        self.pending += pending
        self.exchanges += () if exchange is None else (exchange,)

    def clear(self) -> None:
        for rows in (self.exchanges, self.answers, self.pending):
            rows.clear()

    def skip(self, reason: Literal["off", "sampled"]) -> None:
        self.skipped.append(reason)

    def wait(self, number: int = 1) -> list[Exchange]:
        """Everything, as soon as there are so many: a row is written when its client has the answer already."""
        wait_until(lambda: len(self.exchanges) >= number)
        return self.exchanges


@dataclass(frozen=True)
class Rig:
    """The fake, the gateway's server, and what was captured."""

    fake: FakeUpstream
    live: Live
    captured: Memory

    def outwaits(self, hold: Hold) -> None:
        """Where a behaviour holds, more time passes in the server than a `SHORT` limit allows."""
        hold.on_reached = lambda: self.live.pass_time(SHORT_S + 2)


Around = Callable[[SmallModels, Upstreams, Memory],
                  Components]  # parts that need the small model, the large one, the capture


@dataclass(frozen=True)
class SeveralRig:
    """Several fakes by the names of their upstreams, the gateway's server, and what was captured."""

    fakes: Mapping[str, FakeUpstream]
    live: Live
    captured: Memory

    def num_received(self) -> dict[str, int]:
        """How many requests each upstream got."""
        return {name: len(fake.received) for name, fake in self.fakes.items()}


@contextmanager
def several(names: Sequence[str], *, models: Sequence[tuple[str, str]] = (), keys: Mapping[str, str] | None = None,
            anthropic: str = "", around: Around | None = None, model: LoadedModel | None = None,
            breaker: BreakerSettings | None = None, suffix: str = "") -> Iterator[SeveralRig]:
    """As `rig`, with an upstream of each name; the first is the default. Nothing is sent again."""
    captured = Memory()

    def large(name: str, url: str) -> LargeModel:
        place = url.removesuffix("/v1") + suffix if suffix else url
        upstream = Upstream(UpstreamSettings(place, (keys or {}).get(name)))
        return LargeModel(AnthropicUpstream(upstream) if name == anthropic else upstream,
                          breaker=None if breaker is None else Breaker(breaker),
                          retries=Retries(RetrySettings(retries=0)))

    with ExitStack() as stack:
        fakes = {name: stack.enter_context(fake_upstream()) for name in names}
        upstreams = Upstreams({name: large(name, fake.url) for name, fake in fakes.items()},
                              Routes(tuple(names), models, names[0]))

        def made(workers: Mapping[str, EngineThread]) -> Gateway:
            parts = Components() if around is None else around(EngineModels(workers), upstreams, captured)
            return Gateway(upstreams, parts if parts.capture is not None else replace(parts, capture=captured))

        yield SeveralRig(fakes, stack.enter_context(live(model, gateway=made)), captured)


@contextmanager
def rig(limits: Limits | None = None, parts: Components | None = None, settings: ServeSettings | None = None, *,
        key: str | None = None, path: str = "/v1", breaker: Breaker | None = None, retries: Retries | None = None,
        hedge_after_s: float | None = None, wait: Wait = asyncio.sleep, around: Around | None = None,
        model: LoadedModel | None = None, is_anthropic: bool = False, tls: ssl.SSLContext | None = None,
        proxy: str | None = None, paths: Sequence[str] = (), asks_for_usage: bool = True,
        admission: KeyAdmission | None = None, telemetry: Telemetry | None = None) -> Iterator[Rig]:
    """Runs until the block ends. The local model is called "stub"; every other name is the fake's.

    Nothing is sent again, unless `retries` says so.
    """
    captured, settings = Memory(), settings or ServeSettings()
    with fake_upstream(tls) as fake:
        url = fake.url.removesuffix("/v1") + path
        upstream = Upstream(UpstreamSettings(url, key, settings.api_keys_path is None, limits or Limits(), proxy,
                                             paths, asks_for_usage=asks_for_usage))
        server = AnthropicUpstream(upstream) if is_anthropic else upstream
        large = Upstreams.only(LargeModel(server, breaker=breaker, retries=retries or Retries(RetrySettings(retries=0)),
                                          hedge_after_s=hedge_after_s, wait=wait))

        def made(models: Mapping[str, EngineThread]) -> Gateway:
            stand = parts or Components() if around is None else around(EngineModels(models), large, captured)
            return Gateway(large, stand if stand.capture is not None else replace(stand, capture=captured))

        with live(model, settings, gateway=made, admission=admission, telemetry=telemetry) as running:
            yield Rig(fake, running, captured)
