"""Reads the keys of a file, JSON objects or GGUF metadata: typed, bounded, and none overlooked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isclose
from types import MappingProxyType

import numpy as np

from brise.errors import CheckpointError, UnsupportedError, bad_value

LARGEST = (1 << 31) - 1  # positions and sizes are int32 in a batch
Plain = bool | int | float | str


@contextmanager
def errors_of(file: str) -> Iterator[None]:
    """Puts the name of the file before the messages of errors in it."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error.args[0]}", field=error.field, value=error.value, limit=error.limit,
                              hint=error.hint) from None
    except UnsupportedError as error:
        raise UnsupportedError(f"{file}: {error.args[0]}", hint=error.hint) from None


@dataclass(frozen=True)
class IgnoredKey:
    """A key that changed nothing: a note (`is_known`), or one that brise has never heard of."""

    name: str
    value: object
    is_known: bool

    @property
    def shown(self) -> str:
        return _shown(self.value)


@dataclass(frozen=True)
class KeyTable:
    """What is known of the keys that no reader asks for.

    `neutral` has the values with which a key that acts changes nothing, `notes` the keys that never do, `prefixes` what
    the names of notes begin with. `acts` says of any other name whether it must be refused.
    """

    neutral: Mapping[str, tuple[Plain, ...]] = field(default_factory=lambda: MappingProxyType({}))
    notes: Collection[str] = ()
    prefixes: tuple[str, ...] = ()
    acts: Callable[[str], bool] = lambda name: True


class Fields:
    """Reads the keys of one object and remembers which, so that `refuse_rest` can judge the others.

    A missing key has its value in `defaults`, which holds what the library that wrote the file leaves out. null means
    that a key is not set. A whole number that was written as a float is an integer.
    """

    def __init__(self, values: Mapping[str, object], name: str,
                 defaults: Mapping[str, object] = MappingProxyType({}), *,
                 ignored: list[IgnoredKey] | None = None) -> None:
        self._values, self._defaults, self._name = values, defaults, name
        self._read: set[str] = set()
        self.ignored: list[IgnoredKey] = [] if ignored is None else ignored  # of all sections of one file

    def integer(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """The value under the first of several spellings; without a default, one must be there."""
        name, value = self._find(names, default)
        if isinstance(value, np.ndarray):  # GGUF files may say a size for each layer
            if value.ndim != 1 or value.dtype.kind not in "iu" or not len(value) or (value != value[0]).any():
                raise self.refused(name, "one number for all layers")
            value = int(value[0])
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int:
            raise bad_value(self._full(name), value, "an integer")
        if not least <= value <= LARGEST:
            raise bad_value(self._full(name), value, f"{least} to {LARGEST}")
        return value

    def number(self, *names: str, default: float | None = None, may_be_zero: bool = False) -> float:
        """A finite positive number."""
        name, value = self._find(names, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise bad_value(self._full(name), value, "a number")
        if not (0 < value <= sys.float_info.max or (may_be_zero and value == 0)):  # an int of JSON may be larger
            raise bad_value(self._full(name), value,
                            "a finite number " + ("of at least 0" if may_be_zero else "over 0"))
        return float(value)

    def flag(self, name: str, *, default: bool) -> bool:
        _, value = self._find((name,), default)
        if not isinstance(value, bool):
            raise bad_value(self._full(name), value, "true or false")
        return value

    def text(self, *names: str, default: str | None = None) -> str:
        name, value = self._find(names, default)
        if not isinstance(value, str):
            raise bad_value(self._full(name), value, "a string")
        return value

    def strings(self, name: str) -> Sequence[str]:
        """A list of strings; empty where the key is not there."""
        _, value = self._find((name,), ())
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise bad_value(self._full(name), value, "a list of strings")
        return value

    def section(self, *names: str, defaults: Mapping[str, object] = MappingProxyType({})) -> Fields:
        """The object under the first of these names that is there; CheckpointError if none is."""
        name, value = self._find(names, None)
        if not isinstance(value, Mapping):
            raise bad_value(self._full(name), value, "an object")
        return Fields(value, self._full(name), defaults, ignored=self.ignored)

    def sections(self, name: str) -> Sequence[Fields]:
        """The objects in the object `name`."""
        section = self.section(name)
        return [section.section(key) for key in section._values]

    def names(self) -> Sequence[str]:
        """The names of the keys that are there, in their order."""
        return list(self._values)

    def has(self, *names: str) -> bool:
        """Whether one of these keys is set: there, or by default, and not null."""
        return any([self.value(name) is not None for name in names])

    def value(self, name: str) -> object:
        """The raw value; None where there is none."""
        self._read.add(name)
        return self._values.get(name, self._defaults.get(name))

    def wrong(self, name: str, limit: object) -> CheckpointError:
        """The error that the value under `name` is not allowed."""
        return bad_value(self._full(name), self._values.get(name), limit)

    def refused(self, name: str, limit: object) -> UnsupportedError:
        """The error that brise does not implement the value under `name`."""
        return UnsupportedError(f"{self._full(name)} is {_shown(self._values.get(name))}, which brise does not "
                                f"implement; allowed is {limit}")

    def refuse_rest(self, table: KeyTable) -> None:
        """Raises for the first key that was not read and changes the numbers; notes down the others in `ignored`.

        A value that asks for nothing (null, false, 0, empty) is never refused, unless the key is known to act.
        """
        for name, value in self._values.items():
            if value is None or name in self._read:
                continue
            if name in table.notes or name.startswith(table.prefixes):
                self.ignored.append(IgnoredKey(self._full(name), value, is_known=True))
            elif name in table.neutral:
                self._refuse_other(name, value, table.neutral[name])
            elif _is_empty(value):
                self.ignored.append(IgnoredKey(self._full(name), value, is_known=True))
            elif table.acts(name):
                raise UnsupportedError(f"{self._full(name)} is {_shown(value)}, which brise does not implement")
            else:
                self.ignored.append(IgnoredKey(self._full(name), value, is_known=False))

    def _refuse_other(self, name: str, value: object, allowed: tuple[Plain, ...]) -> None:
        if _is_empty(value) and (not allowed or any(map(_is_empty, allowed))):  # 0, false, [], "" alike ask for nothing
            return
        if isinstance(value, bool | int | float | str) and any(_are_same(value, one) for one in allowed):
            return
        shown = " or ".join(map(repr, allowed)) or "null"
        raise UnsupportedError(f"{self._full(name)} is {_shown(value)}, which brise does not implement; allowed is "
                               f"{shown}")

    def _find(self, names: tuple[str, ...], default: object) -> tuple[str, object]:
        self._read.update(names)
        present = {name: self._values[name] for name in names if self._values.get(name) is not None}
        if present:
            (name, value), *others = present.items()
            for other, second in others:
                if isinstance(value, np.ndarray) or isinstance(second, np.ndarray) or second != value:
                    raise bad_value(self._full(other), second, f"{_shown(value)}, as {name} says")
            return name, value
        for name in names:
            # Where the library has a default, null is a value of its own; the caller's default means "not set".
            if name in self._defaults and name not in self._values and self._defaults[name] is not None:
                return name, self._defaults[name]
        if default is None:
            raise CheckpointError(f"{self._full(names[0])} is missing", field=self._full(names[0]), limit="a value")
        return names[0], default

    def _full(self, name: str) -> str:
        name = name[:100] if name.isprintable() else repr(name[:100])  # of a file that nobody checked
        return f"{self._name}.{name}" if self._name else name


def _is_empty(value: object) -> bool:
    """Whether a value asks for nothing: null, false, 0, an empty text, list or object, a list of zeros."""
    if isinstance(value, np.ndarray):
        return not value.any()
    if isinstance(value, bool | int | float):
        return value == 0
    return value is None or (isinstance(value, str | Sequence | Mapping) and len(value) == 0)


def _are_same(value: Plain, one: Plain) -> bool:
    """Equal, or numbers that differ by no more than rounding to float32."""
    if value == one or isinstance(value, str) or isinstance(one, str):
        return value == one
    try:
        return isclose(value, one, rel_tol=1e-6)
    except OverflowError:  # an integer of JSON that no float holds
        return False


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
