"""The Berkeley function-calling leaderboard's files: questions with functions, and the answers that are right.

    NAME.json                  {"id", "question": [[message, ...]], "function": [{"name", "description", "parameters"}]}
    possible_answer/NAME.json  {"id", "ground_truth": [{function: {argument: [value that is right, ...]}}]}

Both are JSON lines; "" among the values says that an argument may be left out. Rows without a ground truth want no call
(irrelevance), or any (relevance). The rules of comparison are the leaderboard's: strings are compared in lower case and
without blanks and ,./-_*^, a whole number does for a float, several calls may come in any order. Schemas there have
types of their own (dict, float, tuple, any). Conversations of several turns need the leaderboard's simulated services
and are refused; Java's and JavaScript's literals are compared as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from brise.errors import EvidenceError
from brise.evals import compare
from brise.evals.example import AnsweredCall, EvalAnswer, EvalExample
from brise.evals.measure import Counts
from brise.files.digests import text_digest
from brise.text.fields import RequestFields
from brise.text.openai_messages import parse_messages, template_message

TASK = "bfcl"
ANSWERS = "possible_answer"
MAX_LINE = 4 << 20
OMITTED = ""
TYPES: Mapping[str, str | None] = MappingProxyType({
    "dict": "object", "float": "number", "double": "number", "long": "integer", "tuple": "array", "any": None,
    "HashMap": "object", "ArrayList": "array", "Array": "array", "String": "string", "char": "string",
    "Boolean": "boolean", "byte": "integer", "short": "integer", "Bigint": "integer", "Queue": "array",
    "Stack": "array", "Hashtable": "object", "Any": None})
_IGNORED = re.compile(r"[ ,./\-_*^]")


def read(paths: Sequence[Path]) -> tuple[EvalExample, ...]:
    """The examples of these files, in order; EvidenceError names the file and line of what cannot be used."""
    return tuple(example for path in paths for example in _of_file(path))


def score(example: EvalExample, answer: EvalAnswer) -> Counts:
    """Whether the calls are right, by the leaderboard's rules; and whether there are calls where some are wanted."""
    given = [] if answer.error is not None else _calls(answer)
    wanted, kind = _wanted(example)
    if kind == "irrelevance":
        return {"right": _mean(not given and answer.error is None), "right_without_call": _mean(not given)}
    if kind == "relevance":
        return {"right": _mean(bool(given))}
    schemas = {_name(tool): tool["function"]["parameters"] for tool in example.tools}  # type: ignore[index]
    is_right = len(given) == len(wanted) and _all_matched(wanted, given, schemas)
    return {"right": _mean(is_right), "right_functions": _mean(sorted(name for name, _ in given) == sorted(
        next(iter(call)) for call in wanted)), "called": _mean(bool(given))}


def _of_file(path: Path) -> Iterator[EvalExample]:
    beside = path.parent / ANSWERS / path.name
    answers = {str(row.get("id")): (row, place) for row, place in _rows(beside, may_lack=True)}
    for row, place in _rows(path):
        truth, truth_place = answers.get(str(row.get("id")), (row, place))
        yield _example(row, truth.get("ground_truth"), place, truth_place, path.stem)


def _rows(path: Path, *, may_lack: bool = False) -> Iterator[tuple[dict[str, Any], str]]:
    if may_lack and not path.exists():
        return
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), ""), 1):
                place = f"{path}:{number}"
                if len(line) > MAX_LINE:
                    raise EvidenceError(f"{place}: the line has over {MAX_LINE} characters")
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise EvidenceError(f"{place}: the row is no JSON object")
                    yield row, place
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise EvidenceError(f"{path}: these are no JSON lines: {error}") from error


def _example(row: Mapping[str, Any], truth: object, place: str, truth_place: str, category: str) -> EvalExample:
    question, functions = row.get("question"), row.get("function")
    if not isinstance(question, list) or not question or not isinstance(functions, list | dict):
        raise EvidenceError(f"{place}: the row needs 'question', a list of turns, and 'function'")
    turns = question if isinstance(question[0], list) else [question]
    if len(turns) != 1:
        raise EvidenceError(f"{place}: the question has {len(turns)} turns; one of several turns needs the "
                            "leaderboard's own services")
    messages = tuple(template_message(message) for message in parse_messages(RequestFields({"messages": turns[0]})))
    tools = tuple(_tool(function, place) for function in (functions if isinstance(functions, list) else [functions]))
    kind = "relevance" if "relevance" in category and "irrelevance" not in category else "irrelevance"
    wanted = () if truth is None else tuple(_renamed(call, truth_place) for call in _list(truth, truth_place))
    kind = "calls" if wanted else kind
    reference = EvalAnswer(calls=tuple(AnsweredCall(name, json.dumps(_first(arguments)))
                                       for call in wanted for name, arguments in call.items()))
    digest = text_digest(json.dumps([turns[0], functions, truth], sort_keys=True))[:24]
    return EvalExample(messages, reference, place, str(row.get("id", place)), digest, tools, None,
                       {"task": TASK, "kind": kind, "wanted": wanted})


def _tool(function: object, place: str) -> Mapping[str, object]:
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise EvidenceError(f"{place}: a function needs a 'name'")
    parameters = function.get("parameters")
    return {"type": "function", "function": {
        "name": _plain(function["name"]), "description": str(function.get("description", "")),
        "parameters": _schema(parameters if isinstance(parameters, dict) else {"type": "object", "properties": {}})}}


def _schema(schema: object) -> Any:
    """A schema in JSON Schema's own words."""
    if isinstance(schema, list):
        return [_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "type" and isinstance(value, str):
            if (kind := TYPES.get(value, value)) is not None:
                out["type"] = kind
        elif key == "properties" and isinstance(value, dict):
            out[key] = {name: _schema(item) for name, item in value.items()}
        elif key in ("items", "additionalProperties"):
            out[key] = _schema(value)
        else:
            out[key] = value
    return out


def _renamed(call: object, place: str) -> dict[str, dict[str, Any]]:
    if not isinstance(call, dict) or len(call) != 1 or not all(
            isinstance(arguments, dict) and all(isinstance(allowed, list) for allowed in arguments.values())
            for arguments in call.values()):
        raise EvidenceError(f"{place}: a ground truth must be one function with lists of right values by argument")
    return {_plain(name): arguments for name, arguments in call.items()}


def _list(value: object, place: str) -> list[object]:
    if not isinstance(value, list):
        raise EvidenceError(f"{place}: 'ground_truth' is no list of calls")
    return value


def _plain(name: str) -> str:
    """A name as OpenAI's API allows it."""
    return name.replace(".", "_")


def _first(arguments: Mapping[str, list[Any]]) -> dict[str, Any]:
    """One right value for each argument that must be given."""
    return {name: _concrete(allowed[0]) for name, allowed in arguments.items()
            if allowed and OMITTED not in allowed}


def _concrete(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _concrete(allowed[0]) if isinstance(allowed, list) and allowed else allowed
                for name, allowed in value.items() if not (isinstance(allowed, list) and OMITTED in allowed)}
    return [_concrete(item) for item in value] if isinstance(value, list) else value


def _calls(answer: EvalAnswer) -> list[tuple[str, object]]:
    return [(call.name, compare.parse(call.arguments or "{}")) for call in answer.calls]


def _wanted(example: EvalExample) -> tuple[Sequence[Mapping[str, Mapping[str, Any]]], str]:
    wanted, kind = example.meta.get("wanted"), example.meta.get("kind")
    if not isinstance(wanted, tuple) or not isinstance(kind, str):
        raise EvidenceError(f"{example.place}: the row is none of the leaderboard's", hint="give --format bfcl")
    return wanted, kind


def _all_matched(wanted: Sequence[Mapping[str, Mapping[str, Any]]], given: Sequence[tuple[str, object]],
                 schemas: Mapping[str, Any]) -> bool:
    """Whether each wanted call has a call of its own that is right, in any order (augmenting paths)."""
    fits = [[_is_right(call, *item, schemas) for item in given] for call in wanted]
    owner: dict[int, int] = {}

    def place(call: int, seen: set[int]) -> bool:
        for at, does_fit in enumerate(fits[call]):
            if does_fit and at not in seen:
                seen.add(at)
                if at not in owner or place(owner[at], seen):
                    owner[at] = call
                    return True
        return False

    return all(place(call, set()) for call in range(len(wanted)))


def _is_right(wanted: Mapping[str, Mapping[str, Any]], name: str, arguments: object,
              schemas: Mapping[str, Any]) -> bool:
    (wanted_name, allowed), = wanted.items()
    if name != wanted_name or not isinstance(arguments, dict):
        return False
    schema = schemas.get(name, {})
    required, properties = schema.get("required", []), schema.get("properties", {})
    if any(needed not in arguments for needed in required) or any(
            given not in allowed or given not in properties for given in arguments):
        return False
    return all(_matches(arguments[each], values, properties[each]) if each in arguments else OMITTED in values
               for each, values in allowed.items())


def _matches(value: object, allowed: Sequence[Any], schema: Mapping[str, Any]) -> bool:
    """Whether a value is one of those that are right."""
    kind = schema.get("type")
    if kind == "integer" and (isinstance(value, bool) or isinstance(value, float)):
        return False
    return any(_equals(value, item) for item in allowed)


def _equals(value: object, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return isinstance(value, dict) and value.keys() <= wanted.keys() and all(
            any(_equals(value[name], item) for item in _as_list(allowed)) if name in value
            else OMITTED in _as_list(allowed) for name, allowed in wanted.items())
    if isinstance(wanted, list):
        return isinstance(value, list) and len(value) == len(wanted) and all(map(_equals, value, wanted))
    if isinstance(wanted, bool) or isinstance(value, bool):
        return wanted is value
    if isinstance(wanted, str) and isinstance(value, str):
        return _squeezed(value) == _squeezed(wanted)
    return type(wanted) in (int, float) and type(value) in (int, float) and bool(wanted == value)


def _as_list(allowed: Any) -> list[Any]:
    return allowed if isinstance(allowed, list) else [allowed]


def _squeezed(text: str) -> str:
    return _IGNORED.sub("", text).lower().replace("'", '"')


def _name(tool: Mapping[str, object]) -> str:
    function = tool["function"]
    assert isinstance(function, Mapping)
    return str(function["name"])


def _mean(is_so: bool) -> tuple[float, float]:
    return float(is_so), 1.0
