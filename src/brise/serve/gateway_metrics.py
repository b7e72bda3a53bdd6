"""Prometheus metrics of the gateway: which model answered, upstream latency and failures, captured traffic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from brise.gateway.breaker import BreakerState
from brise.gateway.fallback import SmallModelFallback
from brise.gateway.gateway import Components, Gateway
from brise.gateway.large_model import LargeModel
from brise.gateway.reanswer import Reanswer
from brise.gateway.remote.models import RemoteModels
from brise.gateway.request import ClientRequest
from brise.gateway.upstreams import ONLY
from brise.serve.metrics import SECONDS
from brise.switch.shadow import Reask, Shadow
from brise.traffic.capture import Capture
from brise.traffic.records import Exchange, not_written

MAX_MODELS = 50  # that are named: clients invent names


class GatewayMetrics(Collector):
    """Counts each request, and reads the gateway's components at each scrape."""

    def __init__(self, gateway: Gateway, registry: CollectorRegistry) -> None:
        self._gateway = gateway
        self._requests = Counter("brise_gateway_requests", "Requests by who answered.", ("kind", "mode"),
                                 registry=registry)
        self._first = Histogram("brise_gateway_first_token_seconds", "From request to first token.", ("mode",),
                                buckets=SECONDS, registry=registry)
        self._seconds = Histogram("brise_gateway_seconds", "From request to last byte.", ("mode",), buckets=SECONDS,
                                  registry=registry)
        self._by_upstream = Counter("brise_gateway_upstream_requests", "Requests by the upstream that they were for.",
                                    ("upstream", "mode"), registry=registry)
        registry.register(self)
        gateway.add_observer(self)

    def observe(self, request: ClientRequest, exchange: Exchange) -> None:
        """Records a finished request."""
        self._requests.labels(request.kind, exchange.mode).inc()
        if exchange.upstream:
            self._by_upstream.labels(exchange.upstream, exchange.mode).inc()
        self._seconds.labels(exchange.mode).observe(exchange.total_s)
        if exchange.first_token_s is not None:
            self._first.labels(exchange.mode).observe(exchange.first_token_s)

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from _upstreams(self._gateway.large.each)
        capture = self._gateway.components.capture
        if isinstance(capture, Capture):
            yield from _capture(capture)
        yield from _small_models(self._gateway.components)
        if self._gateway.components.remote is not None:
            yield from _remote(self._gateway.components.remote)


def _upstreams(each: Mapping[str, LargeModel]) -> Iterator[Metric]:
    """Metrics of the upstreams, by name where they have names."""
    label = () if tuple(each) == (ONLY,) else ("upstream",)
    families = [CounterMetricFamily(f"brise_gateway_{name}", text, labels=(*label, *more)) for name, text, more in (
        ("upstream_failures", "Attempts that the upstream did not answer.", ("kind",)),
        ("retries", "Requests that were sent again.", ()),
        ("hedges", "Requests that were sent twice because the first was slow.", ()),
        ("breaker_opened", "How often the circuit breaker opened.", ()))]
    breaker = GaugeMetricFamily("brise_gateway_breaker", "1 at the state of the circuit breaker.",
                                labels=(*label, "state"))
    circuits = GaugeMetricFamily("brise_gateway_breaker_circuits", "Circuits that are open, by what they leave alone.",
                                 labels=(*label, "scope"))
    models = GaugeMetricFamily("brise_gateway_breaker_models", "1 for a model that is left alone.",
                               labels=(*label, "model"))
    failures, retries, hedges, opened = families
    for name, large in each.items():
        values = (name,) if label else ()
        for kind, number in large.failures.items():
            failures.add_metric((*values, kind), number)
        retries.add_metric(values, large.retries.num_retries)
        hedges.add_metric(values, large.num_hedged)
        opened.add_metric(values, large.breaker.num_opened)
        for state in get_args(BreakerState):
            breaker.add_metric((*values, state), large.breaker.state == state)
        for scope, number in large.breaker.num_open().items():
            circuits.add_metric((*values, scope), number)
        for model in large.breaker.open_models()[:MAX_MODELS]:
            models.add_metric((*values, model), 1)
    yield from (*families, breaker, circuits, models)


def _small_models(components: Components) -> Iterator[Metric]:
    """Metrics of the components that run small models or repeat requests."""
    ignored = CounterMetricFamily("brise_gateway_ignored_fields", "Fields of requests that a small model left out.",
                                  labels=("part", "field"))
    for part in (components.fallback, *components.background):
        match part:
            case SmallModelFallback():
                yield _counter("fallback", "Requests that the upstream did not answer.", part.counts, "outcome")
            case Shadow():
                yield _counter("shadow", "Requests that were drawn for the small model.", part.counts, "outcome")
            case Reask():
                yield _counter("reask", "Requests that were sent to the upstream again.", part.counts, "outcome")
            case Reanswer():
                yield _counter("reanswer", "Requests of an outage that were sent again.", part.counts, "outcome")
            case _:
                continue
        if isinstance(part, SmallModelFallback | Shadow):
            for field, number in part.ignored.items():
                ignored.add_metric(("fallback" if isinstance(part, SmallModelFallback) else "shadow", field), number)
    yield ignored


def _remote(remote: RemoteModels) -> Iterator[Metric]:
    """Metrics of the small models behind other servers."""
    available = GaugeMetricFamily("brise_gateway_small_available", "1 if it is known which model a server has.",
                                  labels=("model",))
    changes = CounterMetricFamily("brise_gateway_small_changes", "How often another model was found under a name.",
                                  labels=("model",))
    failures = CounterMetricFamily("brise_gateway_small_failures", "Requests that a server did not answer.",
                                   labels=("model", "code"))
    for name in remote.names():
        available.add_metric((name,), remote.is_available(name))
        changes.add_metric((name,), remote.num_changes(name))
    for (name, code), number in remote.counts.items():
        failures.add_metric((name, code), number)
    yield from (available, changes, failures)


def _capture(capture: Capture) -> Iterator[Metric]:
    stats = capture.stats()
    yield _counter("captured_rows", "Rows that are written and durable.", stats.written)
    yield _counter("capture_dropped_rows", "Rows that could not be written, by reason.", stats.dropped, "reason")
    yield _counter("capture_skipped", "Requests that were not to be written, by reason.",
                   not_written(stats.skipped), "reason")
    yield _counter("capture_retries", "Writes that were tried again.", stats.retries)
    yield GaugeMetricFamily("brise_gateway_capture_waiting_rows", "Rows that wait to be written.",
                            value=stats.waiting)


def _counter(name: str, text: str, value: float | Mapping[str, int], label: str = "") -> CounterMetricFamily:
    full = f"brise_gateway_{name}"
    if not isinstance(value, Mapping):
        return CounterMetricFamily(full, text, value=value)
    family = CounterMetricFamily(full, text, labels=(label,))
    for each, number in value.items():
        family.add_metric((each,), number)
    return family
