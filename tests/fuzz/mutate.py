"""Changes JSON so that it stays JSON: a fuzzer that knows only bytes seldom gets behind the first brace."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

SCALARS: tuple[object, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, 1 << 31, 1 << 53, (1 << 63) - 1, 1 << 64, -(1 << 63), 10 ** 40,
    10 ** 400, "", "a", "0", "null", "[]", "{}", "\ud800", "\0", "\n", "\u2028", "é", "<|im_end|>", "../x", "a" * 300,
    [], {}, [[]], [None], {"a": None}, {"": ""})
MAX_PLACES = 400


def changed(data: bytes, max_bytes: int, seed: int, as_bytes: Callable[[bytes, int], bytes], *, by_line: bool) -> bytes:
    """Another input near this one; `as_bytes` changes it without looking at what it is."""
    draws = random.Random(seed)
    if draws.random() < 0.2:
        return as_bytes(data, max_bytes)
    if by_line:
        return _line_changed(data, max_bytes, draws, as_bytes)
    try:
        value = [json.loads(data)]
        for _ in range(draws.choice((1, 1, 1, 2, 4))):
            _change(value, draws)
        return json.dumps(value[0], ensure_ascii=draws.random() < 0.9).encode("utf-8", "surrogatepass")[:max_bytes]
    except (ValueError, RecursionError, OverflowError):  # no JSON, or numbers and depths that Python does not write
        return as_bytes(data, max_bytes)


def _line_changed(data: bytes, max_bytes: int, draws: random.Random, as_bytes: Callable[[bytes, int], bytes]) -> bytes:
    lines = data.split(b"\n")
    at = draws.randrange(len(lines))
    if draws.random() < 0.2:
        lines.insert(at, lines[draws.randrange(len(lines))])
    else:
        lines[at] = changed(lines[at], max_bytes, draws.randrange(1 << 30), as_bytes, by_line=False)
    return b"\n".join(lines)[:max_bytes]


def _change(value: list[Any], draws: random.Random) -> None:
    found = list(_places(value))
    parent, key = draws.choice(found)
    match draws.randrange(8):
        case 0 | 1:
            parent[key] = draws.choice(SCALARS)
        case 2:  # a part of the same document, as a copy: parts must not hold themselves
            other, name = draws.choice(found)
            parent[key] = json.loads(json.dumps(other[name]))
        case 3 if parent is not value:
            del parent[key]
        case 4 if isinstance(parent, list) and parent is not value:
            parent.insert(draws.randrange(len(parent) + 1), json.loads(json.dumps(parent[key])))
        case 5 if isinstance(parent, dict):
            parent[draws.choice([*(name for _, name in found if isinstance(name, str)), "x"])] = parent.pop(key)
        case 6:
            parent[key] = draws.choice(([parent[key]], {"a": parent[key]}, [parent[key]] * 2))
        case _:
            parent[key] = _varied(parent[key], draws)


def _varied(value: object, draws: random.Random) -> object:
    match value:
        case bool() | None:
            return not value
        case int():
            return draws.choice((value + 1, value - 1, -value, value * 2, float(value), str(value), value << 32))
        case float():
            return draws.choice((value * 2, -value, int(value), str(value)))
        case str():
            at = draws.randrange(len(value) + 1)
            inserted = draws.choice((str(draws.choice(SCALARS)), "\ud83d"))
            return draws.choice((value[:at], value[at:], value * 2, value.upper(), f" {value}",
                                 value[:at] + inserted + value[at:]))
        case list():
            return value[::-1] + value[:1]
        case dict():
            return {**value, "x": draws.choice(SCALARS)}
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    pending, count = [value], 0
    while pending and count < MAX_PLACES:
        parent = pending.pop(0)
        for key in (list(parent) if isinstance(parent, dict) else range(len(parent))):
            count += 1
            yield parent, key
            if isinstance(parent[key], dict | list):
                pending.append(parent[key])
