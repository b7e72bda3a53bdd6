"""Exports captured exchanges as rows for `brise tune` and `brise eval`: each row has one answer to learn.

Earlier answers of a conversation have weight 0: each of them is learned in the row of its own exchange. Arguments of
calls are in the order of their function's schema. A row names the provider of its answer, if a large model wrote it, so
that the teacher's rights are asked for (data/rights.py).
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from brise.data.left_out import LeftOut
from brise.data.parse_row import RowRules, parse_row
from brise.data.render import UNLEARNED
from brise.data.rights import provider_of_model
from brise.dialects import answers as answers_of
from brise.dialects import table
from brise.dialects.bodies import Body
from brise.dialects.dialect import Dialect
from brise.errors import RequestError
from brise.evals.scorers import AnswerKinds
from brise.text.argument_order import with_ordered_arguments
from brise.text.finish_reasons import not_whole
from brise.text.json_text import mended_fields
from brise.traffic.records import Exchange, Label, RecordedAnswer
from brise.traffic.scrub import Scrubber
from brise.traffic.store import Query, TrafficStore

# served: what the client got; hosted: the large model's, wherever it is recorded; best: the one with the best label.
Whose = Literal["served", "hosted", "best"]
HOSTED_MODES = ("hosted", "escalated")
HOSTED_ROLES = ("audit", "reanswer", "reask")
PAGE = 200


@dataclass(frozen=True)
class TrafficExportOptions:
    """`provider` is written instead of what the model's name says; "" for none: an open model, a person.

    `least_score`: of the best answer's label; lower ones are left out. `held`: conversations of open tests and their
    tasks (prove/analyses.py), left out but where `include_open_tests`.
    """

    whose: Whose = "hosted"
    provider: str | None = None
    least_score: float = 0.0
    held: Mapping[str, str] = field(default_factory=dict)
    include_open_tests: bool = False


@dataclass
class ExportReport:
    """What became of the exchanges: rows, and how many were left out for which reason.

    `held` are the conversations of open tests, by task, that were left out or, if they were to be, exported. `kinds`
    says which scorer fits the rows' answers.
    """

    rows: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)
    held: dict[str, set[str]] = field(default_factory=dict)
    kinds: AnswerKinds = field(default_factory=AnswerKinds)


@dataclass(frozen=True)
class _Chosen:
    """An answer to an exchange, and who gave it. `flaw`: why it is nothing to learn from."""

    response: Body | None
    model: str | None
    is_hosted: bool
    flaw: str | None
    score: float | None = None


def rows(store: TrafficStore, query: Query, options: TrafficExportOptions, scrubber: Scrubber | None,
         report: ExportReport) -> Iterator[dict[str, Any]]:
    """The rows, in the order of time; each can be read back. `report` is filled meanwhile."""
    exchanges = store.exchanges(query)
    while page := list(islice(exchanges, PAGE)):
        ids = [exchange.id for exchange in page]
        answers, labels = list(store.answers(ids)), list(store.labels(ids))
        for exchange in page:
            try:
                _gate(exchange, options, report, is_out=False)
                row = _row(exchange, [answer for answer in answers if answer.exchange == exchange.id],
                           [label for label in labels if label.exchange == exchange.id], options)
                row = dict[str, Any](mended_fields(row if scrubber is None else scrubber.scrub(row)))
                _check(row)
            except RecursionError:
                report.left_out["it is nested too deep"] += 1
            except ValueError as error:
                report.left_out[str(error)] += 1
            else:
                report.rows += 1
                report.kinds.add(answers_of.of({"choices": [{"message": row["messages"][-1]}]}),
                                 has_tools=bool(row.get("tools")))
                _gate(exchange, options, report, is_out=True)
                yield row


def _gate(exchange: Exchange, options: TrafficExportOptions, report: ExportReport, *, is_out: bool) -> None:
    """Notes a conversation of an open test: as left out, or once a row of it `is_out`. ValueError if it may not be."""
    name = exchange.conversation or exchange.id
    task = options.held.get(name)
    if task is not None and is_out == options.include_open_tests:
        report.held.setdefault(task, set()).add(name)
    if task is not None and not options.include_open_tests:
        raise ValueError(f"of the open test of {task!r}: not to be trained on until brise prove has decided")


def _row(exchange: Exchange, answers: Sequence[RecordedAnswer], labels: Sequence[Label],
         options: TrafficExportOptions) -> dict[str, Any]:
    if exchange.request is None:
        raise ValueError("its content was not kept, or is forgotten")
    chosen = _choose(exchange, answers, labels, options)
    if chosen.response is None:
        raise ValueError("its answer was not kept, or is forgotten")
    dialect = table.named(exchange.kind)
    messages, tools = dialect.chat_messages(exchange.request), dialect.chat_tools(exchange.request)
    if chosen.flaw is not None:
        raise ValueError(chosen.flaw)
    provider = _provider(chosen, options)
    meta = {"task": exchange.task, "mode": exchange.mode, "model": chosen.model, **(
        {} if chosen.score is None else {"score": chosen.score}), **(
        {"labels": dict(exchange.labels)} if exchange.labels else {}), "at": datetime.datetime.fromtimestamp(
            exchange.at_s, datetime.UTC).isoformat(timespec="milliseconds")}
    return {
        "messages": with_ordered_arguments(
            [*({**message, UNLEARNED: 0} if message.get("role") == "assistant" else message for message in messages),
             dialect.chat_answer(chosen.response)], tools),
        **({"tools": tools} if tools else {}), **({"provider": provider} if provider else {}),
        "conversation": exchange.conversation or exchange.id, "id": exchange.id, "meta": meta}


def _choose(exchange: Exchange, answers: Sequence[RecordedAnswer], labels: Sequence[Label],
            options: TrafficExportOptions) -> _Chosen:
    is_hosted = exchange.mode in HOSTED_MODES
    dialect = table.named(exchange.kind)
    is_whole = exchange.status < 400 and exchange.error is None
    served = _Chosen(exchange.response, exchange.served_by or exchange.model, is_hosted,
                     _flaw(dialect, exchange.response) if is_whole else "it was answered with an error, or in part")
    if options.whose == "served" or options.whose == "hosted" and is_hosted:
        return served
    others = {answer.id: _Chosen(answer.response, answer.served_by, answer.role in HOSTED_ROLES,
                                 _flaw(dialect, answer.response))
              for answer in answers if answer.error is None and answer.status < 400}
    if options.whose == "hosted":
        large_answers = sorted((other for other in others.values() if other.is_hosted),
                               key=lambda other: other.flaw is not None)
        if not large_answers:
            raise ValueError("the large model did not answer it")
        return large_answers[0]
    return _best(served, others, labels, options.least_score)


def _flaw(dialect: Dialect, response: Body | None) -> str | None:
    """Why an answer is nothing to learn from: it is none, whatever its status said, or it was cut or filtered."""
    if response is None:
        return None
    if (failure := dialect.failure(response)) is not None:
        return f"it is no answer: {failure.partition(':')[0]}"
    return not_whole(dialect.finish_reason(response))


def _best(served: _Chosen, others: dict[str, _Chosen], labels: Sequence[Label], least: float) -> _Chosen:
    """The answer with the highest label; among equals the client's own. Later labels replace earlier ones."""
    scored: dict[str | None, _Chosen] = {}
    for label in labels:
        for answer, chosen, score in ((None, served, label.score),
                                      (label.answer, others.get(label.answer or ""), label.answer_score)):
            if chosen is not None and chosen.response is not None and score is not None:
                scored[answer] = replace(chosen, score=score)
    if not scored:
        raise ValueError("none of its answers has a label")
    best = max(scored.values(), key=lambda chosen: (chosen.flaw is None, chosen.score or 0.0,
                                                    chosen.response is served.response))
    if (best.score or 0.0) < least:
        raise ValueError(f"its best answer has a label under {least:g}")
    return best


def _provider(chosen: _Chosen, options: TrafficExportOptions) -> str | None:
    """The provider whose rights apply to training on a large model's answer; the model's name if that does not tell."""
    if not chosen.is_hosted:
        return provider_of_model(chosen.model or "")
    return provider_of_model(chosen.model or "") or chosen.model if options.provider is None else options.provider


def _check(row: dict[str, Any]) -> None:
    """Checks a row by the rules by which it will be read. Images are checked later, by whoever has a vision model."""
    if any(isinstance(message.get("content"), list) and any(
            isinstance(part, dict) and part.get("type") == "image_url" for part in message["content"])
           for message in row["messages"]):
        return
    try:
        parse_row(row, row["id"], Path("."), RowRules())
    except RequestError as error:
        raise ValueError(str(error).partition("\n")[0]) from None
