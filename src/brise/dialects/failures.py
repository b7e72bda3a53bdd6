"""What a body says of its own end: an error in place of an answer, whose fault that is, and why an answer stopped.

The body decides, not the status of HTTP: servers report failures with status 200, in a body or in an event of a stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from brise.dialects.bodies import Body, objects, text
from brise.text.finish_reasons import common, plain

# Names of errors that the request or its key has caused, in the same spelling, without "error" at the end. All that
# begin with "invalid", "unsupported" or "missing" belong to them, too.
OWN_FAULTS = frozenset({
    "badrequest", "authentication", "permission", "permissiondenied", "forbidden", "unauthorized", "unauthenticated",
    "notfound", "billing", "payment", "paymentrequired", "insufficientquota", "requesttoolarge", "payloadtoolarge",
    "contextlengthexceeded", "contextwindowexceeded", "exceededcontextsize", "unprocessableentity", "validation",
    "failedprecondition", "outofrange", "contentpolicyviolation", "contentfilter", "methodnotallowed",
    "stringabovemaxlength", "gone", "accessdenied"})
OWN_BEGINNINGS, OWN_ENDS = ("invalid", "unsupported", "missing"), ("notfound", "toolarge", "toolong", "policyviolation")
NOT_NOW = (408, 425, 429)  # of the statuses of the client's own errors, those that say "later"
NOT_PLAIN = frozenset({"error", "type", "status", "delta", "stop_reason"})  # fields that chunks of choices do not have
MAX_MESSAGE = 200  # characters of a message that are kept


@dataclass(frozen=True)
class ReportedError:
    """An error in a body or an event. `status` is HTTP's for it, if it names one; `is_own`: the client caused it."""

    message: str
    status: int | None = None
    is_own: bool = False


def reported(body: Body, name: str = "") -> ReportedError | None:
    """The error that a body or an event reports; `name` is the event's. None if it reports none."""
    if name != "error" and _is_plain_chunk(body):
        return None
    response = body.get("response")
    if isinstance(response, dict) and (body.get("type") or name) == "response.failed":
        return reported(response) or ReportedError("the response failed")
    choices, error = objects(body.get("choices")), body.get("error")
    for choice in choices:
        error = error or choice.get("error")
    if not error and _is_error(body, name):
        error = body
    if not error:
        ended = _failed_end(body, choices)
        return None if ended is None else ReportedError(f"it ended with the reason {ended!r}"[:MAX_MESSAGE])
    about = error if isinstance(error, dict) else {"message": error}
    message = text(about.get("message")) or text(about.get("detail")) or _names_shown(about) or "an error"
    status = next(filter(None, map(_status, _codes(about if about is body else {**body, **about}))), None)
    own = 400 <= status < 500 and status not in NOT_NOW if status is not None else _is_own(about, message)
    return ReportedError(message[:MAX_MESSAGE], status, own)


def _is_plain_chunk(body: Body) -> bool:
    """Whether it is a chunk as nearly all are, which says nothing of an end: this runs for every event."""
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or body.keys() & NOT_PLAIN:
        return False
    return body.get("object") != "error" and all(
        isinstance(choice, dict) and not choice.get("finish_reason") and "error" not in choice for choice in choices)


def of_choices(response: object, name: str, kind: type) -> str | None:
    """Why a body of choices, whose answers stand under `name`, is no answer; None if it is one."""
    why = of_body(response)
    if why is not None or not isinstance(response, dict):
        return why
    choices = response.get("choices")
    if not isinstance(choices, list) or not choices:
        return "the body has no choices"
    for choice in choices:
        if not isinstance(choice, dict) or not isinstance(choice.get(name), kind):
            return f"a choice has no {name}"
        if choice.get("finish_reason", "unknown") in (None, ""):  # of a stream that was cut; some servers name none
            return "it ended without a finish reason"
    return None


def of_body(response: object) -> str | None:
    """What is wrong with a body in any dialect: it is no JSON object, or reports an error."""
    if response is None or response == "" or response == {}:
        return "the body is empty"
    if not isinstance(response, dict):
        return "the body is no JSON object"
    error = reported(response)
    return None if error is None else f"it reports an error: {error.message}"


def _failed_end(body: Body, choices: Sequence[Body]) -> str | None:
    """The reason why an answer ended, if it is a failure: in choices, in a message or in its last event but one."""
    delta = body.get("delta")
    reasons = [choice.get("finish_reason") for choice in choices]
    reasons += [body.get("stop_reason"), delta.get("stop_reason") if isinstance(delta, dict) else None]
    for reason in reasons:
        if isinstance(reason, str) and common(reason) == "error":
            return reason
    return None


def _is_error(body: Body, name: str) -> bool:
    """Whether the body itself is an error, as vLLM, FastAPI and Anthropic's API write one."""
    if "error" in (body.get("object"), body.get("type"), name, body.get("status")):
        return True
    if "choices" in body:
        return False
    return not body.keys() & {"content", "output", "data", "type", "delta", "response"} and bool(
        body.get("detail") or (text(body.get("message")) and _codes(body)))


def _codes(error: Body) -> list[object]:
    """All that names an error."""
    return [error[name] for name in ("code", "status", "status_code", "statusCode", "http_status", "type")
            if error.get(name) is not None]


def _status(code: object) -> int | None:
    if isinstance(code, str) and code.strip().isascii() and code.strip().isdigit() and len(code) < 8:
        code = int(code)
    is_number = isinstance(code, int | float) and not isinstance(code, bool)
    return int(code) if is_number and 400 <= code < 600 else None  # type: ignore[call-overload, operator]


def _is_own(error: Body, message: str) -> bool:
    """By its names; some servers only write one at the beginning of the message."""
    names = list(_names(error)) or [found[1] for found in [re.match(r"(?:\w+\.)*(\w+(?:Error|Exception))\b", message)]
                                    if found]
    bare = [re.sub("(error|exception)$", "", plain(name)) or "error" for name in names]
    if any(name.startswith(("ratelimit", "overloaded", "timeout", "invalidresponse")) for name in bare):
        return False
    return any(name in OWN_FAULTS or name.startswith(OWN_BEGINNINGS) or name.endswith(OWN_ENDS) for name in bare)


def _names(error: Body) -> Iterator[str]:
    yield from (code for code in _codes(error) if isinstance(code, str) and code != "error")


def _names_shown(error: Body) -> str:
    return ", ".join(_names(error))
