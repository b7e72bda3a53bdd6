"""Spans and metrics of requests, sent over OTLP/HTTP with OpenTelemetry's SDK. Needs the extra `otel`."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from opentelemetry import trace as api
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from brise import __version__, settings
from brise.gateway.trace import SAMPLED, RequestTrace, TraceStep
from brise.serve import span_attributes
from brise.serve.telemetry import TracedRequest

# Boundaries as the conventions have them.
SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKENS = tuple(4**exponent for exponent in range(14))
SCOPE = InstrumentationScope("brise", __version__)
FLUSH_MS = 3000


class OtlpSampler:
    """Says which traces are exported, as OTEL_TRACES_SAMPLER has it."""

    def __init__(self) -> None:
        self._sampler = TracerProvider(shutdown_on_exit=False).sampler

    def is_sampled(self, begun: RequestTrace) -> bool:
        """As OTEL_TRACES_SAMPLER says; by default every trace, but those that the client does not sample."""
        parent = None
        if begun.parent_id is not None:
            flags = TraceFlags(begun.flags)
            parent = api.set_span_in_context(NonRecordingSpan(SpanContext(
                int(begun.trace_id, 16), int(begun.parent_id, 16), is_remote=True, trace_flags=flags)))
        decision = self._sampler.should_sample(parent, int(begun.trace_id, 16), "request").decision
        return decision is Decision.RECORD_AND_SAMPLE


class OtlpExporter:
    """Sends what is recorded; belongs to one thread. The SDK reads the OTEL_* variables."""

    def __init__(self, endpoint: str | None, *, with_content: bool) -> None:
        _silence()
        wanted = settings.telemetry()
        self._with_content, self._resource = with_content, _resource()
        self._spans = OTLPSpanExporter(_under(endpoint, "traces")) if wanted.traces else None
        readers = [PeriodicExportingMetricReader(OTLPMetricExporter(_under(endpoint, "metrics")))] if (
            wanted.metrics) else []
        self._meters = MeterProvider(readers, self._resource, shutdown_on_exit=False)
        meter = self._meters.get_meter("brise", __version__)
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration", "s", "GenAI operation duration.",
            explicit_bucket_boundaries_advisory=SECONDS)
        self._first = meter.create_histogram(
            "gen_ai.client.operation.time_to_first_chunk", "s", "Time to the first chunk of a stream.",
            explicit_bucket_boundaries_advisory=SECONDS)
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage", "{token}", "Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=TOKENS)

    def export(self, requests: Sequence[TracedRequest]) -> int:
        """Measures them and sends their spans; returns how many could not be sent."""
        for request in requests:
            self._measure(request)
        if self._spans is None:
            return 0
        spans = [span for request in requests if request.trace.flags & SAMPLED for span in self._spans_of(request)]
        is_sent = not spans or self._spans.export(spans) is SpanExportResult.SUCCESS
        return 0 if is_sent else len(requests)

    def close(self) -> None:
        self._meters.shutdown(FLUSH_MS)
        if self._spans is not None:
            self._spans.shutdown()  # type: ignore[no-untyped-call]  # the exporter leaves out its type

    def _measure(self, request: TracedRequest) -> None:
        exchange, told_apart = request.exchange, span_attributes.common(request.exchange, request.url)
        error = span_attributes.error_type(exchange)
        self._duration.record(exchange.total_s, told_apart | ({} if error is None else {"error.type": error}))
        if exchange.streamed and exchange.first_token_s is not None:
            self._first.record(exchange.first_token_s, told_apart)
        if exchange.usage is not None:
            for kind, number in (("input", exchange.usage.prompt_tokens), ("output", exchange.usage.completion_tokens)):
                if number is not None:
                    self._tokens.record(number, told_apart | {"gen_ai.token.type": kind})

    def _spans_of(self, request: TracedRequest) -> list[ReadableSpan]:
        trace, exchange = request.trace, request.exchange
        error = span_attributes.error_type(exchange)
        attributes = span_attributes.of_span(exchange, request.url, with_content=self._with_content)
        attributes["brise.upstream.attempts"] = sum(step.is_client for step in trace.steps)
        whole = ReadableSpan(
            f"{attributes['gen_ai.operation.name']} {exchange.model}".strip(), _context(trace, trace.span_id),
            None if trace.parent_id is None else _context(trace, trace.parent_id, is_remote=True), self._resource,
            attributes, kind=SpanKind.CLIENT, status=_status(error), start_time=trace.begun_ns,
            end_time=trace.ended_ns, instrumentation_scope=SCOPE)
        return [whole, *(self._span_of(trace, step, request.url) for step in trace.steps)]

    def _span_of(self, trace: RequestTrace, step: TraceStep, url: str) -> ReadableSpan:
        attributes = step.attributes | (span_attributes.place(url) if step.is_client and url else {})
        if step.error is not None:
            attributes["error.type"] = step.error
        number = [each for each in trace.steps if each.is_client].index(step) if step.is_client else 0
        if number:
            attributes["http.request.resend_count"] = number
        return ReadableSpan(
            step.name, _context(trace, step.span_id), _context(trace, trace.span_id), self._resource, attributes,
            kind=SpanKind.CLIENT if step.is_client else SpanKind.INTERNAL, status=_status(step.error),
            start_time=step.begun_ns, end_time=step.ended_ns or trace.ended_ns, instrumentation_scope=SCOPE)


def _context(trace: RequestTrace, span_id: str, *, is_remote: bool = False) -> SpanContext:
    return SpanContext(int(trace.trace_id, 16), int(span_id, 16), is_remote, TraceFlags(trace.flags))


def _status(error: str | None) -> Status:
    return Status(StatusCode.UNSET) if error is None else Status(StatusCode.ERROR, error)


def _resource() -> Resource:
    """What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say, and brise's own name where they say none."""
    found = Resource.create({"service.version": __version__})
    name = str(found.attributes.get(SERVICE_NAME, ""))
    return found.merge(Resource({SERVICE_NAME: "brise"})) if not name or name.startswith("unknown_service") else found


def _under(endpoint: str | None, signal: str) -> str | None:
    """The URL of a signal under a collector's base URL; None leaves it to the SDK."""
    return None if endpoint is None else f"{endpoint.rstrip('/')}/v1/{signal}"


def _silence() -> None:
    """A collector that is away is counted (brise_otel_dropped_requests), and does not fill the log."""
    logger = logging.getLogger("opentelemetry")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
