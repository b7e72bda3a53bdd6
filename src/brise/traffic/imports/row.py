"""One row of an imported file, and how it becomes an exchange."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from brise.dialects.bodies import Body, Kind, Usage, context_digest
from brise.dialects.token_counts import as_openai
from brise.files.digests import text_digest
from brise.traffic.records import Exchange

_YEAR_10000_S = 253_402_300_800.0  # Python's calendar ends here


class BadRowError(ValueError):
    """Why a row cannot be imported."""


class PassedOverError(ValueError):
    """The row is no request to a model, and need not be one: a span of a database, a whole trace."""


@dataclass(frozen=True)
class ImportedRow:
    """A JSON value or a line of a table, its place, and the time to use if it has none."""

    value: Mapping[str, Any]
    place: str
    at_s: float
    stem: str  # of the file's name


def message(role: str, content: object, **more: object) -> dict[str, Any]:
    """A chat message without empty fields."""
    return {"role": role, "content": content, **{name: value for name, value in more.items() if value}}


def chat_body(answer: Body, model: str | None, finish: str | None, usage: Usage | None) -> dict[str, Any]:
    """A chat.completion with this message."""
    body: dict[str, Any] = {"object": "chat.completion", "model": model, "choices": [
        {"index": 0, "message": dict(answer), "logprobs": None, "finish_reason": finish or (
            "tool_calls" if answer.get("tool_calls") else "stop")}]}
    counted = as_openai(usage)
    return body if counted is None else body | {"usage": counted}


def identity(at_s: float, *parts: object) -> str:
    """An id that is the same when the same row is imported again, in the order of time as all ids are."""
    digest = text_digest(json.dumps(parts, sort_keys=True, default=str))
    return f"{int(at_s * 1000) & 0xFFFFFFFFFFFF:012x}{digest[:20]}"


def exchange(id: str, at_s: float, kind: Kind, request: Body, response: Body | None, *, task: str, model: str,
             path: str = "/v1/chat/completions", conversation: str = "", error: str | None = None,
             **more: Any) -> Exchange:
    """An exchange that another system captured."""
    is_answered = response is not None and error is None
    return Exchange(id, at_s, task, kind, path, model, "hosted" if is_answered else "failed",
                    200 if is_answered else 502, conversation, error=error, request=request, response=response,
                    context_digest=context_digest(request), **more)


def parsed(value: object) -> Any:
    """The JSON value in a text; any other value as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "[", '"'):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def seconds(value: object) -> float | None:
    """A time in any of the forms that exports have, as seconds since the epoch: ISO 8601 (UTC if it says nothing),
    or a number of seconds, milliseconds or nanoseconds."""
    if isinstance(value, str) and not value.isdecimal():
        try:
            at = datetime.datetime.fromisoformat(value.strip())
        except ValueError:
            return None
        return (at if at.tzinfo is not None else at.replace(tzinfo=datetime.UTC)).timestamp()
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    # After 2001 a time in seconds has ten digits, for three hundred years.
    number /= next((unit for unit in (1e9, 1e6, 1e3) if number >= 1e9 * unit), 1.0)
    return number if 0 <= number < _YEAR_10000_S else None


def whole(value: object) -> int:
    """A count; 0 for anything else."""
    if isinstance(value, str) and value.isdecimal():
        return int(value) if len(value) <= 18 else 0
    is_count = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
    return int(value) if is_count else 0  # type: ignore[call-overload]


def number(value: object) -> float | None:
    """A number, also one that a table has as text."""
    try:
        return None if value is None or value == "" or isinstance(value,
                                                                  bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def fields_of(value: object) -> dict[str, Any]:
    """An object; empty for anything else."""
    return value if isinstance(value, dict) else {}


def text(value: object) -> str | None:
    """A text that is not empty."""
    return value if isinstance(value, str) and value.strip() else None
