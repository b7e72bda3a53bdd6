"""Prometheus metrics of one server are kept in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from brise.engine.request import DraftCounts
from brise.engine.stats import EngineStats
from brise.serve.in_flight import RequestStats

# From a short cached prompt to a full context on a small CPU.
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
Reading = tuple[str, str, Callable[[EngineStats], float]]
GAUGES: tuple[Reading, ...] = (
    ("running", "Answers being generated.", lambda stats: stats.running),
    ("waiting", "Answers waiting for their turn.", lambda stats: stats.waiting),
    ("pages", "Pages of the key/value cache.", lambda stats: stats.pages),
    ("pages_free", "Pages that a new request could take.", lambda stats: stats.pages_free),
    ("pages_cached", "Free pages that hold a prefix for reuse.", lambda stats: stats.pages_cached),
    ("cache_bytes", "Size of the key/value cache.", lambda stats: stats.cache_bytes),
    ("adapters", "Adapters in memory.", lambda stats: stats.adapters),
    ("adapter_bytes", "Memory that they take.", lambda stats: stats.adapter_bytes))
COUNTERS: tuple[Reading, ...] = (
    ("steps", "Runs of the model.", lambda stats: stats.steps),
    ("preemptions", "Answers put back because pages ran out.", lambda stats: stats.preemptions),
    ("failures", "Requests that ended in an error.", lambda stats: stats.failures))
DRAFT_COUNTERS: tuple[tuple[str, str, Callable[[DraftCounts], int]], ...] = (
    ("drafted_tokens", "Tokens that were drafted into steps, by the source of the draft.",
     lambda counts: counts.drafted),
    ("accepted_tokens", "Of the drafted tokens, those that the answers kept.", lambda counts: counts.accepted))


class Metrics:
    """The metrics of one server: counters of finished requests, and the state of its engines at each scrape."""

    def __init__(self, stats: Callable[[], Mapping[str, EngineStats]],
                 devices: Callable[[], Mapping[str, str]]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("brise_requests", "Requests answered.", ("endpoint", "status"),
                                 registry=self._registry)
        self._seconds = Histogram("brise_request_seconds", "From request to last byte.", ("endpoint",),
                                  buckets=SECONDS, registry=self._registry)
        self._first = Histogram("brise_first_token_seconds", "From request to first token.", ("model",),
                                buckets=SECONDS, registry=self._registry)
        self._prompt = Counter("brise_prompt_tokens", "Prompt tokens.", ("model",), registry=self._registry)
        self._cached = Counter("brise_cached_prompt_tokens", "Prompt tokens taken from the prefix cache.",
                               ("model",), registry=self._registry)
        self._completion = Counter("brise_completion_tokens", "Tokens generated.", ("model",),
                                   registry=self._registry)
        self._registry.register(_EngineMetrics(stats, devices))

    def record(self, endpoint: str, status: int, seconds: float, stats: RequestStats, model: str | None) -> None:
        """Records a finished request; `model` is the label of the model that answered, None if none did."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)
        if model is None:
            return
        self._prompt.labels(model).inc(stats.prompt_tokens)
        self._cached.labels(model).inc(stats.cached_tokens)
        self._completion.labels(model).inc(stats.completion_tokens)
        if stats.first_token_s is not None:
            self._first.labels(model).observe(stats.first_token_s)

    @property
    def registry(self) -> CollectorRegistry:
        return self._registry

    def forget(self, model: str) -> None:
        """Removes the label of a removed adapter, so that labels do not pile up."""
        for metric in (self._first, self._prompt, self._cached, self._completion):
            metric.remove(model)

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineMetrics(Collector):
    """Reads the engines' statistics at each scrape."""

    def __init__(self, stats: Callable[[], Mapping[str, EngineStats]],
                 devices: Callable[[], Mapping[str, str]]) -> None:
        self._stats, self._devices = stats, devices

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        info = GaugeMetricFamily("brise_engine_info", "1, with what runs the model.", labels=("model", "device"))
        for model, device in self._devices().items():
            info.add_metric((model, device), 1)
        yield info
        for name, help_text, read in GAUGES:
            gauge = GaugeMetricFamily(f"brise_engine_{name}", help_text, labels=("model",))
            for model, each in stats.items():
                gauge.add_metric((model,), read(each))
            yield gauge
        for name, help_text, read in COUNTERS:
            counter = CounterMetricFamily(f"brise_engine_{name}", help_text, labels=("model",))
            for model, each in stats.items():
                counter.add_metric((model,), read(each))
            yield counter
        for name, help_text, count in DRAFT_COUNTERS:
            counter = CounterMetricFamily(f"brise_engine_{name}", help_text, labels=("model", "source"))
            for model, each in stats.items():
                for source, counts in each.drafts.items():
                    counter.add_metric((model, source), count(counts))
            yield counter
