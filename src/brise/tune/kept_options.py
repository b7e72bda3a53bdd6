"""The options of a run as its folder keeps them, so that the folder alone is enough to go on or to finish.

    options.json    the fields of TuneOptions; paths are absolute, dates in ISO 8601

What decides the weights stands in run.json, and is compared with what these options give.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from brise.errors import CheckpointError, OutputError, bad_value
from brise.files.atomic import staged_file
from brise.files.fields import errors_of
from brise.files.json_file import read_json
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
        found = _decoded(TuneOptions, read_json(folder / FILE), "")
        assert isinstance(found, TuneOptions)
        return replace(found, out=folder)


def _absolute(model: str) -> str:
    """The path of a model that is given by one; a name in the store stays."""
    return str(Path(model).absolute()) if Path(model).exists() else model


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime.date) else str(Path(str(value)).absolute())


def _decoded(kind: Any, value: object, place: str) -> Any:
    """The value as this type has it; CheckpointError names what is not."""
    if is_dataclass(kind):
        return _record(kind, value, place)
    if get_origin(kind) in (Union, UnionType):
        return _one_of(get_args(kind), value, place)
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_decoded(get_args(kind)[0], item, place) for item in value)
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if kind in _OF_TEXT and isinstance(value, str):
        return _OF_TEXT[kind](value)
    if type(value) is kind or (kind is float and type(value) is int):
        return value
    raise bad_value(place, value, str(kind))


_OF_TEXT: Mapping[Any, Callable[[str], object]] = {Path: Path, datetime.date: datetime.date.fromisoformat}


def _record(kind: Any, value: object, place: str) -> Any:
    if not isinstance(value, Mapping):
        raise bad_value(place, value, "an object")
    types = get_type_hints(kind)
    for name in value:
        if name not in types:
            raise CheckpointError(f"{place}{name} is no option of this version", field=str(name))
    for field in fields(kind):
        if field.default is MISSING and field.name not in value:
            raise CheckpointError(f"{place}{field.name} is missing", field=field.name)
    return kind(**{name: _decoded(types[name], item, f"{place}{name}") for name, item in value.items()})


def _one_of(kinds: Sequence[Any], value: object, place: str) -> Any:
    for kind in kinds:
        try:
            return _decoded(kind, value, place)
        except CheckpointError:
            continue
    raise bad_value(place, value, " or ".join(map(str, kinds)))
