"""Types of fields that people describe answers with in pydantic; each becomes a class with one field of that type."""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
import uuid
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from re import Pattern
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import pydantic
from annotated_types import Len, MultipleOf
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel, StringConstraints
from typing_extensions import NotRequired, TypedDict  # noqa: UP035 - pydantic wants them before Python 3.12

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mixed(enum.Enum):
    ONE = 1
    TWO = "two"


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class Loose(TypedDict, total=False):
    title: str
    year: int


@dataclass
class Item:
    name: str
    tags: list[str] = field(default_factory=list)


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    barks: bool = True


class Node(BaseModel):
    value: int
    next: Node | None = None


class Tree(BaseModel):
    name: str
    kids: list[Tree] = Field(default_factory=list, max_length=2)


class Inner(BaseModel):
    """An inner thing."""

    a: int = Field(description="a number", examples=[1, 2])
    b: str | None = None


class Box(BaseModel, Generic[T]):
    content: T


class Tags(RootModel[list[str]]):
    pass


class Extra(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


class Typed(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, int] = Field(init=False)
    a: int


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int


class Renamed(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    some_name: int = Field(alias="someName")
    other: str = Field("x", validation_alias="other-name")


class Computed(BaseModel):
    a: int

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return 2 * self.a


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    a: int
    b: float
    c: bool


TYPES: Mapping[str, Any] = {
    # scalars
    "str": str, "int": int, "float": float, "bool": bool, "none": None, "any": Any, "object": object, "bytes": bytes,
    "strict scalars": Strict, "decimal": Decimal, "decimal bounds": Annotated[Decimal, Field(ge=0, le=10)],
    "decimal places": Annotated[Decimal, Field(max_digits=5, decimal_places=2)], "fraction": Fraction,
    "complex": complex, "finite": pydantic.FiniteFloat,
    # constrained numbers
    "int bounds": Annotated[int, Field(ge=1, le=10)], "int exclusive": Annotated[int, Field(gt=0, lt=100)],
    "int multiple": Annotated[int, MultipleOf(5)], "float multiple": Annotated[float, Field(multiple_of=0.5)],
    "conint": pydantic.conint(gt=0, multiple_of=3), "confloat": pydantic.confloat(ge=0, le=1),
    "int64": Annotated[int, Field(ge=-2**63, lt=2**63)], "byte size": pydantic.ByteSize,
    "positive": pydantic.PositiveInt, "not positive": pydantic.NonPositiveFloat,
    # constrained text
    "str length": Annotated[str, Field(min_length=2, max_length=5)],
    "str pattern": Annotated[str, Field(pattern=r"^[A-Z]{2}-\d{3}$")],
    "str pattern open": Annotated[str, Field(pattern=r"\d+")],
    "str pattern and length": Annotated[str, Field(pattern=r"^\w+$", min_length=3, max_length=6)],
    "str constraints": Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, max_length=8)],
    "look-ahead": Annotated[str, Field(json_schema_extra={"pattern": r"^(?=.*\d)[a-z0-9]{4,8}$"})],
    "negative look-ahead": Annotated[str, Field(json_schema_extra={"pattern": r"^(?!foo)[a-z]{2,4}$"})],
    "compiled pattern": Pattern,
    # formats
    "datetime": dt.datetime, "aware": pydantic.AwareDatetime, "naive": pydantic.NaiveDatetime, "date": dt.date,
    "past date": pydantic.PastDate, "time": dt.time, "timedelta": dt.timedelta, "uuid": uuid.UUID,
    "uuid4": pydantic.UUID4, "url": pydantic.AnyUrl, "http url": pydantic.HttpUrl, "dsn": pydantic.PostgresDsn,
    "email": Annotated[str, Field(json_schema_extra={"format": "email"})], "path": Path, "file": pydantic.FilePath,
    "ipv4": ipaddress.IPv4Address, "ipv6": ipaddress.IPv6Address, "any ip": pydantic.IPvAnyAddress,
    "ipv4 network": ipaddress.IPv4Network, "any network": pydantic.IPvAnyNetwork,
    "ipv4 interface": ipaddress.IPv4Interface,
    "secret": pydantic.SecretStr, "secret bytes": pydantic.SecretBytes, "base64": pydantic.Base64Bytes,
    "base64 text": pydantic.Base64UrlStr, "json": pydantic.Json, "json of list": pydantic.Json[list[int]],
    "import string": pydantic.ImportString,
    # choices
    "enum": Color, "int enum": Level, "mixed enum": Mixed, "literal": Literal["a", 1, True, None],
    "optional": int | None, "optional enum": Color | None, "union": int | str | list[int],
    "union of classes": Cat | Inner, "discriminated": Annotated[Cat | Dog, Field(discriminator="kind")],
    "list of discriminated": list[Annotated[Cat | Dog, Field(discriminator="kind")]],
    # collections
    "list": list[int], "bare list": list, "list bounds": Annotated[list[int], Len(1, 3)], "set": set[int],
    "frozenset": frozenset[str], "set of enum": Annotated[set[Color], Len(1, 2)], "tuple": tuple[int, str],
    "tuple any length": tuple[int, ...], "sequence": Sequence[str], "deque": deque[int],
    "dict": dict[str, int], "bare dict": dict, "dict of lists": dict[str, list[int]], "dict of enum": dict[Color, int],
    "dict of int": dict[int, str], "dict of literal": dict[Literal["a", "b"], int], "ordered": OrderedDict[str, int],
    "dict of pattern": dict[Annotated[str, Field(pattern="^[a-z]{1,4}$")], int],
    "dict of length": dict[Annotated[str, Field(min_length=1, max_length=3)], int],
    "dict of uuid": dict[uuid.UUID, int], "dict of date": dict[dt.date, int],
    "dict bounds": Annotated[dict[str, int], Len(1, 2)], "mapping": Mapping[str, float],
    # classes
    "nested": Inner, "list of nested": list[Inner], "recursive": Node, "tree": Tree, "root": Tags,
    "generic": Box[int], "generic of list": Box[list[Inner]], "extra": Extra, "extra of int": Typed, "closed": Closed,
    "aliases": Renamed, "computed": Computed, "named tuple": Point, "typed dict": Movie, "loose typed dict": Loose,
    "dataclass": Item, "optional nested": Inner | None, "dict of nested": dict[str, Inner],
    "default": Annotated[int, Field(default=3)], "default factory": Annotated[list[int], Field(default_factory=list)],
    "validated": Annotated[int, AfterValidator(lambda value: value)],
}


# Their schemas say less than the classes check: any text, where a decimal is wanted.
SAY_LESS = frozenset({
    "decimal", "decimal bounds", "decimal places", "fraction", "complex", "naive", "past date", "timedelta", "http url",
    "dsn", "file", "ipv4 network", "any network", "base64 text", "json", "json of list", "import string",
    "dict of int", "byte size"})


def model_of(name: str) -> type[BaseModel]:
    """The class with the field `value` of that type."""
    return pydantic.create_model("Answer", value=(TYPES[name], ...))
