"""Schemas that a grammar enforces in part: what is left out is named, and an answer is checked against the whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from brise.engine.answer_collector import AnswerCollector
from brise.text.schema_check import violations
from brise.text.schemas import SchemaKeyword


@dataclass(frozen=True)
class Unenforced:
    """A schema of a request of which the grammar enforces a part. `param` is the client's name for it."""

    param: str
    schema: Mapping[str, object]
    left_out: tuple[SchemaKeyword, ...]
    function: str | None = None  # None: of the text, not of a call's arguments


@dataclass(frozen=True)
class AnswerPlaces:
    """Where a dialect's body has the text of an answer, and the arguments of each of its calls."""

    text: str
    calls: Sequence[str]


def not_enforced(unenforced: Sequence[Unenforced]) -> list[str]:
    """The keywords that are not enforced, each with the client's name for its place."""
    return [f"{each.param}.{place}" for each in unenforced for place in each.left_out][:64]


def invalid_places(answer: AnswerCollector, unenforced: Sequence[Unenforced], places: AnswerPlaces) -> list[str]:
    """The places in an answer that break what was not enforced; none in an answer that was cut."""
    if answer.finish == "length":
        return []
    return [place for schema in unenforced for place in _invalid(answer, schema, places)]


def _invalid(answer: AnswerCollector, schema: Unenforced, places: AnswerPlaces) -> Iterator[str]:
    texts = [(places.text, answer.text)] if schema.function is None and not answer.calls else [
        (place, call.arguments) for place, call in zip(places.calls, answer.calls, strict=True)
        if call.name == schema.function]
    for place, text in texts:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            yield f"{place}: no JSON"
            continue
        yield from (f"{place}: {each}" for each in violations(value, schema.schema, schema.left_out))
