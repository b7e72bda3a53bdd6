"""Reads the keys of a file, JSON objects or GGUF metadata: typed, bounded, and none overlooked."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
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


class Fields:
    """Reads the keys of one object and remembers which, so that `refuse_rest` can name the others.

    A missing key has its value in `defaults`, which holds what the library that wrote the file leaves out. null means
    that a key is not set. `has_types`: the format tells integers from floats, so that 2.0 is no integer.
    """

    def __init__(self, values: Mapping[str, object], name: str,
                 defaults: Mapping[str, object] = MappingProxyType({}), *, has_types: bool = False) -> None:
        self._values, self._defaults, self._name, self._has_types = values, defaults, name, has_types
        self._read: set[str] = set()

    def integer(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """The value under the first of several spellings; without a default, one must be there."""
        name, value = self._find(names, default)
        if isinstance(value, np.ndarray):  # GGUF files may say a size for each layer
            raise self.refused(name, "one number for all layers")
        if isinstance(value, float) and value.is_integer() and not self._has_types:
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
        return Fields(value, self._full(name), defaults)

    def sections(self, name: str) -> Sequence[Fields]:
        """The objects in the object `name`."""
        section = self.section(name)
        return [section.section(key) for key in section._values]

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

    def refuse_rest(self, neutral: Mapping[str, tuple[Plain, ...]], notes: Collection[str],
                    prefixes: tuple[str, ...] = ()) -> None:
        """Raises for the first key that was not read, unless it is known to change nothing.

        `neutral` has the values with which a key changes nothing, `notes` the keys that never do, `prefixes` what the
        names of such keys begin with.
        """
        for name, value in self._values.items():
            if value is None or name in self._read or name in notes or name.startswith(prefixes):
                continue
            allowed = neutral.get(name, ())
            if not isinstance(value, bool | int | float | str) or value not in allowed:
                limit = f"; allowed is {' or '.join(map(repr, allowed))}" if allowed else ""
                raise UnsupportedError(
                    f"{self._full(name)} is {_shown(value)}, which brise does not implement{limit}")

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
        return f"{self._name}.{name}" if self._name else name


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
