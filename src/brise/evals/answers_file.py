"""The file of answers: it grows by whole lines, and an interrupted run continues it.

line 1     {"brise_eval": 1, "system": "smollm2", "settings": {...}}
others     {"id": digest of the example, "place": "valid.jsonl:7", "answer": {...}}

A last line without a line break is left by a crash: it is cut off, and its example is asked again.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from brise.errors import OutputError
from brise.evals.data import as_json
from brise.evals.example import AnsweredCall, EvalAnswer, EvalExample
from brise.files.atomic import output_errors, private

VERSION = 1


@dataclass(frozen=True)
class SavedAnswers:
    """The content of a file: whose answers, under which settings, and the answers by the digest of their example."""

    system: str
    settings: Mapping[str, object]
    answers: Mapping[str, EvalAnswer]


class AnswersFile:
    """A file open for appending; `continued` makes it."""

    def __init__(self, file: BinaryIO, answers: Mapping[str, EvalAnswer]) -> None:
        self._file, self.answers = file, answers

    def append(self, example: EvalExample, answer: EvalAnswer) -> None:
        """Appends one line, in one write."""
        self._file.write(_line({"id": example.digest, "place": example.place, "answer": as_json(answer)}))
        self._file.flush()


@contextmanager
def continued(path: Path, system: str, settings: Mapping[str, object]) -> Iterator[AnswersFile]:
    """Opens the file with its answers, or a new one. OutputError if its settings differ from these."""
    with output_errors(path), open(path, "ab+", opener=private) as file:
        _lock(file, path)
        file.seek(0)
        whole = _whole_lines(file.read())
        file.truncate(len(whole))
        answers: Mapping[str, EvalAnswer] = {}
        if whole:
            saved = _parsed(whole, path)
            _check_same(saved, settings, path)
            answers = saved.answers
        else:
            file.write(_line({"brise_eval": VERSION, "system": system, "settings": dict(settings)}))
            file.flush()
        yield AnswersFile(file, answers)


def read(path: Path) -> SavedAnswers:
    """The answers of an earlier run."""
    try:
        return _parsed(_whole_lines(path.read_bytes()), path)
    except OSError as error:
        raise OutputError(f"cannot read {str(path)!r}: {error.strerror}") from None


def _parsed(data: bytes, path: Path) -> SavedAnswers:
    answers: dict[str, EvalAnswer] = {}
    try:
        head, *rows = [json.loads(line) for line in data.splitlines()]
        if head["brise_eval"] != VERSION:
            raise ValueError(f"it is of version {head['brise_eval']!r}, {VERSION} is known")
        for row in rows:
            answers[row["id"]] = _answer(row["answer"])
        return SavedAnswers(head["system"], head["settings"], answers)
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{str(path)!r} is no file of answers of brise eval: {error}",
                          hint="give a name of a file that is not there yet") from None


def _answer(row: Mapping[str, Any]) -> EvalAnswer:
    fields = {**row}
    calls = tuple(AnsweredCall(call["name"], call["arguments"]) for call in fields.pop("calls", []))
    return EvalAnswer(calls=calls, **fields)


def _check_same(saved: SavedAnswers, settings: Mapping[str, object], path: Path) -> None:
    for name in sorted(saved.settings.keys() | settings.keys()):
        before, wanted = saved.settings.get(name), settings.get(name)
        if before != json.loads(json.dumps(wanted)):
            raise OutputError(f"{str(path)!r} has answers with {name} {before!r}, this run has {wanted!r}",
                              hint="give another --out, or the same settings")


def _whole_lines(data: bytes) -> bytes:
    return data[:data.rfind(b"\n") + 1]


def _line(value: Mapping[str, object]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(f"another brise is writing {str(path)!r}") from None
