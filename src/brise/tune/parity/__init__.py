"""Whether the model that is served says what the model that was trained says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from brise.errors import MissingExtraError
from brise.tune.parity.endpoint import EndpointReport
from brise.tune.parity.options import ParityOptions
from brise.tune.parity.parity import ParityReport
from brise.watch import SILENT, Watcher


def run(options: ParityOptions, watcher: Watcher = SILENT) -> ParityReport:
    """Replays held-out rows through both. MissingExtraError if torch is not installed."""
    with _torch():
        # Seconds and hundreds of megabytes: only who compares pays them.
        from brise.tune.parity.replay import compare_models  # noqa: PLC0415
    return compare_models(options, watcher)


def run_endpoint(options: ParityOptions, watcher: Watcher = SILENT) -> EndpointReport:
    """Asks the server of `options.endpoint` and compares. MissingExtraError if torch is not installed."""
    with _torch():
        from brise.tune.parity.replay import compare_server  # noqa: PLC0415
    return compare_server(options, watcher)


@contextmanager
def _torch() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError("torch", "tune", "brise parity") from error
