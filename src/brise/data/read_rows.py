"""Reading data files: chat JSONL, prompt and completion as JSONL, CSV with named columns; files or folders.

Every row is checked before anything is trained. A bad row is kept with its file, its line and the reason.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from brise.data.example import TrainingExample
from brise.data.left_out import LeftOut, LeftOutError
from brise.data.parse_row import RowRules, parse_row
from brise.errors import BriseError, EvidenceError, RequestError
from brise.files import tables
from brise.text.json_text import Json, parse_json

SUFFIXES = (".jsonl", ".csv")
NUM_SHOWN = 20


@dataclass(frozen=True)
class Columns:
    """The column names of a CSV file."""

    prompt: str = "prompt"
    completion: str = "completion"
    system: str | None = None
    conversation: str | None = None

    @property
    def named(self) -> dict[str, str]:
        """The columns to read, by the field of a row that they become."""
        pairs = {"prompt": self.prompt, "completion": self.completion, "system": self.system,
                 "conversation": self.conversation}
        return {name: column for name, column in pairs.items() if column is not None}


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be trained on, and why."""

    place: str
    reason: str


@dataclass
class FileRows:
    """The rows of the files; `files` counts them by file, `passed_over` lists other files of a folder, among them
    tables without the columns.

    `left_out` are rows that can be read and are nothing to learn from: their answers were cut or filtered.
    """

    examples: list[TrainingExample] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    files: dict[str, int] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)

    @property
    def number(self) -> int:
        """Of all rows."""
        return len(self.examples) + len(self.bad) + self.left_out.total()


class BadRowsError(EvidenceError):
    """Some rows cannot be trained on; `bad` lists all of them."""

    def __init__(self, bad: Sequence[BadRow], rows: int,
                 hint: str = "mend them, or leave them out with --skip-bad") -> None:
        lines = [f"  {row.place}: {row.reason}" for row in bad[:NUM_SHOWN]]
        more = [f"  and {len(bad) - NUM_SHOWN} more"] if len(bad) > NUM_SHOWN else []
        super().__init__("\n".join([f"{len(bad)} of {rows} rows cannot be trained on:", *lines, *more]),
                         hint=hint)
        self.bad = tuple(bad)


class MissingColumnError(EvidenceError):
    """A table is none of rows."""


def read_rows(paths: Sequence[Path], rules: RowRules, columns: Columns | None = None) -> FileRows:
    """All rows of these files and folders, in the given order. A table of a folder that has other columns is of
    something else, as answers to compare; one that is named is an error."""
    rows, other_table = FileRows(), None
    for path in _files(paths, rows):
        before = rows.number
        try:
            with path.open("rb") as file:
                lines = _csv(file, path, columns or Columns()) if path.suffix.lower() == ".csv" else _jsonl(file)
                for line, value in lines:
                    _add(rows, f"{path}:{line}", value, path.parent, rules)
        except MissingColumnError as error:
            if path in paths:
                raise
            other_table = other_table or error
            rows.passed_over.append(str(path))
            continue
        except OSError as error:
            raise EvidenceError(f"cannot read {str(path)!r}: {error.strerror}") from None
        rows.files[str(path)] = rows.number - before
    if not rows.files and other_table is not None:
        raise other_table
    if not rows.number:
        raise EvidenceError(f"there is no row in {', '.join(map(str, paths))}")
    return rows


def _add(rows: FileRows, place: str, value: Json | RequestError, folder: Path, rules: RowRules) -> None:
    try:
        if isinstance(value, RequestError):
            raise value
        rows.examples.append(parse_row(value, place, folder, rules))
    except LeftOutError as error:
        rows.left_out[reason(error)] += 1
    except RequestError as error:
        rows.bad.append(BadRow(place, reason(error)))


def reason(error: BriseError) -> str:
    """An error in one line."""
    return str(error).replace("\nhint: ", "; ").replace("\n", " ")


def _files(paths: Sequence[Path], rows: FileRows) -> Iterator[Path]:
    seen: set[Path] = set()
    for path in paths:
        for file in _of_folder(path, rows) if path.is_dir() else [path]:
            if file.suffix.lower() not in SUFFIXES:
                raise EvidenceError(f"{str(file)!r} is no data file; allowed are {' and '.join(SUFFIXES)}",
                                    hint="one JSON object a line, or a table with a line of names")
            if file.resolve() in seen:
                raise EvidenceError(f"{str(file)!r} is given twice")
            seen.add(file.resolve())
            yield file


def _of_folder(folder: Path, rows: FileRows) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    data_files = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not data_files:
        raise EvidenceError(f"the folder {str(folder)!r} has no data file; read are {' and '.join(SUFFIXES)}")
    rows.passed_over += [str(path) for path in files if path not in data_files]
    return data_files


def _jsonl(file: io.BufferedReader) -> Iterator[tuple[int, Json | RequestError]]:
    """Values with their line numbers; blank lines are skipped."""
    for number, line in enumerate(file, 1):
        text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not text.strip():
            continue
        try:
            yield number, parse_json(text, "the row")
        except RequestError as error:
            yield number, error


def _csv(file: io.BufferedReader, path: Path, columns: Columns) -> Iterator[tuple[int, Json | RequestError]]:
    """Rows with the line on which they end, since a cell may span several lines."""
    wanted, header = columns.named, None
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        for line, cells in tables.records(text):
            if header is None:
                header = [] if isinstance(cells, str) else cells
                _check_header(header, wanted, path)
            elif isinstance(cells, str):
                yield line, RequestError(cells, code="invalid_csv")
            else:
                yield line, _cells(cells, header, wanted)
        if header is None:
            _check_header([], wanted, path)
    finally:
        text.detach()  # otherwise it would close the file, which belongs to the caller


def _check_header(header: Sequence[str], wanted: dict[str, str], path: Path) -> None:
    missing = [column for column in wanted.values() if column not in header]
    if missing:
        names = ", ".join(map(repr, header)) or "none"
        raise MissingColumnError(f"{path} has no column {missing[0]!r}; it has {names}",
                                 hint="say which columns to read: --prompt-column, --completion-column")
    double = [column for column in wanted.values() if header.count(column) > 1]
    if double:
        raise EvidenceError(f"{path} has two columns {double[0]!r}")


def _cells(cells: Sequence[str], header: Sequence[str], wanted: dict[str, str]) -> Json | RequestError:
    """A row of the table in the form of a JSON row; columns without a name in `wanted` become its `meta`."""
    if len(cells) != len(header):
        return RequestError(f"the row has {len(cells)} cells, the table {len(header)} columns", code="invalid_csv")
    if any("\udc80" <= char <= "\udcff" for cell in cells if not cell.isascii() for char in cell):
        return RequestError("the row is not UTF-8", code="invalid_csv")
    by_column = dict(zip(header, cells, strict=True))
    named: dict[str, Json] = {name: by_column.pop(column) for name, column in wanted.items()}
    row = {name: value for name, value in named.items() if value or name in ("prompt", "completion")}
    return {**row, "meta": dict(by_column)}
