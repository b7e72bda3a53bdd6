"""Each field's own figures, by hand."""

from __future__ import annotations

from brise.evals import fields
from brise.evals.example import Answer
from brise.evals.fields import Field
from tests.evals.rows import examples


def test_arguments_of_calls() -> None:
    rows = examples('{"name": "f", "arguments": {"city": "Rome", "day": "today"}}',
                    '{"name": "f", "arguments": {"city": "Oslo"}}')
    answers = [Answer('{"name": "f", "arguments": {"city": "Rome", "year": "1959"}}'), Answer("no call")]
    found = fields.by_name("call", rows, answers)
    assert found == [Field("city", 2, 1, 1), Field("day", 1, 0, 0), Field("year", 0, 1, 0)]
    assert (found[0].precision, found[0].recall, found[0].f1) == (1, 0.5, 2 / 3)
    assert found[1].precision is None and found[2].recall is None and found[2].f1 == 0


def test_types_of_spans_and_paths_of_json() -> None:
    spans = '[{"type": "P", "value": "Ann"}, {"type": "P", "value": "Bob"}, {"type": "G", "value": "Rome"}]'
    assert fields.by_name("spans", examples(spans), [Answer('[{"type": "P", "value": "Bob"}]')]) == [
        Field("P", 2, 1, 1), Field("G", 1, 0, 0)]
    assert fields.by_name("json", examples('{"a": {"b": 1}}'), [Answer('{"a": {"b": 1.0}}')]) == [Field("a.b", 1, 1, 1)]


def test_other_scores_have_no_fields() -> None:
    assert fields.by_name("exact", examples("a"), [Answer("a")]) == []
