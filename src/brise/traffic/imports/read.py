"""Imports files of other systems as exchanges: all of them, or none and a list of what is wrong in which line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from brise.errors import EvidenceError, RequestError
from brise.files import tables
from brise.text.json_text import Json, parse_json
from brise.traffic.imports import batches, langfuse, litellm, openai_files, otel
from brise.traffic.imports.row import BadRowError, ImportedRow, PassedOverError
from brise.traffic.records import Exchange

Format = Literal["auto", "openai", "batch", "litellm", "langfuse", "otel"]
Made = Iterable[tuple[ImportedRow, Exchange | BadRowError | PassedOverError]]
READERS: Mapping[str, Callable[[Sequence[ImportedRow]], Made]] = {
    "openai": openai_files.read, "batch": batches.read, "litellm": litellm.read, "langfuse": langfuse.read,
    "otel": otel.read}
# In this order; what is none of them is read as OpenAI's.
MARKS: Mapping[str, Callable[[Mapping[str, Json]], bool]] = {
    "otel": otel.is_row, "batch": batches.is_row, "litellm": litellm.is_row, "langfuse": langfuse.is_row}
SUFFIXES = (".jsonl", ".json", ".csv")
NUM_SHOWN = 20


@dataclass
class ImportedRows:
    """What the files hold. `passed_over` rows are no requests to a model, such as spans of a database."""

    exchanges: list[Exchange] = field(default_factory=list)
    passed_over: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)  # place, reason


class BadFileError(EvidenceError):
    """Some rows cannot be imported; `bad` lists them all."""

    def __init__(self, found: ImportedRows) -> None:
        lines = [f"  {place}: {reason}" for place, reason in found.bad[:NUM_SHOWN]]
        more = [f"  and {len(found.bad) - NUM_SHOWN} more"] if len(found.bad) > NUM_SHOWN else []
        super().__init__("\n".join([f"{len(found.bad)} of {len(found.bad) + len(found.exchanges)} rows cannot be "
                                    "imported, and nothing was:", *lines, *more]),
                         hint="mend them, or leave them out with --skip-bad")
        self.bad = tuple(found.bad)


def read(paths: Sequence[Path], format: Format = "auto") -> ImportedRows:
    """All exchanges in these files, in the order of time. They are read together, because a batch has two files."""
    found, rows = ImportedRows(), list[ImportedRow]()
    for path in paths:
        if path.suffix.lower() not in SUFFIXES:
            raise EvidenceError(f"{str(path)!r} is of no kind that is read; allowed are {', '.join(SUFFIXES)}")
        try:
            rows += _rows(path, found)
        except OSError as error:
            raise EvidenceError(f"cannot read {str(path)!r}: {error.strerror}") from None
    if not rows and not found.bad:
        raise EvidenceError(f"there is no row in {', '.join(map(str, paths))}")
    for name, reader in READERS.items():
        for row, made in reader([row for row in rows if _wanted(row, format) == name]):
            match made:
                case Exchange():
                    found.exchanges.append(made)
                case BadRowError():
                    found.bad.append((row.place, str(made)))
                case PassedOverError():
                    found.passed_over += 1
    found.exchanges.sort(key=lambda exchange: (exchange.at_s, exchange.id))
    return found


def _rows(path: Path, found: ImportedRows) -> Iterator[ImportedRow]:
    at_s = path.stat().st_mtime
    for number, (place, value) in enumerate(_values(path)):
        if isinstance(value, dict):
            # Rows without a time keep their order: a millisecond apart, from the file's own time on.
            yield ImportedRow(value, f"{path}{place}", at_s + number / 1000, path.stem, str(path))
        else:
            found.bad.append((f"{path}{place}", value if isinstance(value, str) else "it is no JSON object"))


def _wanted(row: ImportedRow, format: Format) -> str:
    """The reader of a row. OpenAI's files may hold batches."""
    if format == "openai":
        return "batch" if batches.is_row(row.value) else "openai"
    return _format(row) if format == "auto" else format


def _format(row: ImportedRow) -> str:
    """The format whose own marks a row has."""
    return next((name for name, is_row in MARKS.items() if is_row(row.value)), "openai")


def _values(path: Path) -> Iterator[tuple[str, Json]]:
    """Values with their place in the file; a text in place of a value says why it cannot be read."""
    if path.suffix.lower() == ".csv":
        yield from _table(path)
        return
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if path.suffix.lower() == ".json":
        try:
            value = parse_json(data, "the file", mend=True)
        except RequestError:
            pass  # some of these files hold several values, one a line
        else:
            yield from _unpacked(value)
            return
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            try:
                value = parse_json(line, "the row", mend=True)
                yield f":{number}", value if isinstance(value, dict) else "it is no JSON object"
            except RequestError as error:
                yield f":{number}", str(error)


def _unpacked(value: Json) -> Iterator[tuple[str, Json]]:
    """A file that is one value: a list of rows, a page of an interface's answer ({"data": [...]}), or one row."""
    rows = value.get("data") if isinstance(value, dict) and isinstance(value.get("data"), list) else value
    if isinstance(rows, list):
        yield from ((f", entry {number}", row) for number, row in enumerate(rows, 1))
    else:
        yield "", rows


def _table(path: Path) -> Iterator[tuple[str, Json]]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        header: list[str] | None = None
        for line, cells in tables.records(file):
            if isinstance(cells, str):
                yield f":{line}", cells
            elif header is None:
                header = cells
            elif len(cells) != len(header):
                yield f":{line}", f"it has {len(cells)} cells, the table {len(header)} columns"
            else:
                yield f":{line}", {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
