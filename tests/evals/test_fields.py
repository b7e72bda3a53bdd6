"""Each field's own figures, by hand."""

from __future__ import annotations

from brise.evals import report
from brise.evals.example import EvalAnswer
from brise.evals.report import Field
from tests.evals.rows import examples


def test_arguments_of_calls() -> None:
    rows = examples('{"name": "f", "arguments": {"city": "Rome", "day": "today"}}',
                    '{"name": "f", "arguments": {"city": "Oslo"}}')
    answers = [EvalAnswer('{"name": "f", "arguments": {"city": "Rome", "year": "1959"}}'), EvalAnswer("no call")]
    found = report.by_name("call", rows, answers)
    assert found == [Field("city", 2, 1, 1), Field("day", 1, 0, 0), Field("year", 0, 1, 0)]
    assert (found[0].precision, found[0].recall, found[0].f1) == (1, 0.5, 2 / 3)
    assert found[1].precision is None and found[2].recall is None and found[2].f1 == 0


def test_types_of_spans_and_paths_of_json() -> None:
    spans = '[{"type": "P", "value": "Ann"}, {"type": "P", "value": "Bob"}, {"type": "G", "value": "Rome"}]'
    assert report.by_name("spans", examples(spans), [EvalAnswer('[{"type": "P", "value": "Bob"}]')]) == [
        Field("P", 2, 1, 1), Field("G", 1, 0, 0)]
    assert report.by_name("json", examples('{"a": {"b": 1}}'), [EvalAnswer('{"a": {"b": 1.0}}')]) == [Field("a.b", 1, 1,
                                                                                                            1)]


def test_other_scores_have_no_fields() -> None:
    assert report.by_name("exact", examples("a"), [EvalAnswer("a")]) == []
