"""How sure a small model's answer is: numbers from the answer, its tokens, and the request, cheapest first.

    veto          1 if the answer cannot be right: cut short, no JSON where JSON was asked for, against the schema, a
                  function that is not offered
    absent        share of the call's values that stand nowhere in the conversation
    logprob       log-probability of the whole answer, after the grammar: a choice that the grammar left open
    mean, least   the same for a token on average, and for the unluckiest
    least_field   the least log-probability of a value of the JSON (all its tokens), or of what stands before it
    margin        the least lead of a token over its best rival, in log-probability; mean_margin on average
    q10, q25, q50 quantiles of the tokens' log-probabilities
    length        log of the number of tokens
    novelty       distance of the request to those that the rule was fitted on (switch/novelty.py)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from brise.dialects import answers
from brise.dialects.bodies import Body
from brise.engine.request import TokenLogprob
from brise.evals import compare, scorers
from brise.evals.example import EvalAnswer
from brise.switch import schema_fit
from brise.switch.rule import VETO

NUM_RIVALS = 2  # alternatives to ask for with each token: the token itself, and its rival
# Signals that an answer's tokens give; a server that gives no log-probabilities gives none of them.
OF_TOKENS: Sequence[str] = ("logprob", "mean", "least", "least_field", "margin", "mean_margin", "q10", "q25", "q50",
                            "length")
_FLOOR = -100.0  # of log-probabilities, where a server says minus infinity


def measure(fields: Body, answer: Body, tokens: Sequence[TokenLogprob] = ()) -> dict[str, float]:
    """All signals but `novelty`."""
    given = answers.of(answer)
    found = {VETO: float(veto(fields, given) is not None)}
    values = list(_called_values(given))
    if values:
        said = _squeezed(json.dumps([fields.get("messages")], ensure_ascii=False))
        found["absent"] = sum(_squeezed(value) not in said for value in values) / len(values)
    return found | _of_tokens(tokens, has_calls=bool(given.calls))


def veto(fields: Body, given: EvalAnswer) -> str | None:
    """Why the answer cannot be right, or None."""
    if given.error is not None:
        return given.error
    if given.finish == "length":
        return "the answer was cut short"
    tools = {tool["name"]: tool for tool in answers.tools_of(fields)}
    for call in given.calls:
        if call.name not in tools:
            return f"the function {call.name!r} is not offered"
        arguments = compare.parse(call.arguments or "{}")
        if arguments is compare.INVALID:
            return f"the arguments of {call.name!r} are no JSON"
        problem = schema_fit.misfit(arguments, tools[call.name].get("parameters"))
        if problem is not None:
            return f"{call.name!r}: {problem}"
    if not given.calls and _must_call(fields):
        return "a function was to be called"
    return None if given.calls else _text_veto(fields, given.text)


def _text_veto(fields: Body, text: str) -> str | None:
    format = fields.get("response_format")
    kind = format.get("type") if isinstance(format, dict) else None
    if kind not in ("json_object", "json_schema"):
        return None if text.strip() else "the answer is empty"
    value = compare.parse(text)
    if value is compare.INVALID:
        return "the answer is no JSON"
    assert isinstance(format, dict)
    schema = format.get("json_schema") if kind == "json_schema" else {"schema": {"type": "object"}}
    return schema_fit.misfit(value, schema.get("schema")) if isinstance(schema, dict) else None


def _must_call(fields: Body) -> bool:
    choice = fields.get("tool_choice")
    return choice == "required" or isinstance(choice, dict)


def _called_values(given: EvalAnswer) -> Iterator[str]:
    """The values of calls, also of one written as text, that somebody may have said: not yes or no."""
    for _, arguments in scorers.calls_of(given):
        for _, value in compare.leaves(arguments):
            text = str(json.loads(value))
            if value not in ("true", "false", "null") and len(text) > 1:
                yield text


def _squeezed(text: str) -> str:
    return "".join(char for char in text.casefold() if char.isalnum())


def _of_tokens(tokens: Sequence[TokenLogprob], *, has_calls: bool) -> dict[str, float]:
    if not tokens:
        return {}
    logprobs = np.array([max(token.logprob, _FLOOR) for token in tokens], np.float64)
    margins = np.array([_margin(token) for token in tokens], np.float64)
    low, quarter, middle = np.quantile(logprobs, (0.1, 0.25, 0.5)).tolist()
    return {"logprob": float(logprobs.sum()), "mean": float(logprobs.mean()), "least": float(logprobs.min()),
            "least_field": _least_field(tokens, logprobs.tolist(), has_calls=has_calls),
            "margin": float(margins.min()), "mean_margin": float(margins.mean()),
            "q10": low, "q25": quarter, "q50": middle, "length": math.log(len(tokens))}


def _margin(token: TokenLogprob) -> float:
    """The lead over the best other token; one that nothing rivals leads by as much as can be told."""
    rivals = [logprob for other, _, logprob in token.top if other != token.token]
    best = max(rivals, default=_FLOOR)
    return min(max(token.logprob, _FLOOR) - max(best, _FLOOR), -_FLOOR)


def _least_field(tokens: Sequence[TokenLogprob], logprobs: Sequence[float], *, has_calls: bool) -> float:
    """Of values in the JSON that the tokens spell; an answer without JSON is one field."""
    ends = np.cumsum([len(token.text) for token in tokens])
    starts = ends - np.array([len(token.text) for token in tokens])
    places = spans(b"".join(token.text for token in tokens))
    if not places:
        return float(sum(logprobs))
    if has_calls and places[0][0] > 0:
        places = [(0, places[0][0]), *places]  # the function's name stands before its arguments
    values = np.asarray(logprobs)
    return min(float(values[(starts < end) & (ends > start)].sum()) for start, end in places)


_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_PLAIN = re.compile(rb"-?[0-9][0-9.eE+-]*|true|false|null")
_KEY_END = re.compile(rb"\s*:")

Span = tuple[int, int]


def spans(text: bytes) -> list[Span]:
    """Start and end of each string, number, true, false and null that is a value, not the name of a field.

    What stands outside of objects and lists is no value.
    """
    found: list[Span] = []
    depth = at = 0
    while at < len(text):
        char = text[at:at + 1]
        match_ = (_STRING if char == b'"' else _PLAIN).match(text, at) if depth else None
        if match_ is not None:
            if char != b'"' or not _KEY_END.match(text, match_.end()):
                found.append(match_.span())
            at = match_.end()
            continue
        depth += (char in b"{[") - (char in b"}]" and depth > 0)
        at += 1
    return found
