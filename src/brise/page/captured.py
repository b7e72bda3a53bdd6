"""What the tab Traffic shows: rows without contents in the store's own order, and one exchange with all its answers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial, reduce
from typing import Any, get_args

from brise import settings
from brise.dialects import table, token_counts
from brise.dialects.answers import text_of
from brise.dialects.bodies import Body, Kind, objects
from brise.errors import RequestError, StoreError
from brise.page.endpoint import PageEndpoint, PageOptions, PageRequest
from brise.serve.error_response import NotFoundError
from brise.switch import state
from brise.switch.state import Switches, TaskState
from brise.traffic.records import Exchange, Mode, RecordedAnswer, Role, no_answer
from brise.traffic.sql_store import SqlStore
from brise.traffic.store import Company, Query
from brise.traffic.stores import open_store

MOST_ROWS = 1000  # of one page
MOST_TEXT, MOST_MESSAGES = 100_000, 200  # characters of a text, newest messages of a request
STATUSES: Mapping[str, tuple[int, int]] = {
    "answered": (200, 300), "refused": (400, 500), "failed": (500, 600), "left": (499, 500)}


def endpoints(options: PageOptions) -> Sequence[PageEndpoint]:
    """The endpoints of the list and of one exchange."""
    return (PageEndpoint("traffic", partial(_rows, options)),
            PageEndpoint("traffic/newest", partial(_newest, options)),
            PageEndpoint("exchange/{id}", partial(_exchange, options)))


def opened(options: PageOptions) -> SqlStore:
    """The store of the page, which must be there."""
    return open_store(options.store, settings.read().home, must_exist=True)


def _rows(options: PageOptions, request: PageRequest) -> object:
    """A page of rows, the newest first; `after` is where the last page ended. The first page has the number of all."""
    query = _query(request)
    limit = request.number("limit", MOST_ROWS, MOST_ROWS)
    try:
        with closing(opened(options)) as store:
            found = list(store.exchanges(_limited(query, limit)))
            company = store.company([exchange.id for exchange in found])
            number = None if query.after is not None else store.count(query)
    except StoreError as error:  # a server without captured traffic has a page, too
        return {"rows": [], "number": 0, "after": None, "why": str(error)}
    last = found[-1] if len(found) == limit and found else None
    return {"rows": [_row(exchange, company.get(exchange.id, Company())) for exchange in found], "number": number,
            "after": None if last is None else f"{last.at_s!r},{last.id}"}


def _newest(options: PageOptions, request: PageRequest) -> object:
    """The id of the newest row: whether there are more than the page shows."""
    try:
        with closing(opened(options)) as store:
            return {"id": next((exchange.id for exchange in store.exchanges(_limited(_query(request), 1))), None)}
    except StoreError:
        return {"id": None}


def _limited(query: Query, limit: int) -> Query:
    return Query(query.task, modes=query.modes, after=query.after, statuses=query.statuses, name=query.name,
                 newest_first=True, limit=limit, content=False)


def _query(request: PageRequest) -> Query:
    asked = request.query
    modes = tuple[Mode, ...](mode for mode in get_args(Mode) if mode in asked.get("modes", "").split(","))
    name = asked.get("name", "").strip()[:200]
    return Query(asked.get("task") or None, modes=modes or None, after=_after(asked.get("after")),
                 statuses=_statuses(asked.get("status") or None), name=name or None, content=False)


def _after(text: str | None) -> tuple[float, str] | None:
    if text is None:
        return None
    at, _, id = text.partition(",")
    try:
        at_s = float(at)
    except ValueError:
        at_s = math.nan
    if not math.isfinite(at_s) or not id:
        raise RequestError(f"'after' is {text[:64]!r}, the time and the id of a row are wanted", param="after")
    return at_s, id


def _statuses(text: str | None) -> tuple[int, int] | None:
    if text is None or text in STATUSES:
        return None if text is None else STATUSES[text]
    if not text.isascii() or not text.isdigit() or len(text) != 3:
        raise RequestError(f"'status' is {text[:64]!r}, allowed are a status of HTTP and {', '.join(STATUSES)}",
                           param="status")
    return int(text), int(text) + 1


def _row(exchange: Exchange, company: Company) -> dict[str, Any]:
    usage = exchange.usage
    return {"id": exchange.id, "at_s": exchange.at_s, "task": exchange.task, "model": exchange.model,
            "mode": exchange.mode, "status": exchange.status, "served_by": exchange.served_by,
            "subject": exchange.subject, "tokens": None if usage is None else usage.completion_tokens,
            "total_s": exchange.total_s, "cost_usd": exchange.cost_usd, "answers": list(company.roles),
            "labels": company.labels}


def _exchange(options: PageOptions, request: PageRequest) -> object:
    """One exchange: who answered and why; with the scope also what was said."""
    id, content = request.path["id"], request.may_read_content
    with closing(opened(options)) as store:
        exchange = store.exchange(id, content=content)
        if exchange is None:
            raise NotFoundError(f"there is no exchange {id[:64]!r} in the store")
        answers, labels = list(store.answers([id], content=content)), list(store.labels([id], content=content))
        lines = (line for line in store.ledger() if line.at_s <= exchange.at_s)
        switch = reduce(state.next_state_or_ended, lines, Switches()).tasks.get(exchange.task)
    return {
        "id": id, "has_content": content, "is_kept": exchange.request is not None, "at_s": exchange.at_s,
        "task": exchange.task, "mode": exchange.mode, "why": why(exchange, answers, switch),
        "signals": dict(exchange.signals), "facts": _facts(exchange),
        "messages": _messages(exchange) if content else None,
        "answers": [_answer(exchange.kind, exchange, "client"),
                    *(_answer(exchange.kind, answer, answer.role) for answer in answers)],
        "labels": [{"source": label.rung, "who": label.who, "at_s": label.at_s, "score": label.score,
                    "answer": label.answer, "answer_score": label.answer_score, "note": label.note}
                   for label in labels]}


def why(exchange: Exchange, answers: Sequence[RecordedAnswer], switch: TaskState | None) -> list[str]:
    """Who answered and why, in sentences; `switch` is how its task was switched at that time."""
    model, failed = exchange.served_by or exchange.model, no_answer(exchange)
    candidate = "the small model" if switch is None else switch.candidate
    match exchange.mode:
        case "hosted":
            said = [f"The large model answered: {model}.", _not_switched(switch)]
        case "small":
            said = [f"The small model answered: {model}.", *_switched(switch), *_confidence(exchange, switch)]
        case "escalated":
            said = [f"The large model answered, because {candidate} was not sure.", *_confidence(exchange, switch)]
        case "degraded":
            said = [f"The large model was out of reach, so a small one answered: {model}."]
        case "failed":
            said = ["Nobody answered."]
    if failed is not None or exchange.error is not None:
        said.append(f"It failed: {exchange.error or failed}.")
    if exchange.audit_probability is not None:
        drawn = any(answer.role == "audit" for answer in answers)
        said.append(f"It was {'' if drawn else 'to be '}audited, drawn with the probability "
                    f"{exchange.audit_probability:.3g}.")
    return [sentence for sentence in said if sentence]


def _not_switched(switch: TaskState | None) -> str:
    if switch is None:
        return "No small model was switched in for this task."
    if not switch.is_on:
        return f"The switch to {switch.candidate} had ended: {switch.ended or 'the alarm rang'}."
    if switch.share < 1:
        return f"{switch.candidate} answered {100 * switch.share:g} % of the conversations, and not this one."
    return f"{switch.candidate} was switched in, and was not asked here."


def _switched(switch: TaskState | None) -> list[str]:
    return [] if switch is None else [f"It was switched in for {100 * switch.share:g} % of the conversations, by line "
                                      f"{switch.number} of the ledger."]


def _confidence(exchange: Exchange, switch: TaskState | None) -> list[str]:
    """What the rule made of the signals, against what it keeps."""
    rule = None if switch is None else switch.rule
    if switch is None or rule is None:
        return []
    if vetoes := [name for name in rule.vetoes if exchange.signals.get(name, 0.0) > 0]:
        return [f"Its answer was vetoed: {', '.join(vetoes)}."]
    confidence = rule.confidence(exchange.signals)
    if confidence is None:
        return [f"The signal {rule.missing_signal(exchange.signals)!r} is missing, which its rule needs."]
    least = rule.tight if switch.is_tight else rule.threshold
    caution = ", with caution raised" if switch.is_tight else ""
    return [f"Its confidence was {confidence:.3f}; {least:.3f} or more is kept{caution}."]


def _facts(exchange: Exchange) -> list[tuple[str, str]]:
    """Names and values, as `brise log show` has them."""
    found: list[tuple[str, object]] = [
        ("asked for", exchange.model), ("answered by", exchange.served_by), ("upstream", exchange.upstream),
        ("status", exchange.status), ("kind", exchange.kind), ("conversation", exchange.conversation),
        ("continues", exchange.parent), ("subject", exchange.subject),
        *((f"label {name}", value) for name, value in exchange.labels.items())]
    return [(name, str(value)) for name, value in found if value is not None and value != ""]


def _answer(kind: Kind, answer: Exchange | RecordedAnswer, role: Role | str) -> dict[str, Any]:
    probability = answer.probability if isinstance(answer, RecordedAnswer) else None
    return {"id": answer.id, "role": role, "served_by": answer.served_by, "fingerprint": answer.fingerprint,
            "status": answer.status, "error": answer.error, "usage": token_counts.shown(answer.usage),
            "cost_usd": answer.cost_usd, "first_token_s": answer.first_token_s, "total_s": answer.total_s,
            "probability": probability, **said(kind, answer.response)}


def said(kind: Kind, response: Body | None) -> dict[str, Any]:
    """The text and the calls of an answer in any dialect. One that has no such form is shown as it is."""
    if response is None:
        return {"text": None, "calls": [], "reasoning": None, "finish": None}
    dialect = table.named(kind)
    finish = dialect.finish_reason(response)
    try:
        message = dialect.chat_answer(response)
    except ValueError:
        return {"text": shortened(json.dumps(response, indent=1, ensure_ascii=False)), "calls": [], "reasoning": None,
                "finish": finish}
    return {**_turn(message), "finish": finish}


def _messages(exchange: Exchange) -> dict[str, Any]:
    """The messages of the request; its body as it is where it has none."""
    if exchange.request is None:
        return {"left_out": 0, "list": []}
    try:
        found = table.named(exchange.kind).chat_messages(exchange.request)
    except ValueError:
        text = shortened(json.dumps(exchange.request, indent=1, ensure_ascii=False))
        return {"left_out": 0, "list": [{"role": "request", "text": text, "calls": [], "reasoning": None}]}
    return {"left_out": max(len(found) - MOST_MESSAGES, 0),
            "list": [{"role": str(message.get("role")), **_turn(message)} for message in found[-MOST_MESSAGES:]]}


def _turn(message: Mapping[str, Any]) -> dict[str, Any]:
    """What a message says: its text with a word for each image, its calls, its reasoning."""
    content = message.get("content")
    others = [str(part.get("type")) for part in objects(content) if part.get("type", "text") != "text"]
    marks = [f"[{name.removeprefix('input_').removesuffix('_url')}]" for name in others]
    calls = [call.get("function") for call in objects(message.get("tool_calls"))]
    return {"text": shortened("\n".join(filter(None, (text_of(content), *marks)))),
            "calls": [{"name": str(call.get("name")), "arguments": shortened(str(call.get("arguments")))}
                      for call in calls if isinstance(call, dict)],
            "reasoning": shortened(text) if isinstance(text := message.get("reasoning_content"), str) else None}


def shortened(text: str) -> str:
    """The text, or its beginning and a word about the rest."""
    if len(text) <= MOST_TEXT:
        return text
    return f"{text[:MOST_TEXT]}\n[{len(text) - MOST_TEXT} more characters: brise log show]"
