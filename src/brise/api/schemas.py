"""What `schema=` may be: a JSON schema, or a class that makes one and reads its own instances, as pydantic's do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

from brise.errors import AnswerError, RequestError
from brise.text.json_text import Json, parse_json


@runtime_checkable
class SchemaClass(Protocol):
    """A class with pydantic's two methods. brise itself does not need pydantic."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        """The JSON schema of its instances."""

    @classmethod
    def model_validate_json(cls, json_data: str, /) -> Self:
        """The instance that a JSON text describes; ValueError if it describes none."""


M = TypeVar("M", bound=SchemaClass)
Schema = Mapping[str, object] | type[SchemaClass]


def json_schema(schema: object) -> Mapping[str, object] | None:
    """The JSON schema to hold an answer to; RequestError for anything that is none."""
    match schema:
        case None:
            return None
        case Mapping():
            return schema
        case type() if issubclass(schema, SchemaClass):
            return schema.model_json_schema()
        case _:
            what = f"the class {schema.__name__!r}" if isinstance(schema, type) else f"of type {type(schema).__name__}"
            raise RequestError(f"schema is {what}; allowed are a dict with a JSON schema and a pydantic model class",
                               param="schema", code="invalid_type")


def reader(schema: object) -> Callable[[str], object]:
    """What turns an answer's text into its value: an instance of the class, JSON for a dict, None without a schema."""
    match schema:
        case None:
            return no_value
        case type() if issubclass(schema, SchemaClass):
            return schema.model_validate_json
        case _:
            return read_json


def read_json(text: str) -> Json:
    """The JSON value of an answer."""
    try:
        return parse_json(text.encode(), "the answer")
    except RequestError as error:
        raise AnswerError(error.args[0]) from None


def no_value(text: str) -> None:
    """The value of an answer without a schema."""
    return None
