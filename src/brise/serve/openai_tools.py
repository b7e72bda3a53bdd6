"""`tools`, `tool_choice` and `response_format`: what the answer must look like."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from brise.errors import RequestError
from brise.text.fields import RequestFields
from brise.text.inputs import Grammar
from brise.text.openai_tools import NAME, Tool, parse_tools


@dataclass(frozen=True)
class Tooling:
    """The tools of a request and which of them the answer must or may call."""

    tools: tuple[Tool, ...] = ()
    mode: Literal["none", "auto", "required", "named"] = "none"
    name: str | None = None  # with "named"
    parallel: bool = True

    @property
    def active(self) -> bool:
        return self.mode != "none"


def parse_tooling(fields: RequestFields) -> Tooling:
    """Reads `tools`, `tool_choice` and `parallel_tool_calls`."""
    parallel = fields.flag("parallel_tool_calls")
    tools = parse_tools(fields)
    if not tools:
        if fields.raw("tool_choice") not in (None, "none", "auto"):
            raise fields.error("tool_choice", "is only allowed with 'tools'")
        return Tooling()
    return _choose(fields, tools, parallel is not False)


def parse_response_format(value: RequestFields | None) -> Grammar | None:
    """The constraint that `response_format` asks for."""
    if value is None:
        return None
    kind = value.required_text("type")
    grammar: Grammar | None = None
    if kind == "json_object":
        grammar = Grammar("json_object")
    elif kind == "json_schema":
        wrapper = value.required_child("json_schema")
        grammar = schema_grammar(wrapper)
        wrapper.done()
    elif kind != "text":
        raise value.unsupported("type", f"{kind[:32]!r}; there are 'text', 'json_object' and 'json_schema'")
    value.done()
    return grammar


def schema_grammar(fields: RequestFields) -> Grammar:
    """The fields around a JSON schema. `strict` changes nothing: the schema is always enforced."""
    name = fields.required_text("name")
    if not NAME.fullmatch(name):
        raise fields.error("name", "must be 1 to 64 letters, digits, '_' or '-'")
    fields.text("description")
    fields.flag("strict")
    schema = fields.mapping("schema")
    if schema is None:
        raise fields.missing("schema")
    return Grammar("json_schema", json.dumps(schema))


def _choose(fields: RequestFields, tools: tuple[Tool, ...], parallel: bool) -> Tooling:
    value = fields.raw("tool_choice")
    if value is None or isinstance(value, str):
        mode = fields.choice("tool_choice", ("none", "auto", "required")) or "auto"
        return _tooling(tools, mode, parallel)
    choice = fields.required_child("tool_choice")
    kind = choice.required_text("type")
    if kind == "function":
        name = _function_name(choice, tools)
        choice.done()
        return Tooling(tools, "named", name, parallel)
    if kind != "allowed_tools":
        raise choice.unsupported("type", f"{kind[:32]!r}; there are 'function' and 'allowed_tools'")
    allowed = choice.required_child("allowed_tools")
    mode = allowed.required_choice("mode", ("auto", "required"))
    names = {_allowed_name(tool, tools) for tool in allowed.objects("tools")}
    if not names:
        raise allowed.error("tools", "names no tool")
    allowed.done()
    choice.done()
    return _tooling(tuple(tool for tool in tools if tool.name in names), mode, parallel)


def _tooling(tools: tuple[Tool, ...], mode: str, parallel: bool) -> Tooling:
    match mode:
        case "none":
            return Tooling(tools, "none")
        case "required":
            return Tooling(tools, "required", None, parallel)
        case _:
            return Tooling(tools, "auto", None, parallel)


def _allowed_name(fields: RequestFields, tools: tuple[Tool, ...]) -> str:
    if fields.required_text("type") != "function":
        raise fields.unsupported("type", "only tools of type 'function' are")
    name = _function_name(fields, tools)
    fields.done()
    return name


def _function_name(fields: RequestFields, tools: tuple[Tool, ...]) -> str:
    function = fields.required_child("function")
    name = function.required_text("name")
    function.done()
    if name not in {tool.name for tool in tools}:
        raise function.error("name", f"is {name[:64]!r}, which is not among the tools")
    return name


def refuse_both(grammar: Grammar | None, tooling: Tooling) -> None:
    """One answer cannot obey two grammars."""
    if grammar is not None and tooling.active:
        raise RequestError("'response_format' cannot be combined with 'tools' unless 'tool_choice' is 'none'",
                           param="response_format", code="unsupported_parameter")
