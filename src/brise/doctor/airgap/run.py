"""Proves that nothing leaves this machine: the golden path, confined, and every attempt counted."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from brise import settings
from brise.doctor.airgap.golden_path import STEP_NAMES
from brise.doctor.airgap.report import AirgapReport, Confinement, CountedAttempt, WalkedStep
from brise.doctor.airgap.watched import ATTEMPTS, NO_FILTER, NO_NAMESPACE, OPTIONS, STEPS
from brise.doctor.airgap.witness import Attempt
from brise.errors import BriseError, StoreError, UnsupportedError
from brise.hub import pypi
from brise.hub.locate import path_of
from brise.hub.store import ModelStore, is_name
from brise.watch import SILENT, Watcher


@dataclass(frozen=True)
class AirgapOptions:
    """What runs: steps of the golden path on a model, and commands of the user's own."""

    model: str | None = None  # a name of the store, a file or a folder; None: smollm2, or the first of the store
    steps: Sequence[str] = STEP_NAMES
    also: Sequence[str] = ()
    home: Path | None = None  # the model store; None: BRISE_HOME
    confinement: Confinement | None = None  # None: a namespace, or the filter alone where none is allowed


_CONFINEMENTS: Sequence[Confinement] = ("namespace", "seccomp")
_PROBLEMS: Mapping[int, str] = MappingProxyType({
    NO_NAMESPACE: "no network namespace", NO_FILTER: "no seccomp filter that can be answered"})
_GIVEN = "given"  # what a model that is no name of the store is called in the walk


@dataclass(frozen=True)
class _Subject:
    """The model of the golden path: what is pulled, its name, and the home whose store has it already."""

    source: str
    name: str
    shared: Path | None


def airgap(options: AirgapOptions | None = None, watcher: Watcher = SILENT) -> AirgapReport:
    """Runs the golden path, from pull to report, where nothing can leave, and counts what tries to by its destination.

    Everything runs in processes of its own, in a network namespace and under a seccomp filter. Returns the steps, the
    attempts and a `verdict`: "clean", "attempts", "incomplete" where a step failed, "unproven" where this machine
    does not allow the proof.
    """
    options = options or AirgapOptions()
    unknown = [step for step in options.steps if step not in STEP_NAMES]
    if unknown:
        raise UnsupportedError(f"the step {unknown[0]!r} is not known, allowed are {', '.join(STEP_NAMES)}")
    for command in options.also:
        _check_command(command)
    if not options.steps and not options.also:
        raise UnsupportedError("there is nothing to run", hint="give a step or a command")
    if not sys.platform.startswith("linux"):
        return AirgapReport("none", f"system calls can be watched on Linux only, this is {sys.platform}", "", (), ())
    subject = _subject(options.model, options.home or settings.read().home) if options.steps else None
    steps = ["pull"] * (subject is not None and subject.shared is None and "pull" not in options.steps)
    plan = {"source": subject and subject.source, "model": subject and subject.name,
            "shared": str(subject.shared) if subject is not None and subject.shared is not None else None,
            "steps": [*steps, *options.steps], "also": list(options.also), "folder": str(Path.cwd())}
    reasons: list[str] = []
    for confinement in _CONFINEMENTS if options.confinement is None else (options.confinement,):
        with tempfile.TemporaryDirectory(prefix="brise-airgap-") as folder:
            found = _walked(confinement, Path(folder), plan, reasons, watcher)
            if found is not None:
                return found
    return AirgapReport("none", "; ".join(reasons), subject.name if subject is not None else "", (), ())


def _check_command(command: str) -> None:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UnsupportedError(f"the command {command!r} cannot be read: {error}") from error
    if not words:
        raise UnsupportedError(f"the command {command!r} is empty")


def _subject(model: str | None, home: Path) -> _Subject:
    store = ModelStore(home)
    names = store.names()
    if model is None:
        default = pypi.SMOLLM2.name
        if default not in names and pypi.installed(pypi.SMOLLM2) is None:
            if not names:
                raise StoreError("there is no model to try", hint="brise pull smollm2, or give one with --model")
            default = names[0]
        return _Subject(default, default, home if default in names else None)
    if is_name(model) and model in names:
        return _Subject(model, model, home)
    path = path_of(model)
    if not path.exists():
        raise StoreError(f"the model {model!r} is neither in the store nor a file or folder",
                         hint=f"the store has: {', '.join(names)}" if names else "brise pull smollm2")
    return _Subject(str(path.absolute()), _GIVEN, None)


def _walked(confinement: Confinement, folder: Path, plan: Mapping[str, object], reasons: list[str],
            watcher: Watcher) -> AirgapReport | None:
    """The report of a walk; None if it could not be confined so, and the reason is added."""
    (folder / OPTIONS).write_text(json.dumps(plan), encoding="utf-8")
    log = folder / "watched.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "brise.doctor.airgap.watched", confinement, str(folder)], cwd=folder,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace",
            env=settings.direct_environment())
        assert process.stdout is not None, "it is a pipe"
        try:
            with process.stdout:
                for line in process.stdout:
                    watcher.note(line.rstrip())
            status = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    said = log.read_text("utf-8", "replace").strip()
    if status in _PROBLEMS:
        reasons.append(f"{_PROBLEMS[status]}: {said}")
        return None
    if not (folder / ATTEMPTS).is_file():
        raise BriseError(f"the watched process ended with status {status}: {said[-2000:] or 'it said nothing'}")
    return _read(folder, confinement, "; ".join(reasons), str(plan["model"] or ""), status)


def _read(folder: Path, confinement: Confinement, reason: str, model: str, status: int) -> AirgapReport:
    steps = [WalkedStep(**{**row, "commands": tuple(row["commands"])})
             for row in map(json.loads, (folder / STEPS).read_text(encoding="utf-8").splitlines())]
    if status:
        steps.append(WalkedStep("golden path", (), "failed", (folder / "watched.log").read_text("utf-8", "replace")
                                .strip()[-500:] or f"it ended with status {status}", 0.0))
    rows = json.loads((folder / ATTEMPTS).read_text(encoding="utf-8"))
    counted = [CountedAttempt(Attempt(**{name: value for name, value in row.items() if name != "count"}), row["count"])
               for row in rows]
    return AirgapReport(confinement, reason, model, steps, counted)
