"""From a request and what became of it to the row that is written down."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from typing import Any

from brise.gateway import headers
from brise.gateway.asked import MAX_NAME, Asked, context_digest
from brise.gateway.failure import Relayed
from brise.gateway.parts import Served
from brise.gateway.reassemble import reassemble
from brise.gateway.records import Body, Exchange, Mode, Usage
from brise.gateway.relay import KEPT_BYTES


def exchange_of(asked: Asked, served: Served, total_s: float) -> Exchange:
    """The row. The capture finds the conversation where the client names none."""
    return Exchange(
        id=asked.id, at_s=asked.at_s, task=asked.task, kind=asked.kind, path=asked.path,
        model=asked.model[:MAX_NAME], mode=served.mode, status=served.status, conversation=asked.conversation or "",
        subject=asked.subject, labels=asked.labels, served_by=served.served_by, fingerprint=served.fingerprint,
        context_digest=context_digest(asked.fields), error=served.error, streamed=asked.streams, usage=served.usage,
        cost_usd=served.cost_usd, first_token_s=served.first_token_s, total_s=total_s, signals=served.signals,
        audit_probability=served.audit_probability, request=asked.fields, response=served.response)


def served_of(relayed: Relayed, asked: Asked, mode: Mode, error: str | None = None) -> Served:
    """What a hosted model's answer says of itself."""
    body, fault = _response(relayed, asked)
    error = error or fault
    if error is None and relayed.status >= 400:
        error = _error(body) or f"status {relayed.status}"
    first_s = None if relayed.first_s is None else relayed.first_s - asked.started_s
    about = body or {}
    return Served(mode, relayed.status, _text(about.get("model")), body, usage_of(about),
                  _text(about.get("system_fingerprint")), error, first_s)


def read(served: Served, asked: Asked) -> Served:
    """With what is still to be read of an answer. Of a long stream it takes milliseconds."""
    if served.unread is None:
        return served
    known = served_of(served.unread, asked, served.mode, served.error)
    return replace(known, signals=served.signals, answers=served.answers)


def usage_of(body: Body) -> Usage | None:
    """The tokens that a body counts, under the names of any of the dialects."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    cached = _number(details.get("cached_tokens")) if isinstance(details, dict) else 0
    cached = cached or _number(usage.get("cache_read_input_tokens"))
    return Usage(_number(usage.get("prompt_tokens")) or _number(usage.get("input_tokens")),
                 _number(usage.get("completion_tokens")) or _number(usage.get("output_tokens")), cached)


def _response(relayed: Relayed, asked: Asked) -> tuple[Body | None, str | None]:
    """The body, a stream's put together, and what is wrong with it."""
    if not relayed.is_kept or asked.kind == "other":  # such as a session's secret, or a file: of no use to a proof
        return None, None
    if not relayed.is_stream:
        return decoded(bytes(relayed.body), headers.find(relayed.headers, b"content-encoding")), None
    whole = reassemble(asked.kind, bytes(relayed.body))
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
    return _text(message)


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
