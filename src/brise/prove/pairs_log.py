"""A log that has both answers: JSON lines, one request each.

{"prompt": "...", "small": "...", "large": "...", "reference": "..."} is enough. In full:

    id, conversation (texts or numbers), at (seconds since the epoch, or ISO 8601), labels {name: value}, meta
    messages or prompt, tools                    what was asked
    small, large, again                          the answers: text, or {"content", "tool_calls", "finish_reason",
                                                 "error", "model", "fingerprint", "seconds"}
    reference                                    the right answer: text, or {"content", "tool_calls"}
    small_score, large_score, again_score, rung  or what each is worth, in [0, 1], and who says so
"""

from __future__ import annotations

import codecs
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from brise.data import identity
from brise.data.left_out import LeftOut
from brise.dialects.bodies import context_digest
from brise.errors import EvidenceError, RequestError
from brise.evals.example import AnsweredCall, EvalAnswer
from brise.prove.pairs import NO_CONTEXT, Judgement, ModelAnswer, Pair, read_evidence
from brise.stats.labels import JUDGEMENT_SOURCES, JudgementSource
from brise.text.fields import RequestFields
from brise.text.json_text import Json, parse_json
from brise.text.openai_messages import parse_messages, template_message
from brise.text.openai_tools import parse_tools
from brise.text.protocols import Message

MOST_SHOWN = 20
SKIP = "mend them, or leave them out with --skip-bad, which counts them beside the verdict"


def read(path: Path, cluster: str | None = None, left_out: LeftOut | None = None) -> tuple[Pair, ...]:
    """All pairs of the file. `cluster` names a label whose value tells clusters apart, else `conversation` does.

    A row that cannot be read refuses all of them: figures over part of a log are no figures of the log. With `left_out`
    it is counted there instead, and costs no other row.
    """
    lines = read_evidence(path).removeprefix(codecs.BOM_UTF8).splitlines()
    pairs, bad = list[Pair](), list[str]()
    for number, line in enumerate(lines, 1):
        place = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            pairs.append(_pair(parse_json(line, "the row", mend=True), place, cluster))
        except RequestError as error:
            bad.append(f"  {place}: {error.args[0]}")
            if left_out is not None:
                left_out[f"of the log that cannot be read: {error.args[0]}"] += 1
    if bad and (left_out is None or not pairs):
        more = [f"  and {len(bad) - MOST_SHOWN} more"] if len(bad) > MOST_SHOWN else []
        raise EvidenceError("\n".join([f"{len(bad)} of {len(bad) + len(pairs)} rows are no pairs:",
                                       *bad[:MOST_SHOWN], *more]), hint=SKIP if left_out is None else None)
    if not pairs:
        raise EvidenceError(f"{str(path)!r} has no pairs")
    ids = {pair.id for pair in pairs}
    if len(ids) < len(pairs):
        raise EvidenceError(f"{len(pairs) - len(ids)} rows of {str(path)!r} have an id that another one has")
    return tuple(pairs)


def _pair(value: Json, place: str, cluster: str | None) -> Pair:
    if not isinstance(value, dict):
        raise RequestError("the row is no object")
    fields = RequestFields(value)
    prompt, tools = _prompt(fields), tuple(tool.as_json() for tool in parse_tools(fields))
    number = place.rpartition(":")[2]
    judgement = _judgement(fields)
    small, large = (_side(fields, name, is_needed=judgement is None) for name in ("small", "large"))
    again = None if fields.raw("again") is None else _side(fields, "again", is_needed=True)
    reference = None if fields.raw("reference") is None else _side(fields, "reference", is_needed=True).answer
    labels = {name: str(label) for name, label in (fields.mapping("labels") or {}).items()}
    own = _name(fields, "conversation") or _name(fields, "conversation_id")
    name = own or (identity.derived_conversation(prompt, tools) if prompt else number)
    if cluster is not None:
        if cluster not in labels:
            raise RequestError(f"there is no label {cluster!r}, by which independent clusters are told apart")
        name = labels[cluster]
    context = context_digest({part: fields.raw(part) for part in ("messages", "tools")}) or NO_CONTEXT
    pair = Pair(_name(fields, "id") or number, place, name, small, large, again, _time(fields), prompt, tools,
                reference, context, labels, fields.mapping("meta") or {}, () if judgement is None else (judgement,),
                is_named=own is not None or cluster is not None)
    fields.done()
    return pair


def _name(fields: RequestFields, name: str) -> str | None:
    """A name as text or as a number, as in files of examples; 7 and "7" are the same one."""
    value = fields.raw(name)
    return str(value) if type(value) in (int, float) else fields.text(name)


def _prompt(fields: RequestFields) -> tuple[Message, ...]:
    text = fields.text("prompt")
    if text is not None:
        fields.refuse("messages", "the row has 'prompt'")
        return ({"role": "user", "content": text},)
    if fields.raw("messages") is None:
        return ()
    return tuple(template_message(message) for message in parse_messages(fields))


def _side(fields: RequestFields, name: str, *, is_needed: bool) -> ModelAnswer:
    """An answer as text, or as an object; none at all where scores say what it is worth."""
    value = fields.raw(name)
    if value is None:
        if is_needed:
            raise fields.missing(name)
        return ModelAnswer(EvalAnswer())
    if isinstance(value, str):
        return ModelAnswer(EvalAnswer(value))
    own = RequestFields(value, name)
    calls = tuple(_call(call) for call in own.objects("tool_calls"))
    answer = EvalAnswer(own.text("content") or "", calls, own.text("finish_reason") or "stop", own.text("error"))
    own.choice("role", ("assistant",))
    side = ModelAnswer(answer, own.text("model"), own.text("fingerprint"), own.number("seconds", 0, 1e9))
    own.done()
    return side


def _call(call: RequestFields) -> AnsweredCall:
    call.text("id")
    call.choice("type", ("function",))
    function = call.required_child("function")
    found = AnsweredCall(function.required_text("name"), function.required_text("arguments"))
    function.done()
    call.done()
    return found


def _judgement(fields: RequestFields) -> Judgement | None:
    small, large, again = (fields.number(f"{name}_score", 0, 1) for name in ("small", "large", "again"))
    label_source = fields.choice("rung", JUDGEMENT_SOURCES)
    if small is None and large is None and again is None and label_source is None:
        return None
    if small is None or large is None:
        raise fields.missing("small_score" if small is None else "large_score")
    return Judgement(cast(JudgementSource, label_source or "outcome"), small, large, again, who="the log")


def _time(fields: RequestFields) -> float | None:
    """Seconds since the epoch, or ISO 8601; without a zone it is UTC."""
    value = fields.raw("at")
    if not isinstance(value, str):
        return fields.number("at", 0, 1e11)
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        raise fields.error("at", f"is {value[:40]!r}, allowed is a number of seconds or ISO 8601") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
