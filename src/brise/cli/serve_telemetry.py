"""Options of `brise serve` for OpenTelemetry."""

from __future__ import annotations

import argparse
from urllib.parse import urlsplit

from brise import settings
from brise.cli import terminal
from brise.errors import UnsupportedError
from brise.serve.open_telemetry import TelemetryOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--otel and what belongs to it."""
    parser.add_argument("--otel", action="store_true",
                        help="send traces and metrics to an OpenTelemetry collector over OTLP/HTTP, as the standard "
                             "OTEL_* variables say; needs the extra `otel` (default: nothing is sent)")
    parser.add_argument("--otel-endpoint", metavar="URL",
                        help="the same, to the collector at this base URL (default: OTEL_EXPORTER_OTLP_ENDPOINT, or "
                             "http://localhost:4318)")
    parser.add_argument("--otel-content", action="store_true",
                        help="traces hold what was asked and answered, too (default: they do not)")


def options_of(args: argparse.Namespace) -> TelemetryOptions | None:
    """The telemetry that the command line asks for; None: no traces, no metrics."""
    if not args.otel and args.otel_endpoint is None:
        if args.otel_content:
            raise UnsupportedError("--otel-content needs --otel or --otel-endpoint")
        return None
    if args.otel_endpoint is not None:
        parts = urlsplit(args.otel_endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UnsupportedError(f"--otel-endpoint is {args.otel_endpoint!r}, allowed is http(s)://HOST:PORT",
                                   hint="the base URL of a collector: http://localhost:4318")
    if settings.telemetry().is_disabled:
        terminal.note("OTEL_SDK_DISABLED is true: no traces and metrics are sent")
        return None
    return TelemetryOptions(args.otel_endpoint, args.otel_content)
