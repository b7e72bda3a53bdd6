"""Data of a program: files and folders as they are, rows in memory as a file of JSON lines while they are needed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from brise.errors import RequestError

Row = Mapping[str, object]
Rows = str | Path | Iterable[str | Path] | Iterable[Row]
IN_MEMORY = "rows.jsonl"


@contextmanager
def as_files(data: Rows, name: str) -> Iterator[tuple[Path, ...]]:
    """The paths of the data. Rows are written to a file, which is there until the block ends."""
    if isinstance(data, str | Path):
        yield (Path(data).expanduser(),)
        return
    if isinstance(data, Mapping):
        raise RequestError(f"{name} is one row; a list of rows is wanted, or a path", param=name, code="invalid_type")
    items = list(data)
    paths = [Path(item).expanduser() for item in items if isinstance(item, str | Path)]
    if paths and len(paths) == len(items):
        yield tuple(paths)
        return
    if not items or not all(isinstance(item, Mapping) for item in items):
        raise RequestError(f"{name} must be a path, paths, or rows such as {{'prompt': ..., 'completion': ...}}",
                           param=name, code="invalid_type")
    with TemporaryDirectory(prefix="brise-") as folder:
        path = Path(folder, IN_MEMORY)
        with path.open("w", encoding="utf-8") as file:
            for index, row in enumerate(items):
                file.write(_line(row, f"{name}[{index}]") + "\n")
        yield (path,)


def _line(row: object, name: str) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RequestError(f"{name} cannot be written as JSON: {error}", param=name, code="invalid_type") from None
