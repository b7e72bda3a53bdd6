"""Scorers against values computed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from brise.errors import EvidenceError
from brise.evals import scorers
from brise.evals.example import AnsweredCall, EvalAnswer
from brise.evals.measure import Counts
from tests.evals.rows import called, example, examples

WEATHER = '{"name": "weather", "arguments": {"city": "Paris", "day": "today"}}'


def micro(counts: Counts, what: str) -> tuple[float, float, float]:
    """True positives, and all given and all wanted ones."""
    both, given = counts[f"{what}_precision"]
    assert counts[f"{what}_recall"][0] == both
    wanted = counts[f"{what}_recall"][1]
    assert counts[f"{what}_f1"] == (2 * both, given + wanted)
    return both, given, wanted


@pytest.mark.parametrize(("text", "exact", "squeezed"), [
    ("a b", 1, 1), (" a b\n", 1, 1), ("a  b", 0, 1), ("a\nb", 0, 1), ("A b", 0, 0), ("", 0, 0)])
def test_exact(text: str, exact: float, squeezed: float) -> None:
    assert scorers.exact(example("a b"), EvalAnswer(text)) == {"exact": (exact, 1), "exact_squeezed": (squeezed, 1)}


def test_exact_compares_tool_calls_too() -> None:
    row = example(called("f", '{"a": 1, "b": 2}'))
    assert scorers.exact(row, called("f", '{"b": 2, "a": 1}'))["exact"] == (1, 1)
    assert scorers.exact(row, EvalAnswer(""))["exact"] == scorers.exact(row, called("g", "{}"))["exact"] == (0, 1)
    assert scorers.exact(example(""), EvalAnswer(error="too long"))["exact"] == (0, 1)


def test_where_functions_are_offered_calling_none_may_be_right() -> None:
    row = replace(example("Hello!"), tools=({"type": "function", "function": {"name": "f"}},))
    counts = scorers.function_calls(row, EvalAnswer("Hi."))
    assert counts["function"] == counts["call_exact"] == (1, 1) and "valid_call" not in counts
    counts = scorers.function_calls(row, called("f", '{"a": 1}'))
    assert counts["function"] == (0, 1) and micro(counts, "slot") == (0, 1, 0)
    assert scorers.pick([row, example(called("f", "{}"))])[0] == "call" and scorers.pick([row])[0] == "exact"


def test_json_fields_one_of_three_right() -> None:
    counts = scorers.json_fields(example('{"a": 1, "b": {"c": "x"}}'), EvalAnswer('{"a": 1, "b": {"c": "y"}, "d": 2}'))
    assert counts["valid_json"] == (1, 1) and counts["equal"] == (0, 1)
    assert micro(counts, "field") == (1, 3, 2)
    assert counts["field_f1_per_example"] == (2 / 5, 1)


def test_json_lists_are_equal_in_order_but_fields_in_any() -> None:
    counts = scorers.json_fields(example("[1, 2]"), EvalAnswer("[2, 1]"))
    assert counts["equal"] == (0, 1) and counts["field_f1_per_example"] == (1, 1)


@pytest.mark.parametrize("reference", ['{"a": 1}', "[]"])
def test_an_answer_that_is_no_json_is_wrong(reference: str) -> None:
    counts = scorers.json_fields(example(reference), EvalAnswer("sorry"))
    assert counts["valid_json"] == counts["equal"] == counts["field_f1_per_example"] == (0, 1)


def test_json_null_is_equal_to_null_only() -> None:
    assert scorers.json_fields(example("null"), EvalAnswer("null"))["equal"] == (1, 1)
    assert scorers.json_fields(example("null"), EvalAnswer("no"))["equal"] == (0, 1)


@pytest.mark.parametrize("answer", [
    EvalAnswer(WEATHER), EvalAnswer('{"arguments": {"day": "today", "city": " Paris"}, "name": "weather"}'),
    called("weather", '{"city": "Paris", "day": "today"}'), EvalAnswer(f"[{WEATHER}]")])
def test_the_right_call_however_it_is_written(answer: EvalAnswer) -> None:
    counts = scorers.function_calls(example(WEATHER), answer)
    assert counts["valid_json"] == counts["valid_call"] == counts["function"] == counts["call_exact"] == (1, 1)
    assert micro(counts, "slot") == (2, 2, 2)


def test_slots_count_whichever_function_is_called() -> None:
    wrong = '{"name": "play", "arguments": {"city": "Paris", "day": "tomorrow", "year": "1959"}}'
    counts = scorers.function_calls(example(WEATHER), EvalAnswer(wrong))
    assert counts["valid_call"] == (1, 1) and counts["function"] == counts["call_exact"] == (0, 1)
    assert micro(counts, "slot") == (1, 3, 2)


def test_a_wrong_argument_keeps_the_function() -> None:
    counts = scorers.function_calls(example(WEATHER), called("weather", '{"city": "Paris"}'))
    assert counts["function"] == (1, 1) and counts["call_exact"] == (0, 1) and micro(counts, "slot") == (1, 1, 2)


@pytest.mark.parametrize(("answer", "is_json"), [
    (EvalAnswer('{"city": "Paris"}'), 1), (EvalAnswer("Paris"), 0), (called("f", "[]"), 1), (called("f", "{"), 0)])
def test_json_need_not_be_a_call(answer: EvalAnswer, is_json: float) -> None:
    counts = scorers.function_calls(example(WEATHER), answer)
    assert counts["valid_json"] == (is_json, 1) and counts["valid_call"] == (0, 1)


@pytest.mark.parametrize("answer", [
    EvalAnswer("no call"), EvalAnswer('{"name": "weather"}'), EvalAnswer('{"name": 1, "arguments": {}}'),
    EvalAnswer("[]"),
    EvalAnswer('{"name": "weather", "arguments": []}'), EvalAnswer(f"{WEATHER} and more"),
    EvalAnswer(f"[{WEATHER}, 1]"),
    called("weather", '{"city"'), EvalAnswer(calls=(AnsweredCall("weather", "{}"), AnsweredCall("weather", "[]")))])
def test_what_nobody_could_run_is_no_call(answer: EvalAnswer) -> None:
    counts = scorers.function_calls(example(WEATHER), answer)
    assert counts["valid_call"] == counts["function"] == counts["call_exact"] == (0, 1)
    assert micro(counts, "slot") == (0, 0, 2)


def test_two_calls_are_compared_in_order() -> None:
    two = EvalAnswer(calls=(AnsweredCall("a", '{"x": 1}'), AnsweredCall("b", "")))
    swapped = EvalAnswer(calls=(AnsweredCall("b", "{}"), AnsweredCall("a", '{"x": 1}')))
    assert scorers.function_calls(example(two), two)["call_exact"] == (1, 1)
    assert scorers.function_calls(example(two), swapped)["function"] == (0, 1)


def test_spans_are_multisets() -> None:
    counts = scorers.spans(example('[{"type": "P", "value": "Ann"}, {"type": "P", "value": "Ann"}]'),
                           EvalAnswer('[{"type": "P", "value": "Ann"}, {"type": "G", "value": "Rome"}]'))
    assert counts["valid_spans"] == (1, 1) and counts["equal"] == (0, 1) and micro(counts, "span") == (1, 2, 2)


@pytest.mark.parametrize(("text", "valid", "equal"), [
    ("[]", 1, 1), ("none", 0, 0), ("{}", 0, 0), ('[{"type": "P"}]', 0, 0), ('["P"]', 0, 0),
    ('[{"type": "P", "value": "Ann"}]', 1, 0)])
def test_no_spans(text: str, valid: float, equal: float) -> None:
    counts = scorers.spans(example("[]"), EvalAnswer(text))
    assert counts["valid_spans"] == (valid, 1) and counts["equal"] == (equal, 1)


def test_micro_f1_over_rows_is_not_the_mean_of_rows() -> None:
    rows = examples('{"a": 1}', '{"a": 1, "b": 2, "c": 3}')
    answers = [EvalAnswer('{"a": 1}'), EvalAnswer('{"a": 1, "x": 0}')]
    found = {measure.name: measure.estimate for measure in scorers.built_in(())["json"].measures(rows, answers)}
    assert found["field_f1"] == pytest.approx(2 * 2 / (3 + 4))  # 2 right of 3 given, 4 wanted
    assert found["field_f1_per_example"] == pytest.approx((1 + 2 / 5) / 2)


def test_perplexity_is_over_tokens_and_nats_over_answers() -> None:
    answers = [EvalAnswer(nll=2.0, scored_tokens=1), EvalAnswer(nll=4.0, scored_tokens=5), EvalAnswer(error="too long")]
    found = {measure.name: measure.estimate
             for measure in scorers.built_in(())["perplexity"].measures(examples("a", "b", "c"), answers)}
    assert found == pytest.approx({"nll_per_answer": 3, "tokens_per_answer": 3, "perplexity": 2.718281828})


@pytest.mark.parametrize(("name", "scored"), [
    ("json", "a reference"), ("call", '{"a": 1}'), ("spans", '{"a": 1}')])
def test_references_of_another_kind_are_an_error_with_their_place(name: str, scored: str) -> None:
    with pytest.raises(EvidenceError, match=r"data\.jsonl:1: the reference is no"):
        scorers.built_in(())[name].measures(examples(scored), [EvalAnswer("")])


@pytest.mark.parametrize(("task", "reference", "name"), [
    ("function_call", WEATHER, "call"), ("classification", "a", "class"), ("next_action", "a", "class"),
    ("json_extraction", "[]", "spans"), ("json_extraction", '{"a": 1}', "json"), (None, "a", "exact"),
    ("code", "ls", "exact")])
def test_the_scorer_for_a_task(task: str | None, reference: str, name: str) -> None:
    assert scorers.pick([example(reference, task=task)])[0] == name


def test_tool_calls_need_no_task() -> None:
    assert scorers.pick([example(called("f", "{}"))])[0] == "call"
