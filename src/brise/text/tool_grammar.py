"""Lark grammars for llguidance that let a model write only calls that can be made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from llguidance import LLMatcher

from brise.engine.request import Grammar
from brise.errors import RequestError

OPEN, CLOSE = "<tool_call>", "</tool_call>"

# The spacing of Python's json.dumps, in which models have seen calls; with free white space small models
# may write it without end.
_SPACING: Mapping[str, object] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

# Without no_forcing the only way to write the tags would be letter by letter, also where they are tokens.
_AUTO = """%llguidance {{"no_forcing": true}}
start: {calls}
call: begin body
begin[lazy]: TEXT {open}
TEXT: /(.|\\n)*/
"""
_REQUIRED = """%llguidance {{"no_forcing": true}}
start: {calls}
call: {open} body
"""


def tool_grammar(tools: Sequence[Mapping[str, object]], choice: str | Mapping[str, object], *,
                 parallel: bool = True) -> Grammar | None:
    """What `tool_choice` allows: "auto" (text and calls), "required" (only calls), one function, or "none".

    One function is named as OpenAI does, {"type": "function", "function": {"name": ...}}, or by its name.
    """
    if choice == "none" or (choice == "auto" and not tools):
        return None
    functions = [_function(tool, index) for index, tool in enumerate(tools)]
    if choice == "auto":
        head = _AUTO.format(calls="call* TEXT" if parallel else "TEXT | call", open=json.dumps(OPEN))
    else:
        if choice != "required":
            functions, parallel = [_chosen(functions, choice)], False
        if not functions:
            raise RequestError("tool_choice is 'required', but there are no tools", param="tool_choice")
        head = _REQUIRED.format(calls='call ("\\n" call)*' if parallel else "call", open=json.dumps(OPEN))
    options = " | ".join(f"function_{index}" for index in range(len(functions)))
    lines = [f'body: "\\n" ({options}) {json.dumps(chr(10) + CLOSE)}']
    for index, (name, schema) in enumerate(functions):
        begin = json.dumps(f'{{"name": {json.dumps(name)}, "arguments": ')
        lines.append(f'function_{index}: {begin} %json {json.dumps(schema)} "}}"')
    return Grammar("lark", head + "\n".join(lines) + "\n")


def _function(tool: Mapping[str, object], index: int) -> tuple[str, dict[str, object]]:
    """Name and schema of a tool; the arguments are always an object."""
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        raise RequestError(f"tools[{index}] has no function with a name", param=f"tools[{index}].function")
    param = f"tools[{index}].function.parameters"
    parameters = function.get("parameters")
    if not isinstance(parameters, Mapping | None):
        raise RequestError(f"{param} is no JSON schema but {type(parameters).__name__}", param=param)
    schema = {"type": "object", **(parameters or {})}
    if schema["type"] != "object":
        raise RequestError(f"{param} has the type {schema['type']!r}; arguments are an 'object'", param=param)
    schema["x-guidance"] = _SPACING
    failed, messages = LLMatcher.validate_grammar_with_warnings(LLMatcher.grammar_from_json_schema(schema))
    if failed:
        raise RequestError(f"{param} is no JSON schema to follow: {messages[0][:300]}", param=param)
    return name, schema


def _chosen(functions: Sequence[tuple[str, dict[str, object]]],
            choice: str | Mapping[str, object]) -> tuple[str, dict[str, object]]:
    function = choice.get("function") if isinstance(choice, Mapping) else {"name": choice}
    name = function.get("name") if isinstance(function, Mapping) else None
    for candidate in functions:
        if candidate[0] == name:
            return candidate
    known = ", ".join(repr(candidate[0]) for candidate in functions)
    raise RequestError(f"tool_choice names {name!r}; there are {known}", param="tool_choice")
