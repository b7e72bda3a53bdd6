"""OTLP JSON: typed values, attributes, and the spans and log records of an export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from brise.traffic.imports.row import BadRowError, ImportedRow, fields_of

Fields = dict[str, Any]


def attributes(value: object) -> Fields:
    """A list of keys and typed values, as OTLP has it, or a plain object. BadRowError names a value of a wrong type."""
    if isinstance(value, dict):
        return dict(value)
    found: Fields = {}
    for each in objects(value):
        name = str(each.get("key"))
        try:
            found[name] = plain(each.get("value"))
        except BadRowError as error:
            raise BadRowError(f"the attribute {name[:64]!r} {error}") from None
    return found


def plain(value: object) -> Any:
    """A typed value of OTLP as a plain one."""
    match value:
        case {"intValue": number}:
            return _whole(number)
        case {"arrayValue": array}:
            values = fields_of(array).get("values", [])
            if not isinstance(array, dict) or not isinstance(values, list):
                raise _wrong("arrayValue", array, "a list of values")
            return [plain(each) for each in values]
        case {"kvlistValue": pairs}:
            values = fields_of(pairs).get("values", [])
            if not isinstance(pairs, dict) or not isinstance(values, list):
                raise _wrong("kvlistValue", pairs, "a list of keys and values")
            return attributes(values)
        case {"stringValue": text}:
            return _typed("stringValue", text, str, "text")
        case {"boolValue": flag}:
            return _typed("boolValue", flag, bool, "true or false")
        case {"doubleValue": number}:
            return _number(number)
        case {"bytesValue": text}:
            return _typed("bytesValue", text, str, "text in base64")
        case _:
            return value


def _whole(value: object) -> int:
    """64 bits, which JSON has as text."""
    if isinstance(value, str):
        digits = value.strip().removeprefix("-")
        if digits.isascii() and digits.isdecimal() and len(digits) <= 20:
            return int(value)
    if isinstance(value, int) and not isinstance(value, bool) or isinstance(value, float) and value.is_integer():
        return int(value)
    raise _wrong("intValue", value, "a whole number")


def _number(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    try:
        return float(_typed("doubleValue", value, str, "a number"))  # "NaN", "Infinity"
    except ValueError:
        raise _wrong("doubleValue", value, "a number") from None


def _typed(name: str, value: object, kind: type, wanted: str) -> Any:
    if not isinstance(value, kind):
        raise _wrong(name, value, wanted)
    return value


def _wrong(name: str, value: object, wanted: str) -> BadRowError:
    return BadRowError(f"has {name} {str(value)[:40]!r}, it must be {wanted}")


def spans(row: ImportedRow) -> Iterator[tuple[str, Fields, object]]:
    """The spans of an export, each with its place and its resource's attributes as they stand there."""
    value = row.value
    groups = value.get("resourceSpans", value.get("resource_spans"))
    if groups is None:
        if resource_logs(value) is None:
            yield row.place, dict(value), None
        return
    index = 0
    for group in objects(groups):
        resource = fields_of(group.get("resource")).get("attributes")
        for scope in objects(group.get("scopeSpans", group.get("scope_spans"))):
            for span in objects(scope.get("spans")):
                index += 1
                yield f"{row.place}, span {index}", span, resource


def log_records(value: Mapping[str, Any]) -> Iterator[Fields]:
    """The log records of an export, which may be events of spans."""
    for group in objects(resource_logs(value)):
        for scope in objects(group.get("scopeLogs", group.get("scope_logs"))):
            yield from objects(scope.get("logRecords", scope.get("log_records")))


def event_of_record(record: Fields) -> Fields:
    """A log record as an event of a span."""
    said, body = attributes(record.get("attributes")), plain(record.get("body"))
    return {**said, **(body if isinstance(body, dict) else {}),
            "name": record.get("eventName") or said.get("event.name") or ""}


def resource_logs(value: Mapping[str, Any]) -> object:
    """The log records' part of an export."""
    return value.get("resourceLogs", value.get("resource_logs"))


def objects(value: object) -> list[Fields]:
    """The objects in a list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
