"""Reads one JSON object of a request: each field with its type and range. Others are refused, or noted.

`null` means that a field is left out, as in OpenAI's API. Files are read by files/fields.py, where a missing key has a
default or is an error, and errors are of a file and not of a request.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from brise.errors import RequestError
from brise.text.json_text import Json

NOT_KNOWN = "it is not known here"
NO_EFFECT = "it changes no answer, and nothing is done for it here"
MAX_REPORTED = 64


@dataclass
class Ignored:
    """What is ignored in a request: the path of each field, and why.

    Unknown fields are ignored, and fields in `names` that ask for something that brise does not do.
    """

    names: frozenset[str] = frozenset()
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, path: str, why: str) -> None:
        """Notes a field; a request with more than can be read by anybody is cut."""
        if len(self.reasons) < MAX_REPORTED:
            self.reasons[path] = why


class RequestFields:
    """One object of the request at `path`; call `done` when all known fields are read.

    With `ignored`, fields are noted there and not refused.
    """

    def __init__(self, value: Json, path: str = "", ignored: Ignored | None = None) -> None:
        if not isinstance(value, dict):
            raise _wrong_type(path or "the body", value, "an object", path)
        self._fields, self._path, self._read, self._ignored = value, path, set[str](), ignored

    def path(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def raw(self, name: str) -> Json:
        self._read.add(name)
        return self._fields.get(name)

    def text(self, name: str) -> str | None:
        value = self.raw(name)
        if value is not None and not isinstance(value, str):
            raise self._type_error(name, value, "a string")
        return value

    def required_text(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise self.missing(name)
        return value

    def flag(self, name: str) -> bool | None:
        value = self.raw(name)
        if value is not None and not isinstance(value, bool):
            raise self._type_error(name, value, "true or false")
        return value

    def whole(self, name: str, low: int, high: int) -> int | None:
        value = self.raw(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._type_error(name, value, "an integer")
        if not low <= value <= high:
            raise self.error(name, f"is {_short(value)}, allowed is {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._type_error(name, value, "a number")
        if not low <= value <= high:
            raise self.error(name, f"is {_short(value)}, allowed is {low:g} to {high:g}")
        return float(value)

    def choice(self, name: str, allowed: Collection[str]) -> str | None:
        value = self.text(name)
        if value is not None and value not in allowed:
            raise self.error(name, f"is {_short(value)}, allowed is {_listed(allowed)}")
        return value

    def required_choice(self, name: str, allowed: Collection[str]) -> str:
        value = self.choice(name, allowed)
        if value is None:
            raise self.missing(name)
        return value

    def child(self, name: str) -> RequestFields | None:
        value = self.raw(name)
        return None if value is None else RequestFields(value, self.path(name), self._ignored)

    def required_child(self, name: str) -> RequestFields:
        value = self.child(name)
        if value is None:
            raise self.missing(name)
        return value

    def mapping(self, name: str) -> dict[str, Json] | None:
        """An object whose fields are free, such as a JSON schema."""
        value = self.raw(name)
        if value is not None and not isinstance(value, dict):
            raise self._type_error(name, value, "an object")
        return value

    def items(self, name: str) -> list[Json] | None:
        value = self.raw(name)
        if value is not None and not isinstance(value, list):
            raise self._type_error(name, value, "an array")
        return value

    def objects(self, name: str) -> Iterator[RequestFields]:
        for index, value in enumerate(self.items(name) or []):
            yield RequestFields(value, f"{self.path(name)}[{index}]", self._ignored)

    def ignores(self, name: str) -> bool:
        """Whether a value of this field that cannot be honoured is left out."""
        return self._ignored is not None and name in self._ignored.names

    def refuse(self, name: str, why: str) -> None:
        """Refuses a field of OpenAI's API that brise does not have."""
        if self.raw(name) is not None:
            self._leave_out(name, why, why)

    def only(self, name: str, allowed: Sequence[object], why: str) -> None:
        """Accepts a field only with the values that ask for what is done anyway."""
        value = self.raw(name)
        if value is not None and not _is_one_of(value, allowed):
            self._leave_out(name, why, f"{why}; accepted is {_listed(allowed)}" if allowed else why)

    def note(self, name: str, silent: Sequence[object] = (), why: str = NO_EFFECT) -> None:
        """Accepts a field that changes no answer; one that asks for something (not empty, nor in `silent`) is noted."""
        value = self.raw(name)
        if value not in (None, "", [], {}) and not _is_one_of(value, silent) and self._ignored is not None:
            self._ignored.add(self.path(name), why)

    def done(self) -> None:
        unknown = [name for name, value in self._fields.items() if name not in self._read and value is not None]
        if unknown and self._ignored is not None:
            for name in unknown[:MAX_REPORTED]:
                self._ignored.add(self.path(name[:64]), NOT_KNOWN)
        elif unknown:
            path = self.path(unknown[0][:64])
            raise RequestError(f"unknown field {path!r}", param=path, code="unknown_parameter")

    def _leave_out(self, name: str, why: str, refusal: str) -> None:
        if self._ignored is None or not self.ignores(name):
            raise self.unsupported(name, refusal)
        self._ignored.add(self.path(name), why)

    def missing(self, name: str) -> RequestError:
        return RequestError(f"{self.path(name)!r} is missing", param=self.path(name),
                            code="missing_required_parameter")

    def error(self, name: str, problem: str) -> RequestError:
        return RequestError(f"{self.path(name)!r} {problem}", param=self.path(name))

    def unsupported(self, name: str, why: str) -> RequestError:
        return RequestError(f"{self.path(name)!r} is not supported: {why}", param=self.path(name),
                            code="unsupported_parameter")

    def _type_error(self, name: str, value: Json, wanted: str) -> RequestError:
        return _wrong_type(repr(self.path(name)), value, wanted, self.path(name))


def _wrong_type(what: str, value: Json, wanted: str, path: str) -> RequestError:
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "an array",
             dict: "an object", type(None): "null"}
    return RequestError(f"{what} must be {wanted}, not {names[type(value)]}", param=path or None,
                        code="invalid_type")


def _is_one_of(value: Json, allowed: Sequence[object]) -> bool:
    """Whether it is one of the values; 1 and 1.0 are one number, and true is none."""
    return any(value == each and isinstance(value, bool) is isinstance(each, bool) for each in allowed)


def _short(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _listed(allowed: Collection[object]) -> str:
    return ", ".join(repr(value).replace("True", "true").replace("False", "false") for value in allowed)
