"""One row of an imported file, and how it becomes an exchange."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from brise.dialects import table
from brise.dialects.bodies import Body, Kind, Usage, context_digest
from brise.dialects.token_counts import as_openai
from brise.errors import RequestError
from brise.files.digests import text_digest
from brise.text import finish_reasons
from brise.text.json_text import parse_json
from brise.traffic.records import Exchange

FINISH_DEPTH = 5  # of objects in objects in which a finish reason is looked for
FINISH_NAMES = frozenset({"finish_reason", "finishReason", "finish_reasons", "finishReasons", "stop_reason",
                          "stopReason", "done_reason", "gen_ai.response.finish_reasons", "ai.response.finishReason",
                          "llm.finish_reason", "gen_ai.response.finish_reason"})
# Where frameworks and exporters keep what the server said beside the message.
FINISH_TEXTS = frozenset({"metadata", "response_metadata", "attributes"})
FINISH_PLACES = FINISH_TEXTS | {
    "responseMetadata", "additional_kwargs", "generation_info", "generationInfo", "message", "kwargs", "choices",
    "candidates", "generations", "llm_output", "provider_metadata", "providerMetadata", "raw", "response"}
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
    file: str = ""


def message(role: str, content: object, **more: object) -> dict[str, Any]:
    """A chat message without empty fields."""
    return {"role": role, "content": content, **{name: value for name, value in more.items() if value}}


def chat_body(answer: Body, model: str | None, finish: str | None, usage: Usage | None) -> dict[str, Any]:
    """A chat.completion with this message. `finish` is why it stopped, by any server's name for that."""
    reason = finish_reasons.common(finish) or finish or ("tool_calls" if answer.get("tool_calls") else "stop")
    body: dict[str, Any] = {"object": "chat.completion", "model": model, "choices": [
        {"index": 0, "message": dict(answer), "logprobs": None, "finish_reason": reason}]}
    counted = as_openai(usage)
    return body if counted is None else body | {"usage": counted}


def finish_reason(*places: object) -> str | None:
    """Why an answer stopped, as any of these places says: a name, a list of names, or an object with one in it.

    Where they differ, an answer that one of them calls cut or filtered is.
    """
    found = [name for place in places for name in _finish_reasons(place, FINISH_DEPTH)]
    return next((name for name in found if finish_reasons.not_whole(name) is not None), next(iter(found), None))


def _finish_reasons(place: object, depth: int) -> Iterator[str]:
    match place:
        case str():
            value = parsed(place)
            if isinstance(value, str):
                yield from (name for name in [value.strip()] if name)
            elif depth:
                yield from _finish_reasons(value, depth - 1)
        case [first, *_] if depth:
            yield from _finish_reasons(first, depth - 1)
        case Mapping() if depth:
            for name, value in place.items():
                if name in FINISH_NAMES:
                    yield from _finish_reasons(value, 2)
                elif name in FINISH_PLACES and not isinstance(value, str) or name in FINISH_TEXTS:
                    yield from (found for found in _finish_reasons(value, depth - 1)
                                if not isinstance(value, str) or isinstance(parsed(value), dict))


def identity(at_s: float, *parts: object) -> str:
    """An id that is the same when the same row is imported again, in the order of time as all ids are."""
    digest = text_digest(json.dumps(parts, sort_keys=True, default=str))
    return f"{int(at_s * 1000) & 0xFFFFFFFFFFFF:012x}{digest[:20]}"


def exchange(id: str, at_s: float, kind: Kind, request: Body, response: Body | None, *, task: str, model: str,
             path: str = "/v1/chat/completions", conversation: str = "", error: str | None = None,
             **more: Any) -> Exchange:
    """An exchange that another system captured. A body that is no answer is a failure, whatever its status was."""
    if response is not None and error is None:
        error = table.named(kind).failure(response)
    is_answered = response is not None and error is None
    return Exchange(id, at_s, task, kind, path, model, "hosted" if is_answered else "failed",
                    200 if is_answered else 502, conversation, error=error, request=request, response=response,
                    context_digest=context_digest(request), **more)


def parsed(value: object) -> Any:
    """The JSON value in a text; any other value as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "[", '"'):
        return value
    try:
        return parse_json(value.encode("utf-8", "replace"), mend=True)
    except RequestError:
        return value


def seconds(value: object) -> float | None:
    """A time in any of the forms that exports have, as seconds since the epoch: ISO 8601 (UTC if it says nothing),
    or a number of seconds, milliseconds or nanoseconds."""
    if isinstance(value, str) and not value.isdecimal():
        try:
            at = datetime.datetime.fromisoformat(value.strip())
        except ValueError:
            return None
        number = (at if at.tzinfo is not None else at.replace(tzinfo=datetime.UTC)).timestamp()
        return number if number >= 0 else None
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
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def fields_of(value: object) -> dict[str, Any]:
    """An object; empty for anything else."""
    return value if isinstance(value, dict) else {}


def text(value: object) -> str | None:
    """A text that is not empty."""
    return value if isinstance(value, str) and value.strip() else None
