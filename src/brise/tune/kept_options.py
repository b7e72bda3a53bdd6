"""The options of a run as its folder keeps them, so that the folder alone is enough to go on or to finish.

    options.json    the fields of TuneOptions; paths are absolute, dates in ISO 8601

What decides the weights stands in run.json, and is compared with what these options give.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

from brise.errors import CheckpointError, OutputError, bad_value
from brise.files.atomic import staged_file
from brise.files.fields import errors_of
from brise.files.json_file import read_json
from brise.files.typed_json import RecordReader
from brise.tune.options import TuneOptions

FILE = "options.json"
OF_A_CALL = frozenset(("out", "resume", "finish", "dry_run"))  # what one command does, not what the run is


def keep(folder: Path, options: TuneOptions) -> None:
    """Keeps the options of a run, unless its folder has them."""
    if (folder / FILE).is_file():
        return
    teacher = options.teacher
    kept = replace(options, model=_absolute(options.model),
                   teacher=None if teacher is None else replace(teacher, model=_absolute(teacher.model)))
    values = {name: value for name, value in asdict(kept).items() if name not in OF_A_CALL}
    text = json.dumps(values, default=_plain, indent=1).encode() + b"\n"
    with staged_file(folder / FILE, len(text)) as file:
        file.write(text)


def read(folder: Path) -> TuneOptions:
    """The options of the run in this folder; OutputError if it keeps none."""
    if not (folder / FILE).is_file():
        raise OutputError(f"there is no run in {str(folder)!r} that keeps its options",
                          hint="give the whole command with which it was begun")
    with errors_of(FILE):
        found = _OptionReader().record(TuneOptions, "", read_json(folder / FILE))
        assert isinstance(found, TuneOptions)
        return replace(found, out=folder)


def _absolute(model: str) -> str:
    """The path of a model that is given by one; a name in the store stays."""
    return str(Path(model).absolute()) if Path(model).exists() else model


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime.date) else str(Path(str(value)).absolute())


_OF_TEXT: Mapping[Any, Callable[[str], object]] = MappingProxyType(
    {Path: Path, datetime.date: datetime.date.fromisoformat})


class _OptionReader(RecordReader):
    """CheckpointError names what is not of its type."""

    def plain(self, kinds: tuple[Any, ...], place: str, value: object) -> Any:
        for kind in kinds:
            if kind in _OF_TEXT and isinstance(value, str):
                with suppress(ValueError):
                    return _OF_TEXT[kind](value)
            elif get_origin(kind) is Literal:
                if value in get_args(kind):
                    return value
            elif type(value) is kind or (kind is float and type(value) is int):
                return value
        raise bad_value(place, value, " or ".join(map(str, kinds)))

    def wrong(self, place: str, value: object, allowed: str) -> Exception:
        return bad_value(place, value, allowed)

    def unknown(self, place: str, known: Mapping[str, Any]) -> Exception:
        return CheckpointError(f"{place} is no option of this version", field=place)

    def missing(self, place: str) -> Exception:
        return CheckpointError(f"{place} is missing", field=place)
