"""Tables of `brise log`: exchanges, one exchange, counts."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from brise.cli import terminal
from brise.dialects import token_counts
from brise.dialects.bodies import Usage
from brise.dialects.table import named
from brise.report import figures
from brise.traffic import log
from brise.traffic.records import Exchange, KnownSum, RecordedAnswer, not_written, shadow_skipped
from brise.traffic.sql_store import SqlStore
from brise.traffic.store import Query
from brise.traffic.summary import Summary, is_answered, summarise

WIDTH, ID_CHARACTERS, MOST_CHARACTERS = 130, 32, 48


def table(store: SqlStore, query: Query, as_json: bool) -> int:
    """One line an exchange, or a JSON object a line."""
    found = list(store.exchanges(query))
    if as_json:
        for exchange in found:
            terminal.result(json.dumps(_fields(exchange)))
        return 0
    if not found:
        terminal.note("nothing was found")
        return 0
    shown = Table(box=None, pad_edge=False)
    for name in ("id", "when", "task", "mode", "status", "tokens", "seconds", "asked"):
        shown.add_column(name, justify="right" if name in ("status", "tokens", "seconds") else "left", no_wrap=True,
                         overflow="ellipsis", min_width=ID_CHARACTERS if name == "id" else None)
    for exchange in found:
        shown.add_row(*map(_safe, (
            exchange.id, when(exchange.at_s), exchange.task, exchange.mode, str(exchange.status),
            _tokens(exchange.usage), f"{exchange.total_s:.2f}", _shortened(asked(exchange)))))
    _console().print(shown)
    if query.text is None and (total := store.count(replace(query, limit=None))) > len(found):
        terminal.note(f"{len(found)} of {total}; --limit shows more")
    return 0


def one(store: SqlStore, id: str, as_json: bool) -> int:
    """Everything that is known of an exchange."""
    exchange = log.find(store, id)
    answers, labels = list(store.answers([id])), list(store.labels([id]))
    if as_json:
        terminal.result(json.dumps({**_fields(exchange), "answers": [_fields(answer) for answer in answers],
                                    "labels": [asdict(label) for label in labels]}, indent=1))
        return 0
    facts: dict[str, Any] = {
        "id": exchange.id, "when": when(exchange.at_s), "task": exchange.task, "path": exchange.path,
        "asked for": exchange.model, "upstream": exchange.upstream,
        "answered by": exchange.served_by, "fingerprint": exchange.fingerprint,
        "mode": exchange.mode, "status": exchange.status, "error": exchange.error,
        "conversation": exchange.conversation, "continues": exchange.parent, "subject": exchange.subject,
        **{f"label {name}": value for name, value in exchange.labels.items()}, "tokens": _tokens(exchange.usage),
        "of the cache": _of_cache(exchange.usage),
        "cost": _cost(exchange), "seconds": _seconds(exchange)}
    for name, value in facts.items():
        if value is not None and value != "":
            terminal.result(terminal.harmless(f"{name:<13}  {value}"))
    for title, body in (("request", exchange.request), ("response", exchange.response)):
        terminal.result(f"\n{title}")
        terminal.result(_indented(body))
    for answer in answers:
        terminal.result(terminal.harmless(f"\n{answer.role} {answer.id} by {answer.served_by or '?'}"
                                          f"{f', {answer.error}' if answer.error else ''}"))
        terminal.result(_indented(answer.response))
    for label in labels:
        scores = [f"{name} {score:g}" for name, score in (("score", label.score), (
            f"score of {label.answer}", label.answer_score)) if score is not None]
        terminal.result(terminal.harmless(f"\nlabel ({label.rung}) by {label.who}: {', '.join(scores)}  {label.note}"))
    return 0


def stats(store: SqlStore, query: Query, as_json: bool) -> int:
    """Counts and times of each task, and what was not written."""
    summary = summarise(store.exchanges(query), store.answer_costs(query))
    counts, pending = store.skipped(), len(store.pending(10_000))
    skipped, shadow = not_written(counts), shadow_skipped(counts)
    if as_json:
        terminal.result(json.dumps({**asdict(summary), "exchanges": summary.exchanges, "cost": asdict(summary.cost),
                                    "skipped": skipped, "pending": pending,
                                    **({"shadow": shadow} if shadow else {})}, indent=1))
        return 0
    _stats_table(summary)
    terminal.result(f"{summary.exchanges} exchanges" + (
        "" if summary.first_at_s is None or summary.last_at_s is None else
        f" from {when(summary.first_at_s)} to {when(summary.last_at_s)}"))
    for line in _cost_lines(summary):
        terminal.result(line)
    for reason, number in skipped.items():
        terminal.result(f"{number} requests were not written: {reason}")
    for task, reasons in sorted(shadow.items()):
        for reason, number in reasons.items():
            terminal.result(terminal.harmless(f"{number} answered requests of {task!r} have no shadow answer: "
                                              f"{reason}"))
    if pending:
        terminal.result(f"{pending} requests wait for the large model's answer")
    return 0


def _stats_table(summary: Summary) -> None:
    shown = Table(box=None, pad_edge=False)
    for name in ("task", "exchanges", "talks", "modes", "errors", "tokens in", "out", "USD", "p50 s", "p95 s",
                 "first p50 s"):
        shown.add_column(name, justify="left" if name in ("task", "modes") else "right")
    for task in summary.tasks:
        modes = ", ".join(f"{mode} {number}" for mode, number in sorted(task.modes.items()))
        shown.add_row(*map(_safe, (
            task.task, str(task.exchanges), str(task.conversations), modes, str(task.errors), str(task.prompt_tokens),
            str(task.completion_tokens), _usd(task.cost),
            *("-" if value is None else f"{value:.2f}" for value in (task.p50_s, task.p95_s, task.first_p50_s)))))
    _console().print(shown)


def _cost_lines(summary: Summary) -> list[str]:
    """Of how many requests tokens and cost are known, and what was asked besides."""
    lines, cost = list[str](), summary.cost
    for what, known in (("tokens are", sum(task.tokens_known for task in summary.tasks)), ("cost is", cost.known)):
        if known < cost.number:
            bound = ": a sum over them is a lower bound" if known else ""
            lines.append(f"{what} known for {figures.percent(known / cost.number, 0)} of the answered requests "
                         f"({known} of {cost.number}){bound}")
    lines += [terminal.harmless(f"{task.task}: {role} answers cost {_usd(paid)} USD besides ({paid.known} of "
                                f"{paid.number} known)")
              for task in summary.tasks for role, paid in task.other.items() if paid.usd != 0 or not paid.known]
    return lines


def _usd(cost: KnownSum) -> str:
    if cost.usd is None:
        return "unknown" if cost.number else "-"
    return f"{cost.usd:.4f}" if cost.known == cost.number else f"at least {cost.usd:.4f}"


def when(at_s: float) -> str:
    """In this machine's time."""
    return datetime.datetime.fromtimestamp(at_s).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def asked(exchange: Exchange) -> str:
    """The last thing that was said in the request."""
    if exchange.request is None:
        return "(no content)"
    turns = named(exchange.kind).conversation(exchange.request)
    said = json.loads(turns[-1].content) if turns else {"text": exchange.request.get("prompt", exchange.request.get(
        "input", ""))}
    return str(said.get("text") or said.get("answers") or said.get("output") or "")


def _fields(record: Exchange | RecordedAnswer) -> dict[str, Any]:
    return {**asdict(record), "usage": token_counts.shown(record.usage)}


def _cost(exchange: Exchange) -> str | None:
    if exchange.cost_usd is not None:
        return f"{exchange.cost_usd:.6f} USD"
    return "unknown" if is_answered(exchange) else None


def _seconds(exchange: Exchange) -> str:
    first = "" if exchange.first_token_s is None else f", first token after {exchange.first_token_s:.3f}"
    return f"{exchange.total_s:.3f}{first}"


def _tokens(usage: Usage | None) -> str:
    if usage is None:
        return ""
    return "+".join("unknown" if count is None else str(count)
                    for count in (usage.prompt_tokens, usage.completion_tokens))


def _of_cache(usage: Usage | None) -> str:
    if usage is None or not (usage.cached_tokens or usage.cache_write_tokens):
        return ""
    return f"{usage.cached_tokens or 0} read, {usage.cache_write_tokens or 0} written"


def _indented(body: object) -> str:
    text = "no content" if body is None else json.dumps(body, indent=1, ensure_ascii=False)
    return terminal.harmless("\n".join(f"  {line}" for line in text.split("\n")))


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MOST_CHARACTERS else line[:MOST_CHARACTERS - 1] + "…"


def _safe(text: str) -> Text:
    return Text(terminal.harmless(text).replace("\n", " "))


def _console() -> Console:
    return Console(width=WIDTH, highlight=False)
