"""From a request and what became of it to the row that is written down."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from typing import Any

from brise.dialects.bodies import Body, text
from brise.dialects.streams import assemble
from brise.gateway import headers
from brise.gateway.failure import Relayed
from brise.gateway.interfaces import RequestOutcome
from brise.gateway.relay import KEPT_BYTES
from brise.gateway.request import MAX_NAME, ClientRequest
from brise.traffic import redact
from brise.traffic.records import Exchange, Mode, RecordedAnswer, Role, new_id


def exchange_of(asked: ClientRequest, served: RequestOutcome, total_s: float) -> Exchange:
    """The row. The capture finds the conversation where the client names none."""
    context = None if asked.fields is None else asked.dialect.context_digest(asked.fields)
    return Exchange(
        id=asked.id, at_s=asked.at_s, task=asked.task, kind=asked.kind, path=asked.path,
        model=asked.model[:MAX_NAME], mode=served.mode, status=served.status, conversation=asked.conversation or "",
        subject=asked.subject, labels=asked.labels, served_by=served.served_by, fingerprint=served.fingerprint,
        context_digest=context, error=served.error, streamed=asked.streams, usage=served.usage,
        cost_usd=served.cost_usd, first_token_s=served.first_token_s, total_s=total_s, signals=served.signals,
        audit_probability=served.audit_probability, request=asked.fields, response=served.response)


def served_of(relayed: Relayed, asked: ClientRequest, mode: Mode, error: str | None = None) -> RequestOutcome:
    """What a hosted model's answer says of itself."""
    body, fault = _response(relayed, asked)
    error = error or fault
    if error is None and relayed.status >= 400:
        error = _error(body) or f"status {relayed.status}"
    first_s = None if relayed.first_s is None else relayed.first_s - asked.started_s
    about = body or {}
    return RequestOutcome(mode, relayed.status, text(about.get("model")), body, asked.dialect.usage(about),
                          text(about.get("system_fingerprint")), error, first_s)


def read(served: RequestOutcome, asked: ClientRequest) -> RequestOutcome:
    """With what is still to be read of an answer. Of a long stream it takes milliseconds."""
    if served.unread is None:
        return served
    known = served_of(served.unread, asked, served.mode, served.error)
    return replace(known, signals=served.signals, answers=served.answers)


def _response(relayed: Relayed, asked: ClientRequest) -> tuple[Body | None, str | None]:
    """The body, a stream's put together, and what is wrong with it."""
    if not relayed.is_kept or not asked.dialect.is_read:  # such as a session's secret, or a file: of no use to a proof
        return None, None
    if not relayed.is_stream:
        return decoded(bytes(relayed.body), headers.find(relayed.headers, b"content-encoding")), None
    whole = assemble(asked.dialect, bytes(relayed.body))
    return whole.body, whole.error


def decoded(body: bytes, encoding: bytes) -> Body | None:
    """A body as a JSON object, None if it is none or is compressed in a way that we do not read."""
    try:
        match encoding.lower():
            case b"gzip" | b"deflate":
                body = zlib.decompressobj(wbits=47).decompress(body, KEPT_BYTES)  # 32 + 15: either header
            case b"" | b"identity":
                pass
            case _:
                return None
        value: Any = json.loads(body)
    except (ValueError, RecursionError, zlib.error):
        return None
    return value if isinstance(value, dict) else None


def _error(body: Body | None) -> str | None:
    error = (body or {}).get("error", (body or {}).get("message"))
    message = error.get("message") if isinstance(error, dict) else error
    return text(message)


def again(served: RequestOutcome, asked: ClientRequest, role: Role, at_s: float, total_s: float,
          probability: float | None = None) -> RecordedAnswer:
    """What the hosted model said when it was asked once more."""
    answer = RecordedAnswer(new_id(at_s), asked.id, at_s, role, served.served_by, served.fingerprint, served.status,
                            served.error, served.usage, served.cost_usd, total_s=total_s, probability=probability,
                            response=served.response)
    return redact.answer(answer, asked.secrets)
