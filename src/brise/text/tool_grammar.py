"""Makes Lark grammars for llguidance that let a model write only valid calls."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from brise.errors import RequestError
from brise.text.answer_format import AnswerFormat
from brise.text.any_order import AnyOrder
from brise.text.inputs import Grammar
from brise.text.schemas import SchemaCache, SchemaKeyword
from brise.text.special_tokens import ARGS, CALL, CALL_ID, END_CALL, END_THINK, THINK
from brise.text.tool_calls import CLOSE, OPEN

# The spacing of Python's json.dumps, in which chat templates and training data show JSON to models. With free white
# space small models may write it endlessly, and hardly a token is forced.
SPACING: Mapping[str, object] = MappingProxyType(
    {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "})
# For JSON that another model has begun: a space, or a line break and its indentation.
FREE_SPACING: Mapping[str, object] = MappingProxyType({"whitespace_pattern": r"(\x20|\x0A[\x20\x09]{0,8})?"})
# Without no_forcing a tag could only be written letter by letter, even where it is a token.
_HEAD = """%llguidance {"no_forcing": true}
TEXT: /(.|\\n)+/
"""


@dataclass(frozen=True)
class CallableFunction:
    """A function that may be called. `keeps_order`: its arguments come in the order of the schema, as OpenAI promises
    of strict functions; those of others come in any order.
    """

    name: str
    schema: Mapping[str, object]
    keeps_order: bool

    def arguments(self, index: int) -> tuple[str, list[str]]:
        """What stands for its arguments in a rule, and the rules that this needs."""
        if self.keeps_order:
            return f"%json {json.dumps({**self.schema, 'x-guidance': dict(SPACING)})}", []
        return AnyOrder(self.schema, SPACING).rules(f"arguments_{index}")



@dataclass
class ToolSchemas:
    """How the schemas of tools become grammars: those of `strict` functions are enforced whole or refused.

    From others is left out what cannot be enforced; `left_out` is filled in by function.
    """

    strict: Collection[str] = ()
    left_out: dict[str, tuple[SchemaKeyword, ...]] = field(default_factory=dict)
    param: str = "tools[{}].function.parameters"  # the request's name for the schema of a tool
    cache: SchemaCache = field(default_factory=SchemaCache)


def tool_grammar(tools: Sequence[Mapping[str, object]], choice: str | Mapping[str, object], format: AnswerFormat,
                 *, parallel: bool = True, is_thinking: bool = False, answer: Mapping[str, object] | None = None,
                 schemas: ToolSchemas | None = None) -> Grammar | None:
    """What `tool_choice` allows: "auto" (text and calls), "required" (only calls), one function, or "none".

    One function is named as OpenAI does, {"type": "function", "function": {"name": ...}}, or by its name.
    `is_thinking`: the prompt ends within a thinking part. `answer`: the schema of a text that is no call.
    """
    if not tools and choice in ("none", "auto"):
        return None
    if choice == "none":  # nothing is called, so no schema matters
        return _grammar(format, *_no_call(format), is_thinking, takes_text=True)
    functions = [_function(tool, index, schemas or ToolSchemas()) for index, tool in enumerate(tools)]
    if choice not in ("none", "auto", "required"):
        functions, parallel = [_chosen(functions, choice)], False
    if not functions:
        raise RequestError("tool_choice is 'required', but there are no tools", param="tool_choice")
    is_auto = choice == "auto" and answer is None
    make = _tag_calls if format.calls == "tags" else _mistral_calls
    body, rules = make(functions, format, parallel=parallel, is_auto=is_auto)
    if choice != "auto" or answer is None:
        return _grammar(format, body, rules, is_thinking, takes_text=choice == "auto")
    spaced, free = (
        _grammar(format, f"({body} | answer)", [*rules, f"answer: %json {json.dumps(guided(answer, spacing))}"],
                 is_thinking, takes_text=True) for spacing in (SPACING, FREE_SPACING))
    return replace(spaced, free=free.text)


def guided(schema: Mapping[str, object], spacing: Mapping[str, object]) -> Mapping[str, object]:
    """The schema with the spacing of its JSON, unless it has its own (llguidance's `x-guidance`)."""
    own = schema.get("x-guidance")
    return {**schema, "x-guidance": {**spacing, **own} if isinstance(own, Mapping) else {**spacing}}


def _grammar(format: AnswerFormat, body: str, rules: Sequence[str], is_thinking: bool, *, takes_text: bool) -> Grammar:
    start = f"start: {_thinking(format, is_thinking)}{body}"
    return Grammar("lark", _HEAD + "\n".join([start, *rules]) + "\n", takes_text=takes_text)


def _thinking(format: AnswerFormat, is_thinking: bool) -> str:
    """The part before the answer. Its end is a token, so what is thought about calls is no call."""
    if not format.can_think:
        return ""
    opened, closed = (f"<[{format.tokens[sentinel]}]>" for sentinel in (THINK, END_THINK))
    return f"TEXT? {closed} " if is_thinking else f"({opened} TEXT? {closed})? "


def _no_call(format: AnswerFormat) -> tuple[str, list[str]]:
    if CALL in format.tokens:
        return "TEXT?", []  # text holds no control token
    return "NO_CALL?", [f"NO_CALL: TEXT & ~/(.|\\n)*{re.escape(OPEN)}(.|\\n)*/"]


def _tag_calls(functions: Sequence[CallableFunction], format: AnswerFormat, *, parallel: bool,
               is_auto: bool) -> tuple[str, list[str]]:
    options = " | ".join(f"function_{index}" for index in range(len(functions)))
    has_tokens = CALL in format.tokens
    opening, closing = ((f"<[{format.tokens[CALL]}]>", f"<[{format.tokens[END_CALL]}]>") if has_tokens
                        else (json.dumps(OPEN), json.dumps(CLOSE)))
    rules = [f'body: "\\n" ({options}) "\\n" {closing}']
    for index, function in enumerate(functions):
        begin = json.dumps(f'{{"name": {json.dumps(function.name)}, "arguments": ')
        arguments, more = function.arguments(index)
        rules += [f'function_{index}: {begin} {arguments} "}}"', *more]
    if not is_auto:
        # Models write a line break after a call before they end; without the last part they would have to call again.
        return ('call ("\\n" call)* "\\n"?' if parallel else "call"), [f"call: {opening} body", *rules]
    if has_tokens:
        return ("(TEXT | call)*" if parallel else "TEXT? call?"), [f"call: {opening} body", *rules]
    begin_rules = ["call: begin body", f"begin[lazy]: ANY {opening}", "ANY: /(.|\\n)*/"]
    return ("call* ANY" if parallel else "(ANY | call)"), [*begin_rules, *rules]


def _mistral_calls(functions: Sequence[CallableFunction], format: AnswerFormat, *, parallel: bool,
                   is_auto: bool) -> tuple[str, list[str]]:
    token = f"<[{format.tokens[CALL]}]>"
    options = " | ".join(f"function_{index}" for index in range(len(functions)))
    space = '" "? ' if format.has_spaces else ""
    many = {True: ("call+", '(", " call)*'), False: ("call", "")}[parallel]
    if format.calls == "named":
        call_id = f"(<[{format.tokens[CALL_ID]}]> ID)? " if CALL_ID in format.tokens else ""
        rules = [f"calls: {many[0]}", f"call: {token} ({options})", "ID: /[a-zA-Z0-9]{9}/"]
        for index, function in enumerate(functions):
            arguments, more = function.arguments(index)
            rules += [f"function_{index}: {json.dumps(function.name)} {call_id}<[{format.tokens[ARGS]}]> {arguments}",
                      *more]
    else:
        closing = f" <[{format.tokens[END_CALL]}]>" if END_CALL in format.tokens else ""
        rules = [f'calls: {token} {space}"[" call {many[1]} "]"{closing}', f"call: ({options})"]
        rules += ["ID: /[a-zA-Z0-9]{9}/"] if format.calls == "list" else []
        for index, function in enumerate(functions):
            begin = json.dumps(f'{{"name": {json.dumps(function.name)}, "arguments": ')
            call_id = '(", \\"id\\": \\"" ID "\\"")?' if format.calls == "list" else ""
            arguments, more = function.arguments(index)
            rules += [f'function_{index}: {begin} {arguments} {call_id} "}}"', *more]
    return ("TEXT? calls?" if is_auto else "calls"), rules


def _function(tool: Mapping[str, object], index: int, schemas: ToolSchemas) -> CallableFunction:
    """Name and schema of a tool; the arguments are always an object."""
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        raise RequestError(f"tools[{index}] has no function with a name", param=f"tools[{index}].function")
    param = schemas.param.format(index)
    parameters = function.get("parameters")
    if not isinstance(parameters, Mapping | None):
        raise RequestError(f"{param} is no JSON schema but {type(parameters).__name__}", param=param)
    schema = {"type": "object", **(parameters or {})}
    if schema["type"] != "object":
        raise RequestError(f"{param} has the type {schema['type']!r}; arguments are an 'object'", param=param)
    wide = schemas.cache.enforceable(schema, param, strict=name in schemas.strict)
    schemas.left_out[name] = wide.left_out
    return CallableFunction(name, wide.schema, name in schemas.strict)


def _chosen(functions: Sequence[CallableFunction], choice: str | Mapping[str, object]) -> CallableFunction:
    function = choice.get("function") if isinstance(choice, Mapping) else {"name": choice}
    name = function.get("name") if isinstance(function, Mapping) else None
    for candidate in functions:
        if candidate.name == name:
            return candidate
    known = ", ".join(repr(candidate.name) for candidate in functions)
    raise RequestError(f"tool_choice names {name!r}; there are {known}", param="tool_choice")
