"""Answers of chat completions as values: what they say, what they call, and whether two of them say the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from brise.dialects.bodies import Body, first_choice, objects
from brise.errors import EvidenceError
from brise.evals import compare, scorers
from brise.evals.example import AnsweredCall, EvalAnswer, EvalExample

# The figure of each scorer that says whether all of an answer is right.
WHOLE: Mapping[str, str] = {"call": "call_exact", "json": "equal", "class": "accuracy", "exact": "exact_squeezed"}
SCORERS: Sequence[str] = ("auto", *WHOLE)


def of(body: Body | None) -> EvalAnswer:
    """The first choice of a chat completion; an answer with an `error` if the body holds none."""
    choice = first_choice(body or {}) or {}
    message = choice.get("message")
    if not isinstance(message, dict):
        return EvalAnswer(error="the body holds no answer")
    return EvalAnswer(text_of(message.get("content")), tuple(_calls(message.get("tool_calls"))),
                      str(choice.get("finish_reason") or ""))


def tools_of(fields: Body | None) -> tuple[Body, ...]:
    """The functions that a request offers: name, parameters."""
    functions = [tool.get("function") for tool in objects((fields or {}).get("tools"))]
    return tuple(function for function in functions if isinstance(function, dict) and "name" in function)


def user_text(fields: Body | None) -> str:
    """All messages of users in a request."""
    return "\n".join(text_of(message.get("content")) for message in objects((fields or {}).get("messages"))
                     if message.get("role") == "user")


def agreement(given: EvalAnswer, reference: EvalAnswer, scorer: str = "auto") -> float:
    """1 if the answer says what the reference says, by a scorer of `brise eval`; else 0.

    `auto` compares calls if either answer has some, JSON if the reference is an object or a list, else texts.
    """
    if given.error is not None or reference.error is not None:
        return 0.0
    if scorer == "auto":
        scorer = _fitting(given, reference)
    example = EvalExample((), reference, "the large model's answer", "", "", tools=({},))
    try:
        counts = scorers.built_in((reference.text.strip(),))[scorer].row(example, given)
    except EvidenceError:  # this scorer cannot read the reference itself
        return 0.0
    right, of_all = counts[WHOLE[scorer]]
    return right / of_all


def text_of(content: object) -> str:
    """The text of a message's content: a string, or parts of which some are text."""
    if isinstance(content, str):
        return content
    texts = [part.get("text") for part in objects(content) if part.get("type", "text") == "text"]
    return "\n".join(text for text in texts if isinstance(text, str))


def _fitting(given: EvalAnswer, reference: EvalAnswer) -> str:
    if given.calls or reference.calls:
        return "call"
    return "json" if isinstance(compare.parse(reference.text), dict | list) else "exact"


def _calls(calls: object) -> Sequence[AnsweredCall]:
    functions = [call.get("function") for call in objects(calls)]
    return [AnsweredCall(str(function.get("name")), _arguments(function.get("arguments"))) for function in functions
            if isinstance(function, dict)]


def _arguments(value: object) -> str:
    """JSON text, as OpenAI has it; some servers give the object itself."""
    return value if isinstance(value, str) else compare.canonical(value)
