"""Values as YAML, in the block style that people edit. Every text is a JSON string, which is YAML, too."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

Value = Mapping[str, "Value"] | Sequence["Value"] | str | int | float | bool | None
PLAIN_KEY = re.compile(r"[A-Za-z][\w./-]*")
# Words that YAML 1.1 takes for truth values, and would be other keys.
NOT_PLAIN = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def dump(value: Value) -> str:
    """One document."""
    return "\n".join(_lines(value, "")) + "\n"


def _lines(value: Value, indent: str) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for name, each in value.items():
            yield from _entry(f"{indent}{_key(name)}:", each, indent + "  ")
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        for each in value:
            nested = list(_lines(each, indent + "  "))
            yield f"{indent}- {nested[0].lstrip()}"
            yield from nested[1:]
    else:
        yield f"{indent}{_scalar(value)}"


def _entry(head: str, value: Value, indent: str) -> Iterator[str]:
    if isinstance(value, str) and "\n" in value and value.endswith("\n") and not value.startswith((" ", "\n")):
        yield f"{head} |"
        yield from (f"{indent}{line}" if line else "" for line in value.removesuffix("\n").split("\n"))
    elif isinstance(value, Mapping | Sequence) and not isinstance(value, str) and value:
        yield head
        yield from _lines(value, indent)
    else:
        yield f"{head} {_scalar(value)}"


def _key(name: str) -> str:
    return name if PLAIN_KEY.fullmatch(name) and name.lower() not in NOT_PLAIN else json.dumps(name)


def _scalar(value: Value) -> str:
    return json.dumps(value, ensure_ascii=False)
