"""OpenTelemetry: traces and metrics of requests go to a collector, from a process of its own.

The event loop only puts a finished request into a bounded queue. A thread hands it to the process (otlp_process.py),
which makes spans of it and sends them over OTLP/HTTP. A collector that is slow or away costs no request anything: what
does not fit into the queue, or could not be sent, is dropped and counted. The exporters read the standard OTEL_*
variables themselves.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.types import Scope

from brise.dialects.bodies import Usage
from brise.gateway import trace
from brise.gateway.exchange import local_exchange
from brise.gateway.interfaces import RequestOutcome
from brise.gateway.request import ClientRequest
from brise.gateway.trace import RequestTrace
from brise.serve.in_flight import RequestStats
from brise.serve.key_admission import KeyCaller
from brise.traffic.records import Exchange
from brise.traffic.virtual_keys import LABEL

MOST_WAITING, BATCH = 4096, 256  # requests
EVERY_S = 2.0  # from one sending to the next
END_S = 5.0  # to send what is left at the end


@dataclass(frozen=True)
class TracedRequest:
    """A request that is answered, and where its upstream is."""

    trace: RequestTrace
    exchange: Exchange
    url: str


class Exporter(Protocol):
    """What sends requests to a collector (otlp_process.py)."""

    def is_sampled(self, begun: RequestTrace) -> bool:
        """Whether the trace of a request that begins is to be exported."""
    def export(self, requests: Sequence[TracedRequest]) -> int:
        """Sends them; the number that was not sent."""
    def close(self) -> None: ...


class Telemetry(Collector):
    """Observes the gateway's exchanges. End it with `close`."""

    def __init__(self, exporter: Exporter, urls: Mapping[str, str]) -> None:
        self._exporter, self._urls = exporter, urls
        self._waiting: deque[TracedRequest] = deque()
        self.exported, self.dropped = 0, Counter[str]()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="brise-telemetry", daemon=True)
        self._thread.start()

    def begin(self, headers: trace.RawHeaders) -> RequestTrace:
        """The trace of a request that begins, in that of its client."""
        begun = trace.read(headers)
        begun.flags = trace.SAMPLED if self._exporter.is_sampled(begun) else 0
        return begun

    def observe(self, request: ClientRequest, exchange: Exchange) -> None:
        """Takes an exchange into the queue."""
        if request.trace is not None:
            self._take_in(request.trace, exchange, self._urls.get(request.upstream, ""))

    def observe_local(self, scope: Scope, id: str, status: int, stats: RequestStats) -> None:
        """The same for a request that a model of this server has answered."""
        caller: KeyCaller | None = scope.get("brise.caller")
        usage = Usage(stats.prompt_tokens, stats.completion_tokens, stats.cached_tokens)
        outcome = RequestOutcome("small", status, stats.model, usage=usage, first_token_s=stats.first_token_s)
        exchange = local_exchange(id, scope["path"], outcome, time.monotonic() - stats.started_s,
                                  {} if caller is None else {LABEL: caller.key.name})
        self._take_in(scope["brise.trace"], exchange, "")

    def _take_in(self, begun: RequestTrace, exchange: Exchange, url: str) -> None:
        # The span ends when the client has its answer, and not when the row was made.
        begun.ended_ns = begun.begun_ns + int(exchange.total_s * 1e9)
        with self._changed:
            if self._is_closed or len(self._waiting) >= MOST_WAITING:
                self.dropped["closed" if self._is_closed else "full"] += 1
                return
            self._waiting.append(TracedRequest(begun, exchange, url))
            if len(self._waiting) >= BATCH:
                self._changed.notify_all()

    def close(self) -> None:
        """Sends what waits, for a short time."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(END_S)

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        """How much was exported and dropped, for Prometheus."""
        yield CounterMetricFamily("brise_otel_requests", "Requests whose spans were sent.", value=self.exported)
        dropped = CounterMetricFamily("brise_otel_dropped_requests", "Requests whose spans were not sent, by reason.",
                                      labels=("reason",))
        for reason, number in self.dropped.items():
            dropped.add_metric((reason,), number)
        yield dropped

    def _run(self) -> None:
        is_last = False
        while not is_last:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or len(self._waiting) >= BATCH, EVERY_S)
                is_last = self._is_closed
            while batch := self._take():
                self._export(batch)
        self._exporter.close()

    def _take(self) -> list[TracedRequest]:
        with self._changed:
            return [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]

    def _export(self, batch: Sequence[TracedRequest]) -> None:
        try:
            num_lost = self._exporter.export(batch)
        except Exception:  # of the exporter or of ours: telemetry never ends what it watches
            num_lost = len(batch)
        with self._changed:
            self.exported += len(batch) - num_lost
            if num_lost:
                self.dropped["unreachable"] += num_lost
