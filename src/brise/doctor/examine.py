"""Examines this machine and what brise keeps on it. Nothing is changed, and nothing is contacted unless asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brise import settings
from brise.doctor import machine, parts, reach, stores
from brise.doctor.findings import DoctorReport


@dataclass(frozen=True)
class DoctorOptions:
    """What is looked at beside the machine."""

    store: str | None = None  # of traffic: a path or postgresql://...; None: the one in the home
    digests: bool = False  # read every model of the store, and compare its SHA-256
    reach: Sequence[str] | None = None  # URLs to ask; empty: the package index. None: nothing is contacted
    home: Path | None = None  # None: BRISE_HOME


def doctor(options: DoctorOptions | None = None) -> DoctorReport:
    """Examines versions, processor, memory, disks, stores, keys, models, extras and chat templates.

    Returns the findings; `failures` has those that keep brise from working or are unsafe.
    """
    options = options or DoctorOptions()
    home = options.home or settings.read().home
    findings = [*machine.examine(home), *stores.examine(home, options.store, digests=options.digests), *parts.examine()]
    if options.reach is not None:
        findings += reach.examine(options.reach, options.store)
    return DoctorReport(findings)
