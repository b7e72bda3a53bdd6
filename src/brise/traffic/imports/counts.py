"""Tokens as logs count them: names and numbers, read as one `Usage` by what the words of each name say.

Langfuse counts every kind apart: its `input` is without what the cache had or got, its `output` without reasoning.
OpenTelemetry's conventions count them among the input and the output tokens. Where a sum stands beside them that only
the other way makes, or where a part is larger than its whole, the writer did it the other way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from brise.dialects import token_counts
from brise.dialects.bodies import Usage

Part = Literal["input", "output", "total", "cached", "written", "written_1h", "reasoning", "audio_in", "audio_out",
               "other_in", "other_out"]
INPUT, OUTPUT = frozenset({"input", "prompt"}), frozenset({"output", "completion"})
THOUGHT = frozenset({"reasoning", "thoughts", "thinking"})
PLAIN = frozenset({"tokens", "token", "count", "usage"})  # words that add nothing to a name
MOST_DIGITS = 15


def usage_of(named: Mapping[str, object], *, is_apart: bool) -> Usage | None:
    """The tokens that these names count; None if they count none. `is_apart`: by convention, parts are not in the
    whole."""
    said: dict[Part, int | None] = {}
    for name, value in named.items():
        part = _part_of(re.split(r"[^a-z0-9]+", name.lower()))
        if part is None or value is None or value == "":
            continue
        count, known = count_of(value), said.get(part)
        said[part] = count if known is None else known if count is None else max(count, known)
    prompt, completion = _whole(said, is_apart=is_apart)
    return token_counts.checked(Usage(
        prompt, completion, said.get("cached", 0), said.get("written", 0), said.get("written_1h", 0),
        said.get("reasoning"), said.get("audio_in", 0), said.get("audio_out", 0)))


def _whole(said: Mapping[Part, int | None], *, is_apart: bool) -> tuple[int | None, int | None]:
    """Prompt and completion with all their parts."""
    prompt, completion, total = said.get("input"), said.get("output"), said.get("total")
    cache = _sum(said, ("cached", "written"))
    within = prompt, completion
    cache_apart = _plus(prompt, cache), completion
    apart = (_plus(cache_apart[0], _sum(said, ("audio_in", "other_in"))),
             _plus(completion, _sum(said, ("reasoning", "audio_out", "other_out"))))
    ways = [apart, within, cache_apart] if is_apart else [within, cache_apart, apart]
    if prompt is not None and cache is not None and cache > prompt:
        ways.remove(within)
    return next((way for way in ways if total and _plus(*way) == total), ways[0])


def count_of(value: object) -> int | None:
    """A count, also one that a table has as text or a log as a whole number with a point; None for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= MOST_DIGITS:
        return int(value)
    if isinstance(value, float) and value.is_integer() and 0 <= value <= token_counts.MOST:
        return int(value)
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= token_counts.MOST
    return int(value) if is_count else None  # type: ignore[call-overload]


def _part_of(words: list[str]) -> Part | None:
    """What a name counts."""
    is_input, is_output = not INPUT.isdisjoint(words), not OUTPUT.isdisjoint(words)
    if "total" in words:
        return "total"
    if any(word.startswith("cache") for word in words):
        if not any(word.startswith(("creat", "writ", "ephemeral")) for word in words):
            return "cached"
        return "written_1h" if "1h" in words else None if "5m" in words else "written"
    if not THOUGHT.isdisjoint(words):
        return "reasoning"
    if is_input == is_output:
        return None
    if "audio" in words:
        return "audio_in" if is_input else "audio_out"
    rest = [word for word in words if word not in PLAIN | INPUT | OUTPUT]
    if not rest:
        return "input" if is_input else "output"
    if "details" in rest or "cost" in rest:
        return None
    return "other_in" if is_input else "other_out"


def _plus(count: int | None, more: int | None) -> int | None:
    return None if count is None or more is None else count + more


def _sum(said: Mapping[Part, int | None], parts: Iterable[Part]) -> int | None:
    counts = [said.get(part, 0) for part in parts]
    return None if None in counts else sum(count or 0 for count in counts)
