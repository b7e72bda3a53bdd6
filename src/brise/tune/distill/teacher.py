"""Recording an open teacher's predictions for every token that the student learns: once, in a folder.

The folder has one DIGEST.safetensors for every few rows: `tokens` (N, K) int32 and `logprobs` (N, K) float32, for the
targets of all these rows, concatenated. DIGEST covers the teacher, how it was recorded, and the rows, so that earlier
recordings are found again whatever happened to the rest.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from brise.checkpoint.safetensors.file import open_safetensors
from brise.checkpoint.safetensors.write_file import write_file
from brise.data.example import EncodedRow, Teacher
from brise.errors import CheckpointError, UnsupportedError
from brise.files.atomic import output_errors
from brise.models.weights import Array
from brise.text.protocols import TextTokenizer
from brise.tune.packing import pack
from brise.tune.parity.served import ParitySide, groups, pieces

SHARD_ROWS = 64  # at most so many rows are recorded again after a run was killed

Progress = Callable[[int], None]  # rows done


@dataclass(frozen=True)
class Recording:
    """How a teacher is recorded: the `k` most likely tokens of a softmax at `temperature`.

    `num_tokens` is the size of the shared vocabulary; a model may have more rows than its tokenizer has tokens.
    """

    num_tokens: int
    k: int = 32
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.num_tokens:
            raise UnsupportedError(f"{self.k} tokens of the teacher are asked for; allowed are 1 to {self.num_tokens}")
        if not self.temperature > 0:
            raise UnsupportedError(f"the teacher's temperature is {self.temperature:g}; it must be over 0")


def shared_tokens(student: TextTokenizer, teacher: TextTokenizer) -> int:
    """The number of tokens of both; UnsupportedError unless every token is the same text for both."""
    if student.vocab_size != teacher.vocab_size:
        raise UnsupportedError(
            f"the student has {student.vocab_size} tokens and the teacher {teacher.vocab_size}: what one says of a "
            "token means nothing to the other", hint="take a teacher of the student's family, or learn from its texts")
    for token in range(student.vocab_size):
        own, other = (tokenizer.token_bytes(token, show_control=True) for tokenizer in (student, teacher))
        if own != other or student.is_control(token) != teacher.is_control(token):
            raise UnsupportedError(
                f"token {token} is {student.token_text(token)!r} for the student and {teacher.token_text(token)!r} for "
                "the teacher", hint="take a teacher of the student's family, or learn from its texts")
    return student.vocab_size


def taught(rows: Sequence[EncodedRow], teachers: Sequence[Teacher]) -> list[EncodedRow]:
    """The rows with their teacher's predictions."""
    for row, teacher in zip(rows, teachers, strict=True):
        assert len(teacher.tokens) == row.num_targets, row.place
    return [replace(row, teacher=teacher) for row, teacher in zip(rows, teachers, strict=True)]


def record(side: ParitySide, rows: Sequence[EncodedRow], recording: Recording) -> Iterator[Teacher]:
    """The teacher's predictions for each row's targets."""
    for row in rows:
        if row.images:
            raise UnsupportedError(f"{row.place} has an image; teachers are recorded on text only")
        if len(row.tokens) > side.config.max_context:
            raise UnsupportedError(f"{row.place} has {len(row.tokens)} tokens, the teacher's context holds "
                                   f"{side.config.max_context}", hint="leave out long rows: --max-tokens")
    for group in groups(rows):
        packed = pack(group, shares=False)
        hidden_RD = side.hidden(packed.batch)
        parts = [_most_likely(side.logits(hidden_RD[piece]), recording)
                 for piece in pieces(len(hidden_RD), side.config.vocab_size)]
        nothing = (np.zeros((0, recording.k), np.int32), np.zeros((0, recording.k), np.float32))
        tokens_NK, logprobs_NK = (np.concatenate(part) for part in zip(nothing, *parts, strict=True))
        ends = np.cumsum([row.num_targets for row in group])[:-1]
        for both in zip(np.split(tokens_NK, ends), np.split(logprobs_NK, ends), strict=True):
            yield Teacher(*both)


def recorded(side: ParitySide, rows: Sequence[EncodedRow], recording: Recording, folder: Path, digest: str,
             progress: Progress = lambda count: None) -> list[Teacher]:
    """As `record`, but read from the folder where it was recorded before. `digest` identifies the teacher."""
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    teachers: list[Teacher] = []
    for first in range(0, len(rows), SHARD_ROWS):
        shard = rows[first:first + SHARD_ROWS]
        path = folder / f"{_digest(shard, recording, digest)}.safetensors"
        shard_teachers = _read(path, shard, recording)
        if shard_teachers is None:
            shard_teachers = list(record(side, shard, recording))
            _write(path, shard_teachers)
        teachers += shard_teachers
        progress(len(shard))
    return teachers


def _most_likely(logits_RV: Array, recording: Recording) -> tuple[Array, Array]:
    """Tokens and log-probabilities (R, k), most likely first; ties go to the lower token."""
    scores_RV = logits_RV[:, :recording.num_tokens].astype(np.float32) / np.float32(recording.temperature)
    tokens_RK = np.sort(np.argpartition(-scores_RV, recording.k - 1, axis=1)[:, :recording.k], axis=1)
    best_RK = np.take_along_axis(scores_RV, tokens_RK, 1)
    order_RK = np.argsort(-best_RK, axis=1, kind="stable")
    tokens_RK, best_RK = (np.take_along_axis(x, order_RK, 1) for x in (tokens_RK, best_RK))
    sums_R1 = np.exp(scores_RV - best_RK[:, :1]).sum(axis=1, dtype=np.float64, keepdims=True)
    return tokens_RK.astype(np.int32), (best_RK - best_RK[:, :1] - np.log(sums_R1)).astype(np.float32)


def _digest(rows: Sequence[EncodedRow], recording: Recording, digest: str) -> str:
    own = hashlib.sha256(f"{digest} {recording.num_tokens} {recording.k} {recording.temperature!r}".encode())
    for row in rows:
        own.update(len(row.tokens).to_bytes(8, "little"))
        own.update(row.tokens.astype("<i4").tobytes() + row.is_target.tobytes())
    return own.hexdigest()[:40]


@dataclass(frozen=True)
class _Array:
    """An array in the form that safetensors.writer takes."""

    name: str
    format: str
    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.array.shape
        return shape

    @property
    def nbytes(self) -> int:
        return int(self.array.nbytes)

    @property
    def pieces(self) -> Callable[[], Iterator[Array]]:
        return lambda: iter([self.array])


def _write(path: Path, teachers: Sequence[Teacher]) -> None:
    """Writes the whole file or none."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    with output_errors(path):
        write_file(part, [_Array("tokens", "I32", np.concatenate([teacher.tokens for teacher in teachers])),
                          _Array("logprobs", "F32", np.concatenate([teacher.logprobs for teacher in teachers]))])
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.rename(part, path)


def _read(path: Path, rows: Sequence[EncodedRow], recording: Recording) -> list[Teacher] | None:
    """None if there is no such file."""
    if not path.exists():
        return None
    ends = np.cumsum([row.num_targets for row in rows])
    file = open_safetensors(path)
    try:
        shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
        if shapes != dict.fromkeys(("tokens", "logprobs"), (int(ends[-1]), recording.k)):
            raise CheckpointError(f"{str(path)!r} is no recording of a teacher: it has {shapes}", field="tokens",
                                  hint="remove the file")
        tokens, logprobs = (np.array(file.array(name)) for name in ("tokens", "logprobs"))
    finally:
        file.close()
    if not (((tokens >= 0) & (tokens < recording.num_tokens)).all() and (logprobs <= 0).all()):
        raise CheckpointError(f"{str(path)!r} is damaged: its numbers are no tokens and log-probabilities",
                              field="logprobs", hint="remove the file")
    return [Teacher(*both) for both in zip(np.split(tokens, ends[:-1]), np.split(logprobs, ends[:-1]), strict=True)]
