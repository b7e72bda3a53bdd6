"""A collector on loopback: takes OTLP over HTTP, and reads its protobuf with OpenTelemetry's own definitions."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.waiting import LIMIT_S, wait_until


class Receiver:
    """What has come. With a `hold`, requests are not answered before it is set."""

    def __init__(self) -> None:
        self.traces: list[ExportTraceServiceRequest] = []
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.hold: threading.Event | None = None
        self.url = ""

    def spans(self) -> list[Span]:
        return [span for request in list(self.traces) for group in request.resource_spans
                for scope in group.scope_spans for span in scope.spans]

    def wait_spans(self, number: int) -> list[Span]:
        wait_until(lambda: len(self.spans()) >= number)
        return self.spans()

    def points(self, name: str) -> list[Any]:
        """The data points of a histogram."""
        return [point for request in list(self.metrics) for group in request.resource_metrics
                for scope in group.scope_metrics for metric in scope.metrics if metric.name == name
                for point in metric.histogram.data_points]

    def as_json(self) -> list[dict[str, Any]]:
        """The traces as a collector's file exporter writes them."""
        return [MessageToDict(request) for request in self.traces]


def attributes(item: Any) -> dict[str, Any]:
    return {each.key: _plain(each.value) for each in item.attributes}


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return [_plain(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, str(kind))


@contextmanager
def receiver() -> Iterator[Receiver]:
    """Runs until the block ends."""
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802 - the library's name
            body = self.rfile.read(int(self.headers["content-length"]))
            body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
            if made.hold is not None:
                made.hold.wait(LIMIT_S)
            if self.path == "/v1/traces":
                made.traces.append(ExportTraceServiceRequest.FromString(body))
            elif self.path == "/v1/metrics":
                made.metrics.append(ExportMetricsServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield made
    finally:
        if made.hold is not None:
            made.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()
