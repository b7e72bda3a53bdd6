"""From a request and its outcome to the rows that are written down, all of which are made here and hold no keys."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from brise.dialects import table
from brise.dialects.bodies import Body, text
from brise.dialects.streams import assemble
from brise.gateway import encodings, headers
from brise.gateway.failure import Delivery
from brise.gateway.interfaces import RequestOutcome
from brise.gateway.relay import KEPT_BYTES, json_object
from brise.gateway.request import MAX_NAME, ClientRequest
from brise.traffic import redact
from brise.traffic.prices import Prices
from brise.traffic.records import Exchange, Mode, RecordedAnswer, Role, new_id


def exchange_of(request: ClientRequest, outcome: RequestOutcome, total_s: float) -> Exchange:
    """The row of a request and the answer that its client got. The capture finds the conversation if the client names
    none."""
    context = None if request.fields is None else request.dialect.context_digest(request.fields)
    exchange = Exchange(
        id=request.id, at_s=request.at_s, task=request.task, kind=request.kind, path=request.path,
        model=request.model[:MAX_NAME], mode=outcome.mode, status=outcome.status,
        conversation=request.conversation or "", subject=request.subject, labels=request.labels,
        served_by=outcome.served_by, fingerprint=outcome.fingerprint, context_digest=context, error=outcome.error,
        streamed=request.streams, usage=outcome.usage, cost_usd=outcome.cost_usd,
        first_token_s=outcome.first_token_s, total_s=total_s, signals=outcome.signals,
        audit_probability=outcome.audit_probability, upstream=request.upstream or None,
        request=request.fields, response=outcome.response)
    return redact.exchange(exchange, request.secrets)


def local_exchange(id: str, path: str, outcome: RequestOutcome, total_s: float, labels: Mapping[str, str]) -> Exchange:
    """The facts of a request that a model of this server has answered: for traces, without anything that was said."""
    model = outcome.served_by or ""
    return Exchange(id, time.time(), model, table.locate("POST", path).dialect.name, path, model, outcome.mode,
                    outcome.status, "", labels=labels, served_by=outcome.served_by, usage=outcome.usage,
                    first_token_s=outcome.first_token_s, total_s=total_s)


def answer_of(request: ClientRequest, role: Role, at_s: float, outcome: RequestOutcome, total_s: float, *,
              probability: float | None = None, first_token_s: float | None = None) -> RecordedAnswer:
    """The row of another answer to a request, which its client did not see."""
    answer = RecordedAnswer(
        id=new_id(at_s), exchange=request.id, at_s=at_s, role=role, served_by=outcome.served_by,
        fingerprint=outcome.fingerprint, status=outcome.status, error=outcome.error, usage=outcome.usage,
        cost_usd=priced(outcome, request, None).cost_usd, first_token_s=first_token_s, total_s=total_s,
        signals=outcome.signals, probability=probability, response=outcome.response)
    return redact.answer(answer, request.secrets)


def priced(outcome: RequestOutcome, request: ClientRequest, prices: Prices | None) -> RequestOutcome:
    """The outcome with what its answer cost, None if that is unknown. A small model's costs nothing, unless the prices
    have its name."""
    if outcome.cost_usd is not None or outcome.is_continued:
        return outcome
    if outcome.mode in ("small", "degraded"):
        price = None if prices is None else prices.models.get(outcome.served_by or "")
        usd = 0.0 if price is None else None if outcome.usage is None else price.of(outcome.usage)
    else:
        is_error = outcome.status >= 400 and outcome.usage is None and bool(outcome.lost)
        usd = 0.0 if is_error else None if prices is None else prices.cost(
            outcome.served_by, request.model, outcome.usage, request.upstream)
    for usage in outcome.lost:
        more = None if prices is None else prices.cost(None, request.model, usage, request.upstream)
        usd = None if usd is None or more is None else usd + more
    return outcome if usd is None else replace(outcome, cost_usd=usd)


def outcome_of(delivery: Delivery, request: ClientRequest, mode: Mode, error: str | None = None) -> RequestOutcome:
    """What an answer of the large model says of itself."""
    body, fault = _response(delivery, request)
    if error is None and delivery.status >= 300:
        error = _error(body) or f"status {delivery.status}"
    first_s = None if delivery.first_s is None else delivery.first_s - request.started_s
    about = body or {}
    usage = delivery.usage or request.dialect.usage(about)
    return RequestOutcome(mode, delivery.status, text(about.get("model")), body, usage,
                          text(about.get("system_fingerprint")), error or fault, first_s, lost=delivery.lost)


def with_response(outcome: RequestOutcome, request: ClientRequest) -> RequestOutcome:
    """The outcome with what is still to be read of its answer. For a long stream this takes milliseconds."""
    if outcome.unread is None:
        return outcome
    known = outcome_of(outcome.unread, request, outcome.mode, outcome.error)
    if not outcome.signals and not outcome.answers:
        return known
    return replace(known, signals=outcome.signals, answers=outcome.answers)


def _response(delivery: Delivery, request: ClientRequest) -> tuple[Body | None, str | None]:
    """The body, or that of a stream, and why it is no whole answer, or was not kept."""
    dialect = request.dialect
    if not dialect.is_read:  # such as a session's secret, or a file: no proof needs it
        return None, None
    if delivery.unkept is not None:
        return None, delivery.unkept
    if delivery.is_stream:
        whole = assemble(dialect, bytes(delivery.body))
        return whole.body, whole.error or dialect.failure(whole.body)
    if delivery.fields is not None:
        return delivery.fields, delivery.why
    body = encodings.decoded(bytes(delivery.body), headers.find(delivery.headers, b"content-encoding"), KEPT_BYTES)
    if body is None:
        return None, f"the answer was not read: it is longer than {KEPT_BYTES >> 20} MiB, or not compressed as it says"
    fields = json_object(body)
    if fields is None and body.strip():
        return None, f"the body is no JSON object: {body[:40]!r}"
    return fields, dialect.failure(fields)


def _error(body: Body | None) -> str | None:
    error = (body or {}).get("error", (body or {}).get("message"))
    message = error.get("message") if isinstance(error, dict) else error
    return text(message)
