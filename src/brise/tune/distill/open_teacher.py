"""An open teacher: its rows for the student's, and its predictions for every token that is learned.

A teacher reads a conversation in its own chat format, and with the system prompt that the student is trained to do
without (prompt distillation, data/system_prompts.py). Both share the answers, for which its predictions are recorded
(teacher.py). Needs the extra `tune`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from brise import settings
from brise.backends import open_planner
from brise.checkpoint.adapters import lineage
from brise.checkpoint.adapters.merge import rows_of
from brise.checkpoint.adapters.peft import WEIGHTS_FILE, read_adapter
from brise.checkpoint.open import Checkpoint, open_checkpoint
from brise.data.example import EncodedRow, Teacher
from brise.data.prepare import DataOptions, prepare
from brise.errors import EvidenceError, UnsupportedError
from brise.files.digests import file_digest
from brise.hub.locate import find_model
from brise.models.weights import place
from brise.text.load import Tokens, tokens_for
from brise.tune.distill import teacher
from brise.tune.distill.teacher import Recording
from brise.tune.options import TeacherOptions
from brise.tune.parity.served import NativeSide
from brise.tune.run_folder import Plain
from brise.watch import Watcher

FOLDER = "teacher"  # of a run


@dataclass(frozen=True)
class OpenedTeacher:
    """A teacher with the student's vocabulary, of whose weights nothing has been read."""

    checkpoint: Checkpoint
    tokens: Tokens
    recording: Recording
    adapter: Path | None


@dataclass(frozen=True)
class OpenTeacher:
    """A teacher that is in memory only while it predicts; `folder` keeps its predictions."""

    checkpoint: Checkpoint
    recording: Recording
    adapter: Path | None
    digest: str
    folder: Path
    threads: int

    def predict(self, rows: Sequence[EncodedRow], progress: Callable[[int], None]) -> list[Teacher]:
        """Its predictions for the targets of each row, which are its own rows."""
        backend, config = open_planner(self.threads), self.checkpoint.config
        side = NativeSide.of(backend, config, place(self.checkpoint.weights(), backend.place))
        self.checkpoint.forget()
        if self.adapter is not None:
            base = rows_of(self.checkpoint.weights())
            side = side.with_adapter(read_adapter(self.adapter, config, base).low_ranks)
        return teacher.recorded(side, rows, self.recording, self.folder, self.digest, progress)


def settings_of(options: TeacherOptions | None) -> dict[str, Plain]:
    """The settings of the teacher that decide the resulting weights."""
    if options is None:
        return {}
    located = find_model(options.model, settings.read())
    own: dict[str, Plain] = {"teacher": lineage.base_digest(located), "teacher_top": options.top}
    if options.adapter is not None:
        own["teacher_adapter"] = file_digest(options.adapter / WEIGHTS_FILE)
    return own


def opened(options: TeacherOptions | None, tokens: Tokens, rows: Sequence[EncodedRow]) -> OpenedTeacher | None:
    """Opens the teacher, before anything of the run is written; UnsupportedError if it cannot teach."""
    if options is None:
        return None
    if (seen := next((row for row in rows if row.images), None)) is not None:
        raise UnsupportedError(f"{seen.place} has an image, and a teacher is asked about text only",
                               hint="leave rows with images out, or learn from the teacher's texts")
    checkpoint = open_checkpoint(find_model(options.model, settings.read()).path)
    own = tokens_for(checkpoint)
    recording = Recording(teacher.shared_tokens(tokens.tokenizer, own.tokenizer), options.top, options.temperature)
    return OpenedTeacher(checkpoint, own, recording, options.adapter)


def ready(opened_: OpenedTeacher, folder: Path, threads: int, known: Mapping[str, Plain]) -> OpenTeacher:
    """The teacher, ready to predict; `known` are the settings of the run."""
    digest = f"{known['teacher']} {known.get('teacher_adapter', '')}"
    return OpenTeacher(opened_.checkpoint, opened_.recording, opened_.adapter, digest, folder / FOLDER, threads)


def taught(asked: OpenTeacher, rows: Sequence[EncodedRow], own: Sequence[EncodedRow],
           watcher: Watcher) -> list[EncodedRow]:
    """The rows with the teacher's predictions; `own` are the teacher's rows for them."""
    with watcher.progress("asking the teacher", len(rows), "rows") as advance:
        return teacher.taught(rows, asked.predict(own, advance))


def own_rows(data: Sequence[Path], opened_: OpenedTeacher, rows: Sequence[EncodedRow],
             options: DataOptions) -> list[EncodedRow]:
    """The teacher's row, with the same answers, for each of the student's rows."""
    return aligned(rows, teacher_rows(data, opened_.tokens, replace(options, skip_bad=True)))


def teacher_rows(paths: Sequence[Path], tokens: Tokens, options: DataOptions) -> tuple[EncodedRow, ...]:
    """The rows of the same files as the teacher reads them, with system prompts and of any length."""
    whole = replace(options, absorb_system=False, max_tokens=None, allow_leakage=True, held_out_share=0.0,
                    held_out_count=None)  # the teacher's split may differ from the student's
    dataset = prepare(paths, tokens, whole)
    return (*dataset.train, *dataset.held_out)


def aligned(students: Sequence[EncodedRow], teachers: Sequence[EncodedRow]) -> list[EncodedRow]:
    """The teacher's row with the same answers for each of the student's; EvidenceError names a row without one."""
    by_place: dict[str, list[EncodedRow]] = {}
    for row in teachers:
        by_place.setdefault(row.place, []).append(row)
    own: dict[str, list[EncodedRow]] = {}
    for row in students:
        own.setdefault(row.place, []).append(row)
    teachers_rows = []
    for row in students:
        mine, theirs = own[row.place], by_place.get(row.place, [])
        if len(mine) != len(theirs):
            raise EvidenceError(f"{row.place} makes {len(mine)} rows for the student and {len(theirs)} for the teacher",
                                hint="their chat formats differ in what they keep of a conversation; learn from texts")
        other = theirs[next(index for index, candidate in enumerate(mine) if candidate is row)]
        if not np.array_equal(row.tokens[row.is_target], other.tokens[other.is_target]):
            raise EvidenceError(f"{row.place} has other answer tokens for the teacher than for the student",
                                hint="their chat formats end an answer differently; learn from texts")
        teachers_rows.append(other)
    return teachers_rows
