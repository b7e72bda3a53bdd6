"""A gateway is assembled here from its upstreams, its traffic store and the tasks of the small models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from brise.errors import UnsupportedError
from brise.gateway.anthropic_upstream import AnthropicUpstream
from brise.gateway.fallback import SmallModelFallback
from brise.gateway.gateway import Components, Gateway
from brise.gateway.large_model import LargeModel
from brise.gateway.rate_limit import UpstreamRate
from brise.gateway.reanswer import Reanswer
from brise.gateway.remote.models import JoinedModels, RemoteModels
from brise.gateway.remote.server import RemoteModel
from brise.gateway.retry import Retries, RetrySettings
from brise.gateway.small_models import SmallModels, TaskModels
from brise.gateway.upstream import NoUpstream, Upstream, UpstreamSettings
from brise.gateway.upstreams import Routes, Upstreams
from brise.switch import components
from brise.switch.shadow import Reask, Shadow, ShadowOptions
from brise.traffic.capture import Capture, CaptureOptions, CaptureStats
from brise.traffic.servers import Membership
from brise.traffic.store import TrafficStore
from brise.traffic.stores import (
    POSTGRES,
    open_audits_waiting,
    open_rate_buckets,
    open_store,
    open_threads,
    request_key,
    shared_prices,
)

UpstreamDialect = Literal["openai", "anthropic", "none"]


@dataclass(frozen=True)
class SmallOptions:
    """The small models for each task, and the shares of traffic that are answered twice."""

    fallback: TaskModels = TaskModels()
    candidate: TaskModels = TaskModels()
    shadow: float = 0.0
    reask: float = 0.0


@dataclass(frozen=True)
class UpstreamServer:
    """Where an upstream is, and what it speaks; `none` is the place of one that is not there."""

    settings: UpstreamSettings
    dialect: UpstreamDialect = "openai"
    rate_per_minute: int | None = None  # requests that all gateways of the store send it


@dataclass(frozen=True)
class GatewayOptions:
    """The options of a gateway. `store` is a path or a postgresql:// URL; None is the default in BRISE_HOME.

    `upstreams` are by name; a single one may have the name "". `routes` says which models each has.
    """

    upstreams: Mapping[str, UpstreamServer]
    routes: Routes = Routes()
    retries: int = RetrySettings().retries
    hedge_after_s: float | None = None
    store: str | Path | None = None
    capture: CaptureOptions = CaptureOptions()
    prices: Path | None = None
    small: SmallOptions = SmallOptions()
    remote: Mapping[str, RemoteModel] = field(default_factory=dict)  # small models behind other servers, by name


@contextmanager
def open_gateway(options: GatewayOptions, home: Path, small: SmallModels,
                 on_end: Callable[[CaptureStats], None], member: Membership | None = None) -> Iterator[Gateway]:
    """The gateway with its store, which it shares as `member`. When the block ends, captured traffic is written and
    `on_end` gets the counts."""
    member = member or Membership()
    prices = shared_prices(options.prices, options.store, home)
    store = open_store(options.store, home)
    capture = Capture(store, options.capture, open_threads(store, home), leads=member.leads)
    rates = dict[str, UpstreamRate]()
    try:
        rates |= _rates(options, home, member)
        large = Upstreams({name: _large_model(server, options, rates.get(name))
                           for name, server in options.upstreams.items()}, options.routes, prices)
        remote = RemoteModels(options.remote, store) if options.remote else None
        small = small if remote is None else JoinedModels(small, remote)
        parts = _small_components(options.small, small, large, store, capture, member)
        rows = (open_audits_waiting(options.store, home)
                if isinstance(options.store, str) and options.store.startswith(POSTGRES) else None)
        switches = components.switch_components(small, large, store, capture, member=member, rows=rows)
        yield Gateway(large, replace(
            switches, fallback=parts.fallback, observers=(*switches.observers, *parts.observers),
            background=(*switches.background, *parts.background, *(() if remote is None else (remote,))),
            capture=capture, prices=prices, id_key=request_key(home), remote=remote))
    finally:
        for rate in rates.values():
            rate.close()
        stats = capture.drain()
        store.close()
        on_end(stats)


def routes_of(names: Sequence[str], models: Sequence[tuple[str, str]], default: str | None) -> Routes:
    """Which upstream has which models; `models` are patterns and names."""
    return Routes(tuple(names), tuple(models), names[0] if default is None else default)


def dialect_of(word: str, option: str) -> UpstreamDialect:
    """The dialect that an option names."""
    match word:
        case "openai" | "anthropic":
            return word
        case _:
            raise UnsupportedError(f"{option} is {word!r}, allowed are openai and anthropic")


def _rates(options: GatewayOptions, home: Path, member: Membership) -> dict[str, UpstreamRate]:
    """The rate limits of upstreams by name, each kept with the other gateways of the store."""
    return {name: UpstreamRate(f"upstream {name}".strip(), server.rate_per_minute,
                               open_rate_buckets(options.store, home), lambda: member.num_servers)
            for name, server in options.upstreams.items() if server.rate_per_minute is not None}


def _large_model(server: UpstreamServer, options: GatewayOptions, rate: UpstreamRate | None) -> LargeModel:
    if server.dialect == "none":
        return LargeModel(NoUpstream(), retries=Retries(RetrySettings(0)))
    upstream = Upstream(server.settings)
    return LargeModel(AnthropicUpstream(upstream) if server.dialect == "anthropic" else upstream,
                      retries=Retries(RetrySettings(options.retries)), hedge_after_s=options.hedge_after_s, rate=rate)


def _small_components(options: SmallOptions, small: SmallModels, large: Upstreams, store: TrafficStore,
                      capture: Capture, member: Membership) -> Components:
    """The components of the small models: the fallback during outages, and shadow answers."""
    observers: list[Shadow | Reask | Reanswer] = []
    fallback = None
    if options.fallback != TaskModels():
        fallback = SmallModelFallback(small, options.fallback)
        observers.append(Reanswer(large, store, capture, leads=member.leads))
    if options.shadow:
        observers.append(Shadow(small, options.candidate, ShadowOptions(options.shadow), capture))
    if options.reask:
        observers.append(Reask(large, options.reask, capture))
    return Components(fallback=fallback, observers=observers, background=observers)
