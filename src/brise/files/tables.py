"""Tables of comma-separated values: a record that cannot be read costs itself, and the ones behind it are read."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import TextIO

MOST_CELL = 64 << 20  # characters in a cell: a conversation with images


def records(file: TextIO) -> Iterator[tuple[int, list[str] | str]]:
    """Each record with the line on which it ends; a text in place of the cells says why it cannot be read.

    Open the file with newline="". Records without cells (blank lines) are skipped.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MOST_CELL))  # of the process; the default is 131,072
    lines = _Lines(file)
    table = csv.reader(lines, strict=True)
    while True:
        first, lines.quotes = lines.number + 1, 0
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            yield lines.number, _skipped(lines, first, str(error))
            table = csv.reader(lines, strict=True)
        else:
            if cells:
                yield lines.number, cells


class _Lines:
    """The lines of a file, with their number and the quotes since the last record."""

    def __init__(self, file: TextIO) -> None:
        self._file, self.number, self.quotes = file, 0, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._file)
        self.number += 1
        self.quotes += line.count('"')
        return line


def _skipped(lines: _Lines, first: int, problem: str) -> str:
    """Goes on to the end of a broken record, which is where its quotes are even; what was skipped."""
    while lines.quotes % 2:
        if next(lines, None) is None:
            return f"a quote opens in line {first} and never closes: lines {first} to {lines.number} are not read"
    if "field larger than" in problem:
        return f"a cell has more than {MOST_CELL:,} characters"
    return f"it is no record of a table: {problem}"
