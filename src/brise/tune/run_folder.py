"""The folder of a training run: its identity, its log, and checkpoints from which it resumes to the same bits.

    run.json                            settings, digests of base and data
    log.jsonl                           one line a step
    checkpoints/step-00000120/
        tensors.safetensors             the trained tensors and the optimizer state
        state.json                      {"format": 1, "step", "sha256" of the tensors, "state": the trainer's own}
    ngrams.bin                          what trained answers have in common, beside a model that was trained whole
    asked/                              the answers of a teacher at an API, from before there was a run
    made.json                           of which step the adapter or model beside it is
    options.json                        what the run was asked for (kept_options.py)
    .lock                               held while a run goes on

A checkpoint appears whole or not at all; older ones are removed only after that. When a run resumes from a checkpoint,
later lines of the log are dropped, since the run writes them again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from brise.checkpoint.safetensors.file import open_safetensors
from brise.checkpoint.safetensors.write_file import write_file
from brise.errors import CheckpointError, OutputError
from brise.files.atomic import is_part, output_errors, staged_file, staged_folder
from brise.files.fields import Fields, errors_of
from brise.files.json_file import parse_json, read_json
from brise.models.weights import Array

FORMAT = 1
RUN, LOG, CHECKPOINTS, TENSORS, STATE, LOCK, ASKED, MADE = (
    "run.json", "log.jsonl", "checkpoints", "tensors.safetensors", "state.json", ".lock", "asked", "made.json")
_STEP = re.compile(r"step-(\d{8})")
_REMOVED = ".removed"
_MAX_LOG_LINE = 1 << 16

Plain = bool | int | float | str | None


@dataclass(frozen=True)
class Identity:
    """Everything that decides the resulting weights. A run resumes only with the identity that it began with."""

    settings: Mapping[str, Plain]
    base: str  # digests
    data: str


@dataclass(frozen=True)
class TrainingCheckpoint:
    """A run after `step` steps. `state` is JSON of the trainer's own."""

    step: int
    tensors: Mapping[str, Array]
    state: Mapping[str, object]


class RunFolder:
    """A run's folder, locked for as long as it is open; `create` and `reopen` make it."""

    def __init__(self, path: Path, identity: Identity, lock: BinaryIO, num_kept: int) -> None:
        self.path, self.identity = path, identity
        self._lock, self._num_kept = lock, num_kept
        self._log: BinaryIO | None = None

    def save(self, checkpoint: TrainingCheckpoint, best_step: int | None = None) -> None:
        """Writes a checkpoint, then removes all but the last ones and that of `best_step`.

        OutputError (a full disk) leaves the checkpoints before it as they are.
        """
        if self._log is not None:
            with output_errors(self.path / LOG):
                os.fsync(self._log.fileno())
        path = self._path(checkpoint.step)
        if path.exists():
            remove(path)  # left by a run that resumed from an earlier checkpoint
        outgoing = [_Numbers(name, np.ascontiguousarray(array)) for name, array in checkpoint.tensors.items()]
        with staged_folder(path, sum(numbers.nbytes for numbers in outgoing)) as part:
            write_file(part / TENSORS, outgoing)
            state = {"format": FORMAT, "step": checkpoint.step, "sha256": _sha256(part / TENSORS),
                     "state": dict(checkpoint.state)}
            (part / STATE).write_text(json.dumps(state, allow_nan=False, indent=1) + "\n", encoding="utf-8")
        for step in self.steps()[:-self._num_kept]:
            if step != best_step:
                remove(self._path(step))

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        folder = self.path / CHECKPOINTS
        return sorted(int(match[1]) for path in folder.iterdir() if (match := _STEP.fullmatch(path.name)))

    def newest(self) -> TrainingCheckpoint | None:
        """The last checkpoint; None before the first."""
        steps = self.steps()
        return self.read(steps[-1]) if steps else None

    def read(self, step: int) -> TrainingCheckpoint:
        """The checkpoint of a step; CheckpointError says what is wrong with it."""
        path = self._path(step)
        with errors_of(f"{CHECKPOINTS}/{path.name}"):
            fields = Fields(read_json(path / STATE), "")
            if fields.value("format") != FORMAT or fields.integer("step", least=0) != step:
                raise CheckpointError(f"{STATE} is of format {fields.value('format')!r} and step "
                                      f"{fields.value('step')!r}, allowed is {FORMAT} and {step}", field=STATE)
            if _sha256(path / TENSORS) != fields.text("sha256"):
                raise CheckpointError(f"{TENSORS} is damaged: its SHA-256 is not the one in {STATE}", field=TENSORS,
                                      hint=f"remove {path} to go on from the checkpoint before it")
            state = fields.value("state")
            if not isinstance(state, dict):
                raise CheckpointError(f"state of {STATE} is {type(state).__name__}, allowed is an object", field=STATE)
            return TrainingCheckpoint(step, _arrays(path / TENSORS), state)

    def made(self) -> Mapping[str, object] | None:
        """Of which step the adapter or model is that was made last; None if nothing was made, or nothing says."""
        path = self.path / MADE
        return read_json(path) if path.is_file() else None

    def keep_made(self, made: Mapping[str, Plain]) -> None:
        """Keeps of which step the adapter or model is that has been made."""
        path = self.path / MADE
        with output_errors(path):
            path.unlink(missing_ok=True)
        text = json.dumps(dict(made)).encode() + b"\n"
        with staged_file(path, len(text)) as file:
            file.write(text)

    def begin_log(self, step: int) -> None:
        """Opens the log after its line of `step`; later lines are dropped."""
        lines = [line for line in read_log(self.path) if _step_of(line) <= step]
        with output_errors(self.path / LOG):
            text = "".join(json.dumps(line) + "\n" for line in lines).encode()
            with staged_file(self.path / LOG, len(text), replaces=True) as file:
                file.write(text)
            self._log = (self.path / LOG).open("ab", buffering=0)

    def log(self, line: Mapping[str, Plain]) -> None:
        """Appends a line, which has a `step`."""
        assert self._log is not None and "step" in line
        with output_errors(self.path / LOG):
            self._log.write(json.dumps(dict(line), allow_nan=False).encode() + b"\n")

    def close(self) -> None:
        """Releases the folder for another run."""
        if self._log is not None:
            self._log.close()
        self._lock.close()

    def _path(self, step: int) -> Path:
        return self.path / CHECKPOINTS / f"step-{step:08}"


def create(path: Path, identity: Identity, *, num_kept: int = 2) -> RunFolder:
    """A new folder; OutputError if something is there."""
    with output_errors(path):
        if (path / RUN).exists():
            raise OutputError(f"there is a run in {str(path)!r} already",
                              hint="go on with it (--resume), or give another folder (--out)")
        if path.exists() and (not path.is_dir() or any(
                entry.name not in (LOCK, CHECKPOINTS, ASKED) and not is_part(entry.name, RUN)
                for entry in path.iterdir())):
            raise OutputError(f"{str(path)!r} is there already", hint="remove it first, or give another name")
        path.mkdir(exist_ok=True)
        lock = _locked(path)
        (path / CHECKPOINTS).mkdir(exist_ok=True)
    text = json.dumps({"format": FORMAT, "settings": dict(identity.settings), "base": identity.base,
                       "data": identity.data}, allow_nan=False, indent=1).encode() + b"\n"
    try:
        with staged_file(path / RUN, len(text)) as file:
            file.write(text)
    except BaseException:
        lock.close()
        raise
    return RunFolder(path, identity, lock, num_kept)


def reopen(path: Path, *, num_kept: int = 2) -> RunFolder | None:
    """The folder of a run to resume; None if no run was begun there."""
    if not (path / RUN).is_file():
        return None
    with output_errors(path):
        lock = _locked(path)
        (path / CHECKPOINTS).mkdir(exist_ok=True)
    try:
        for left in (path / CHECKPOINTS).glob(".step-*"):  # half written, or half removed
            shutil.rmtree(left, ignore_errors=True)
        return RunFolder(path, read_identity(path), lock, num_kept)
    except BaseException:
        lock.close()
        raise


def read_identity(path: Path) -> Identity:
    """What run.json says."""
    with errors_of(RUN):
        fields = Fields(read_json(path / RUN), "")
        settings = fields.value("settings")
        if fields.value("format") != FORMAT or not isinstance(settings, dict) or not all(
                isinstance(value, Plain) for value in settings.values()):
            raise CheckpointError(f"it is of format {fields.value('format')!r}, or its settings are no plain values; "
                                  f"allowed is {FORMAT}", field="format")
        return Identity(settings, fields.text("base"), fields.text("data"))


def check_same(begun: Identity, asked: Identity) -> None:
    """Raises OutputError, which names the differences, if the run asked for is another one."""
    names = [*begun.settings, *(name for name in asked.settings if name not in begun.settings)]
    differing = [f"{name} was {begun.settings.get(name)}, is {asked.settings.get(name)}" for name in names
                 if begun.settings.get(name) != asked.settings.get(name)]
    differing += [f"the {what} {'was' if what != 'data' else 'were'} {old[:12]}, {'is' if what != 'data' else 'are'} "
                  f"{new[:12]} (SHA-256)" for what, old, new in (
                      ("base model", begun.base, asked.base), ("data", begun.data, asked.data)) if old != new]
    if differing:
        raise OutputError(f"this is another run than the one begun: {'; '.join(differing)}",
                          hint="give what it was begun with, or another folder (--out)")


def read_log(path: Path) -> Iterator[Mapping[str, object]]:
    """The lines of a run's log, without a last one that was cut off."""
    if not (path / LOG).is_file():
        return
    with (path / LOG).open("rb") as file:
        while line := file.readline(_MAX_LOG_LINE):
            if not line.endswith(b"\n"):
                return
            yield parse_json(line, LOG)


@dataclass(frozen=True)
class _Numbers:
    """An array in the form that safetensors.writer takes."""

    name: str
    array: Array

    @property
    def format(self) -> str:
        return {"float32": "F32", "uint8": "U8", "int64": "I64"}[self.array.dtype.name]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def nbytes(self) -> int:
        return int(self.array.nbytes)

    def pieces(self) -> Iterator[Array]:
        yield self.array


def _arrays(path: Path) -> dict[str, Array]:
    file = open_safetensors(path)
    try:
        return {name: file.array(name).copy() for name in file.tensors}
    finally:
        file.close()


def _locked(path: Path) -> BinaryIO:
    file = (path / LOCK).open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise OutputError(f"another brise is training in {str(path)!r}") from None
    return file


def remove(path: Path) -> None:
    """Renames a folder or file first, so that a half-removed one is no checkpoint and no adapter."""
    aside = path.with_name(f".{path.name}{_REMOVED}")
    with output_errors(path):
        for _ in range(2):  # what an earlier try left, then this
            if aside.is_dir():
                shutil.rmtree(aside)
            else:
                aside.unlink(missing_ok=True)
            if path.exists():
                os.rename(path, aside)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot open {path}: {error.strerror}", field="path", value=path) from error


def _step_of(line: Mapping[str, object]) -> int:
    step = line.get("step")
    if type(step) is not int:
        raise CheckpointError(f"a line of {LOG} has the step {step!r}, a number is allowed", field=LOG)
    return step
