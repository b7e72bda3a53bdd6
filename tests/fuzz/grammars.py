"""Schemas of answers and of tools: from the client's JSON to the mask of the first token."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from brise.engine.grammar import Grammars
from brise.text.inputs import Grammar
from brise.text.json_text import parse_json
from brise.text.schema_check import violations
from brise.text.schemas import enforceable
from brise.text.tool_grammar import ToolSchemas, tool_grammar
from tests.fuzz.target import Target, as_json
from tests.fuzz.wire import FORMATS
from tests.text import vocabulary

TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "minLength": 1}, "days": {"type": "integer"}},
    "required": ["city"], "additionalProperties": False}}}]
SCHEMAS: Any = [
    {"type": "object", "required": ["a"], "$defs": {"c": {"type": "number", "minimum": 0, "multipleOf": 0.5}},
     "properties": {"a": {"enum": ["x", 1, None]},
                    "b": {"type": "array", "items": {"$ref": "#/$defs/c"}, "maxItems": 3}}},
    {"anyOf": [{"type": "string", "pattern": "^a+$"}, {"type": "string", "format": "date"},
               {"allOf": [{"type": "null"}, {"not": {}}]}]},
    {"type": ["integer", "null"], "oneOf": [{"const": 1}, {"maximum": 0}], "uniqueItems": True, "title": "t"}]


def targets() -> list[Target]:
    return [Target("json schema", _schema, lambda: as_json(*SCHEMAS), "json", max_bytes=1 << 12, slow_s=3),
            Target("tool schemas", _tools, lambda: as_json(TOOLS, [*TOOLS, {"type": "function", "function": {
                "name": "now"}}]), "json", max_bytes=1 << 12, slow_s=3)]


@cache
def _grammars() -> Grammars:
    return Grammars(vocabulary.tokenizer())


def _schema(data: bytes) -> None:
    schema = parse_json(data)
    if isinstance(schema, dict):
        wide = enforceable(schema, "the schema")
        for value in (None, 1, "a", [1, 1], {"a": "x", "b": [0.5]}):
            violations(value, schema, wide.left_out)
        _grammars().constraint(Grammar("json_schema", json.dumps(wide.schema)))


def _tools(data: bytes) -> None:
    tools = parse_json(data)
    if isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools):
        for choice in ("auto", "required"):
            grammar = tool_grammar(tools, choice, FORMATS["tags in text"], schemas=ToolSchemas())
            if grammar is not None:
                _grammars().constraint(grammar)
