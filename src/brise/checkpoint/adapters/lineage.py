"""Reads and writes the lineage of an adapter: its base, data, settings, versions, seed, metrics and rights.

lineage.json stands beside the adapter: {"format": 1, "base": {"name", "digest"}, "data": {"digest"}, "settings": {...},
"versions": {...}, "seed", "metrics": {...}, "rights": {...}, "created"}.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from brise.checkpoint.model_files import all_files, find_layout, flat_name
from brise.errors import UnsupportedError, bad_value
from brise.files.digests import DIGEST, Located, StoredFile, file_digest, list_digest
from brise.files.fields import Fields, KeyTable, Plain, errors_of
from brise.files.json_file import read_json

FILE = "lineage.json"
FORMAT = 1
MAX_ENTRIES = 1000  # of settings, versions, metrics and rights each
MAX_TEXT = 10_000
MAX_SEED = (1 << 64) - 1
LARGEST = sys.float_info.max  # an int of JSON may be larger

T = TypeVar("T")


@dataclass(frozen=True)
class Lineage:
    """What made an adapter. `rights` says, for each hosted provider whose answers it learned from, what allowed that.

    `base_digest` is what `base_digest` below gives, `data_digest` the SHA-256 of the rows. CheckpointError names the
    field that is wrong.
    """

    base_name: str
    base_digest: str
    data_digest: str
    settings: Mapping[str, Plain | None]
    versions: Mapping[str, str]
    seed: int
    metrics: Mapping[str, float]
    rights: Mapping[str, str]
    created: str  # UTC, ISO 8601

    def __post_init__(self) -> None:
        _text("base.name", self.base_name)
        _digest("base.digest", self.base_digest)
        _digest("data.digest", self.data_digest)
        _entries("settings", self.settings, _plain)
        _entries("versions", self.versions, _text)
        _seed("seed", self.seed)
        _entries("metrics", self.metrics, _number)
        _entries("rights", self.rights, _text)
        _time("created", self.created)


def read_lineage(folder: Path) -> Lineage | None:
    """The lineage of the adapter in `folder`; None if another program wrote it without one."""
    path = folder / FILE
    if not path.exists():
        return None
    with errors_of(FILE):
        fields = Fields(read_json(path), "")
        if fields.value("format") != FORMAT:
            raise fields.wrong("format", FORMAT)
        base, data = fields.section("base"), fields.section("data")
        lineage = Lineage(
            base.text("name"), base.text("digest"), data.text("digest"),
            _entries("settings", fields.value("settings"), _plain),
            _entries("versions", fields.value("versions"), _text), _seed("seed", fields.value("seed")),
            _entries("metrics", fields.value("metrics"), _number),
            _entries("rights", fields.value("rights"), _text), fields.text("created"))
        for section in (fields, base, data):
            section.refuse_rest(KeyTable())
    return lineage


def lineage_text(lineage: Lineage) -> str:
    """The contents of lineage.json."""
    return json.dumps({
        "format": FORMAT, "base": {"name": lineage.base_name, "digest": lineage.base_digest},
        "data": {"digest": lineage.data_digest}, "settings": dict(lineage.settings),
        "versions": dict(lineage.versions), "seed": lineage.seed, "metrics": dict(lineage.metrics),
        "rights": dict(lineage.rights), "created": lineage.created}, indent=2, allow_nan=False) + "\n"


def versions(*packages: str) -> Mapping[str, str]:
    """Versions of python, brise and numpy, and of those of these packages that are installed."""
    versions = {"python": platform.python_version()}
    for package in ("brise", "numpy", *packages):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def base_digest(located: Located, progress: Callable[[int], None] | None = None) -> str:
    """The SHA-256 by which the store would know this model, whether the store has it or not."""
    if located.digest is not None:
        return located.digest
    layout = find_layout(located.path)
    files = all_files(layout) if located.path.is_dir() else layout.files
    digests = [StoredFile(flat_name(file.as_posix()), file_digest(file, progress), file.stat().st_size)
               for file in files]
    return digests[0].digest if len(digests) == 1 else list_digest(digests)


def check_base(lineage: Lineage | None, located: Located, *, any_base: bool = False) -> None:
    """Raises UnsupportedError if the adapter was trained on another model. One without a lineage cannot tell."""
    if lineage is None or any_base:
        return
    own = base_digest(located)
    if own != lineage.base_digest:
        raise UnsupportedError(
            f"the adapter was trained on {lineage.base_name} (sha256 {lineage.base_digest[:12]}), the model is "
            f"{located.name} (sha256 {own[:12]})",
            hint="give the model that it was trained on, or --any-base to put it on this one, for which its metrics "
                 "say nothing")


def _entries(name: str, value: object, read: Callable[[str, object], T]) -> Mapping[str, T]:
    if not isinstance(value, Mapping):
        raise bad_value(name, value, "an object")
    if len(value) > MAX_ENTRIES:
        raise bad_value(f"number of {name}", len(value), f"at most {MAX_ENTRIES}")
    return {_text(f"a name in {name}", key): read(f"{name}.{key}", item) for key, item in value.items()}


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise bad_value(name, value, f"a string of at most {MAX_TEXT} characters")
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST <= value <= LARGEST:
        raise bad_value(name, value, "a finite number")
    return value


def _plain(name: str, value: object) -> Plain | None:
    if value is None or isinstance(value, bool):
        return value
    return _text(name, value) if isinstance(value, str) else _number(name, value)


def _digest(name: str, value: object) -> str:
    if not isinstance(value, str) or not DIGEST.fullmatch(value):
        raise bad_value(name, value, "a SHA-256 of 64 hexadecimal digits")
    return value


def _seed(name: str, value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_SEED:
        raise bad_value(name, value, f"0 to {MAX_SEED}")
    return value


def _time(name: str, value: object) -> str:
    limit = "a time in UTC, such as 2026-01-31T12:00:00+00:00"
    try:
        if not isinstance(value, str) or datetime.fromisoformat(value).utcoffset() != timedelta():
            raise bad_value(name, value, limit)
    except ValueError:
        raise bad_value(name, value, limit) from None
    return value
