"""Telemetry is opened here for a server, if it is asked for: OpenTelemetry is an extra."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from brise.errors import MissingExtraError
from brise.serve.telemetry import Telemetry


@dataclass(frozen=True)
class TelemetryOptions:
    """Traces and metrics of a server, for OpenTelemetry.

    Attributes:
        endpoint: The base URL of a collector, such as http://localhost:4318. None: what the OTEL_* variables say.
        content: Whether traces hold what was asked and answered.
    """

    endpoint: str | None = None
    content: bool = False


@contextmanager
def open_telemetry(options: TelemetryOptions | None, urls: Mapping[str, str]) -> Iterator[Telemetry | None]:
    """The telemetry of a server whose upstreams have these URLs, by name; None without options. What waits is sent
    at the end. MissingExtraError without the extra.
    """
    if options is None:
        yield None
        return
    try:
        from brise.serve.otlp_process import ExportProcess  # noqa: PLC0415, OpenTelemetry is an extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        raise MissingExtraError("opentelemetry-sdk", "otel", "OpenTelemetry") from None
    exporter = ExportProcess(options.endpoint, with_content=options.content)
    try:
        telemetry = Telemetry(exporter, urls)
        try:
            yield telemetry
        finally:
            telemetry.close()
    finally:
        exporter.end()


