"""Errors that the gateway itself answers with, in the shape of the dialect that was asked in."""

from __future__ import annotations

import json

from starlette.types import Send

from brise.dialects import sse
from brise.dialects.dialect import Dialect
from brise.gateway import headers
from brise.gateway.failure import UpstreamFailure
from brise.gateway.request import Headers


def message_of(failure: UpstreamFailure) -> str:
    """What the client reads."""
    if failure.kind == "ended":
        return failure.detail
    return f"the upstream model did not answer ({failure})"


def code_of(failure: UpstreamFailure) -> str:
    """The machine-readable reason."""
    return "shutting_down" if failure.kind == "ended" else f"upstream_{failure.kind}"


async def send(dialect: Dialect, failure: UpstreamFailure, added: Headers, send: Send) -> None:
    """A whole answer: nothing has been sent yet. The hosted model's own refusal goes out as it came."""
    refusal = failure.refusal
    if refusal is not None:
        kept = headers.downstream(refusal.headers)
        await send({"type": "http.response.start", "status": refusal.status, "headers": [*kept, *added]})
        await send({"type": "http.response.body", "body": refusal.body, "more_body": False})
        return
    body = json.dumps(dialect.error_body(message_of(failure), code_of(failure))).encode()
    sent = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *added]
    if failure.retry_after_s is not None:
        sent.append((b"retry-after", str(max(round(failure.retry_after_s), 1)).encode()))
    await send({"type": "http.response.start", "status": failure.client_status, "headers": sent})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def end_stream(dialect: Dialect, failure: UpstreamFailure, send: Send) -> None:
    """The last event of a stream that nobody goes on with: an error, so that no client takes it for complete."""
    event = sse.encode(dialect.error_event(message_of(failure), code_of(failure)), "error")
    await send({"type": "http.response.body", "body": event, "more_body": False})
