"""What is fuzzed: a parser, inputs that it takes, and the errors that it may raise."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from brise.errors import BriseError

Form = Literal["bytes", "json", "lines"]  # how inputs are changed: anywhere, as JSON, or as JSON line by line
PASSED = (KeyboardInterrupt, SystemExit)


@dataclass(frozen=True)
class Target:
    """A parser. `seeds` are valid inputs; `refusals` are the errors that it may raise, all others are findings.

    Time and memory over `slow_s` and `large_bytes`, plus their part for each byte, are findings too.
    """

    name: str
    run: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    form: Form = "bytes"
    refusals: tuple[type[Exception], ...] = ()
    max_bytes: int = 1 << 14
    slow_s: float = 0.25
    slow_s_a_byte: float = 50e-6
    large_bytes: int = 64 << 20
    large_bytes_a_byte: int = 2048

    def outcome(self, data: bytes) -> BaseException | None:
        """What the parser raised that it may not raise; None if all is well."""
        try:
            self.run(data)
        except (BriseError, *self.refusals) as error:
            try:
                assert str(error), "an error without words"
            except Exception as other:
                return other
        except PASSED:
            raise
        except BaseException as error:  # panics of the Rust libraries are no Exception
            return error
        return None


@cache
def scratch() -> Path:
    """A folder of this process, in memory where there is one."""
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="brise-fuzz-", dir=shared if shared.is_dir() else None))


def written(name: str, data: bytes) -> Path:
    """A file in that folder with these bytes."""
    path = scratch() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def as_json(*values: object) -> list[bytes]:
    """Each value as JSON."""
    return [json.dumps(value).encode() for value in values]


def as_lines(*rows: object) -> bytes:
    """The rows as a file of JSON lines."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def pieces(data: bytes) -> list[bytes]:
    """The bytes in pieces whose lengths follow from their content, so that the same input is cut the same way."""
    out, at, step = [], 0, 1 + len(data) % 7
    while at < len(data):
        out.append(data[at:at + step])
        at += step
        step = 1 + (step * 5 + out[-1][-1]) % 61
    return out
