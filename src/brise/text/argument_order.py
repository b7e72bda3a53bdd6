"""Arguments of calls in the order of their function's schema: as models are trained to write them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from brise.errors import RequestError
from brise.text.json_text import Json, parse_json
from brise.text.protocols import Message

_FIRST_OF = ("anyOf", "oneOf", "allOf")
# Of what is looked at for each object of the arguments, so that time is in proportion to them.
_MAX_ALTERNATIVES, _MAX_REFERENCE = 8, 256
_NOTHING: Mapping[str, object] = MappingProxyType({})


def with_ordered_arguments(messages: Iterable[Message], tools: Sequence[Mapping[str, object]]) -> list[Message]:
    """The messages with the arguments of all calls in the order of `properties`, recursively, and others after them.

    `tools` as OpenAI has them. Arguments are an object, or its text, which is left as it is if it is no object. Equal
    calls stay equal: the order of an object's names says nothing.
    """
    schemas = {str(function.get("name")): ArgumentOrder(function.get("parameters")) for tool in tools
               if isinstance(function := tool.get("function"), Mapping)}
    return [_message(message, schemas) for message in messages] if schemas else list(messages)


class ArgumentOrder:
    """The order of one schema."""

    def __init__(self, schema: object) -> None:
        self._root = schema
        self._places: dict[int, Mapping[str, int]] = {}  # by id of `properties`, which the schema holds

    def of(self, value: Json) -> Json:
        """The value with the names of its objects in the order in which the schema has them."""
        return self._ordered(value, self._root)

    def of_text(self, text: str) -> str:
        """JSON text of an object in this order; the same text where nothing moves, or where it is none."""
        try:
            value = parse_json(text.encode(), "arguments")
        except (RequestError, UnicodeEncodeError):
            return text
        ordered = self.of(value)
        if not isinstance(value, dict) or json.dumps(ordered) == json.dumps(value):
            return text
        return json.dumps(ordered, ensure_ascii=False)

    def _ordered(self, value: Json, schema: object) -> Json:
        if not isinstance(value, dict | list) or not isinstance(schema := self._followed(schema), Mapping):
            return value
        if isinstance(value, list):
            return [self._ordered(item, schema.get("items")) for item in value]
        properties = self._properties(schema, value)
        if id(properties) not in self._places:
            self._places[id(properties)] = {name: place for place, name in enumerate(properties)}
        places = self._places[id(properties)]
        names = sorted(value, key=lambda name: places.get(name, len(places)))  # stable: the others as they came
        return {name: self._ordered(value[name], properties.get(name)) for name in names}

    def _properties(self, schema: Mapping[str, object], value: Mapping[str, Json]) -> Mapping[str, object]:
        """The properties of the schema, or of the first of its alternatives that has one of the value's names."""
        own = schema.get("properties")
        if isinstance(own, Mapping) and own:
            return own
        for keyword in _FIRST_OF:
            alternatives = schema.get(keyword)
            for each in alternatives[:_MAX_ALTERNATIVES] if isinstance(alternatives, list | tuple) else ():
                followed = self._followed(each)
                properties = followed.get("properties") if isinstance(followed, Mapping) else None
                if isinstance(properties, Mapping) and any(name in properties for name in value):
                    return properties
        return _NOTHING

    def _followed(self, schema: object) -> object:
        """What a reference to a part of the same schema means. One that leads to another is not followed further."""
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str):
            return schema
        if not reference.startswith("#/") or len(reference) > _MAX_REFERENCE:
            return None
        found = self._root
        for name in reference.removeprefix("#/").split("/"):
            found = found.get(name) if isinstance(found, Mapping) else None
        return found


def _message(message: Message, schemas: Mapping[str, ArgumentOrder]) -> Message:
    calls = message.get("tool_calls")
    if message.get("role") != "assistant" or not isinstance(calls, list | tuple):
        return message
    return {**message, "tool_calls": [_call(call, schemas) for call in calls]}


def _call(call: object, schemas: Mapping[str, ArgumentOrder]) -> object:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        return call
    order, arguments = schemas.get(str(function.get("name"))), function.get("arguments")
    if order is None or not isinstance(arguments, str | dict):
        return call
    ordered = order.of_text(arguments) if isinstance(arguments, str) else order.of(arguments)
    return {**call, "function": {**function, "arguments": ordered}}
