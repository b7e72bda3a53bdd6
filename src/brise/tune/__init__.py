"""Training: an adapter, or a whole model, from examples, on this machine, within a memory limit."""

from __future__ import annotations

from brise.errors import MissingExtraError
from brise.tune.options import TuneOptions
from brise.tune.watch import SilentTuning, TuneResult, TuneWatcher


def run(options: TuneOptions, watcher: TuneWatcher | None = None) -> TuneResult:
    """Trains; with options.dry_run it only reads the data and plans. MissingExtraError if torch is not installed."""
    try:
        # Seconds and hundreds of megabytes: only who trains pays them.
        from brise.tune.training_run import train  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError("torch", "tune", "brise tune") from error
    return train(options, watcher or SilentTuning())
