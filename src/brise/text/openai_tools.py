"""Reads the functions that a model may call, as OpenAI's clients describe them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from brise.text.fields import RequestFields
from brise.text.json_text import Json

MAX_TOOLS = 128
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True)
class Tool:
    """A function the model may call."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Json] = field(default_factory=dict)
    strict: bool = False  # a schema that cannot be enforced whole is refused, and not widened

    def as_json(self) -> dict[str, object]:
        """OpenAI's shape, which chat templates and the tool grammar read."""
        function: dict[str, object] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = dict(self.parameters) or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


def parse_tools(fields: RequestFields) -> tuple[Tool, ...]:
    """Reads the field `tools`."""
    items = fields.items("tools") or []
    if len(items) > MAX_TOOLS:
        raise fields.error("tools", f"has {len(items)} tools, allowed are {MAX_TOOLS}")
    tools = tuple(_tool(tool) for tool in fields.objects("tools"))
    if len({tool.name for tool in tools}) < len(tools):
        raise fields.error("tools", "has two functions of one name")
    return tools


def _tool(fields: RequestFields) -> Tool:
    if (fields.text("type") or "function") != "function":
        raise fields.unsupported("type", "only tools of type 'function' are")
    function = fields.required_child("function")
    name = function.required_text("name")
    if not NAME.fullmatch(name):
        raise function.error("name", "must be 1 to 64 letters, digits, '_' or '-'")
    tool = Tool(name, function.text("description"), function.mapping("parameters") or {},
                function.flag("strict") is True)
    for child in (fields, function):
        for note in ("cache_control", "defer_loading", "annotations"):
            child.note(note)
    function.done()
    fields.done()
    return tool
