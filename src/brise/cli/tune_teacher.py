"""The options of `brise tune` about an open teacher, and its rows: what it predicts for every token that is learned."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from brise import settings
from brise.backends import open_planner
from brise.checkpoint.adapters import lineage
from brise.checkpoint.adapters.peft import WEIGHTS_FILE, read_adapter
from brise.checkpoint.open import Checkpoint, open_checkpoint
from brise.cli import chat_options, number_types, progress_bar
from brise.data.example import EncodedRow, Teacher
from brise.data.prepare import DataOptions
from brise.errors import UnsupportedError
from brise.files.digests import file_digest
from brise.hub.store import ModelStore, locate
from brise.models.weights import place
from brise.text.load import Tokens, tokens_for
from brise.tune.distill import prompt_distillation, teacher
from brise.tune.distill.teacher import Recording
from brise.tune.parity.served import NativeSide
from brise.tune.recipe import Direction

if TYPE_CHECKING:
    from brise.tune.run_folder import Plain

TOP = 32
FOLDER = "teacher"  # of a run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--teacher and what belongs to it."""
    parser.add_argument("--teacher", metavar="MODEL",
                        help="learn from what this model predicts: a name, a .gguf file, or a folder; it must have the "
                             "same tokens")
    parser.add_argument("--teacher-adapter", metavar="FOLDER", type=Path, help="an adapter of the teacher")
    parser.add_argument("--teacher-top", metavar="K", type=chat_options.count, default=TOP,
                        help=f"likeliest tokens of the teacher that are recorded (default: {TOP})")
    parser.add_argument("--teacher-weight", metavar="SHARE", type=number_types.share, default=1.0,
                        help="of its predictions in the loss; the rest is cross entropy (default: 1)")
    parser.add_argument("--teacher-temperature", metavar="T", type=float, default=1.0,
                        help="temperature at which both are compared (default: 1)")
    parser.add_argument("--teacher-divergence", choices=("forward", "reverse"),
                        help="forward: KL(teacher || student), the student covers what the teacher says; reverse: "
                             "KL(student || teacher), it keeps to what the teacher would say (default: forward, with "
                             "--on-policy reverse)")


def direction_of(args: argparse.Namespace) -> Direction:
    """Which way the divergence is taken."""
    usual: Direction = "reverse" if args.on_policy else "forward"
    given: Direction | None = args.teacher_divergence
    return given or usual


def settings_of(args: argparse.Namespace) -> dict[str, Plain]:
    """What of the teacher decides about the weights that come out."""
    if args.teacher is None:
        for name, value in (("--teacher-adapter", args.teacher_adapter),
                            ("--teacher-divergence", args.teacher_divergence)):
            if value is not None:
                raise UnsupportedError(f"{name} needs --teacher MODEL")
        return {}
    located = locate(args.teacher, ModelStore(settings.read().home))
    own: dict[str, Plain] = {"teacher": lineage.base_digest(located), "teacher_top": args.teacher_top}
    if args.teacher_adapter is not None:
        own["teacher_adapter"] = file_digest(args.teacher_adapter / WEIGHTS_FILE)
    return own


@dataclass(frozen=True)
class OpenTeacher:
    """A teacher that is asked now and then, and in memory only while it is; `folder` keeps what it said."""

    checkpoint: Checkpoint
    recording: Recording
    adapter: Path | None
    digest: str
    folder: Path
    threads: int

    def says(self, rows: Sequence[EncodedRow], progress: Callable[[int], None]) -> list[Teacher]:
        """What it predicts for each row's targets, its own rows."""
        backend, config = open_planner(self.threads), self.checkpoint.config
        side = NativeSide.of(backend, config, place(self.checkpoint.weights(), backend.place))
        self.checkpoint.forget()
        if self.adapter is not None:
            side = side.with_adapter(read_adapter(self.adapter, config).low_ranks)
        return teacher.recorded(side, rows, self.recording, self.folder, self.digest, progress)


@dataclass(frozen=True)
class Opened:
    """A teacher whose tokens are the student's; of its weights nothing is read yet."""

    checkpoint: Checkpoint
    tokens: Tokens
    recording: Recording


def opened(args: argparse.Namespace, tokens: Tokens, rows: Sequence[EncodedRow]) -> Opened | None:
    """The teacher that is asked for, before anything of the run is written; UnsupportedError if it cannot teach."""
    if args.teacher is None:
        return None
    if (seen := next((row for row in rows if row.images), None)) is not None:
        raise UnsupportedError(f"{seen.place} has an image, and a teacher is asked about text only",
                               hint="leave rows with images out, or learn from the teacher's texts")
    checkpoint = open_checkpoint(locate(args.teacher, ModelStore(settings.read().home)).path)
    own = tokens_for(checkpoint)
    recording = Recording(teacher.shared_tokens(tokens.tokenizer, own.tokenizer), args.teacher_top,
                          args.teacher_temperature)
    return Opened(checkpoint, own, recording)


def ready(args: argparse.Namespace, found: Opened, folder: Path, threads: int,
          known: Mapping[str, Plain]) -> OpenTeacher:
    """The teacher, to be asked."""
    digest = f"{known['teacher']} {known.get('teacher_adapter', '')}"
    return OpenTeacher(found.checkpoint, found.recording, args.teacher_adapter, digest, folder / FOLDER, threads)


def own_rows(args: argparse.Namespace, found: Opened, rows: Sequence[EncodedRow],
             options: DataOptions) -> list[EncodedRow]:
    """For each of the student's rows the teacher's, which has the same answers."""
    return prompt_distillation.aligned(rows, prompt_distillation.teacher_rows(args.data, found.tokens, replace(options,
                                                                                                               skip_bad=True)))


def taught(asked: OpenTeacher, rows: Sequence[EncodedRow], own: Sequence[EncodedRow]) -> list[EncodedRow]:
    """The rows with what the teacher says of them; `own` are the teacher's rows beside them."""
    with progress_bar.bar("asking the teacher", len(rows), "rows") as advance:
        return teacher.taught(rows, asked.says(own, advance))
