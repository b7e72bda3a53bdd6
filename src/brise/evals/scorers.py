"""The scorers: pure functions that compare an answer with its reference and give counts.

Each scorer's definition is printed with its figures, so that two different "F1" are not compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from brise.errors import EvidenceError
from brise.evals import bfcl, classify, compare
from brise.evals.example import AnsweredCall, EvalAnswer, EvalExample
from brise.evals.measure import Counts, Measure, of_rows
from brise.stats.clusters import Floats

Row = Callable[[EvalExample, EvalAnswer], Counts]


@dataclass(frozen=True)
class Scorer:
    """`row` counts one answer; `whole` makes figures that are not ratios of sums. `names` are in the report's order."""

    name: str
    definition: str
    names: tuple[str, ...]
    row: Row
    whole: Callable[[Sequence[EvalExample], Sequence[EvalAnswer]], list[Measure]] = lambda examples, answers: []

    def measures(self, examples: Sequence[EvalExample], answers: Sequence[EvalAnswer]) -> list[Measure]:
        """All figures of these answers."""
        rows = [self.row(example, answer) for example, answer in zip(examples, answers, strict=True)]
        return of_rows(rows, self.names) + self.whole(examples, answers)


def exact(example: EvalExample, answer: EvalAnswer) -> Counts:
    """Equal texts and tool calls; `exact_squeezed` with runs of white space as one blank."""
    given, wanted = answer.text, example.reference.text
    calls, wanted_calls = _tool_calls(answer), _tool_calls(example.reference)
    may_be = answer.error is None and calls == wanted_calls
    return {"exact": _mean(may_be and given.strip() == wanted.strip()),
            "exact_squeezed": _mean(may_be and compare.squeezed(given) == compare.squeezed(wanted))}


def json_fields(example: EvalExample, answer: EvalAnswer) -> Counts:
    """Whether the answer is JSON, whether it equals the reference, and how many of its fields do."""
    wanted = _reference_json(example)
    given = compare.parse(answer.text)
    is_valid = given is not compare.INVALID
    fields = compare.matches(compare.leaves(wanted), compare.leaves(given) if is_valid else Counter())
    is_equal = is_valid and compare.canonical(given) == compare.canonical(wanted)
    return {"valid_json": _mean(is_valid), "equal": _mean(is_equal), **_micro("field", *fields),
            "field_f1_per_example": (_f1(*fields) if is_valid else 0.0, 1.0)}


def function_calls(example: EvalExample, answer: EvalAnswer) -> Counts:
    """The calls of the answer against those of the reference, in any order of arguments."""
    wanted, given = calls_of(example.reference), calls_of(answer)
    slots = compare.matches(_slots(wanted), _slots(given))
    if not wanted:
        if not example.tools or example.reference.calls:
            raise EvidenceError(f"{example.place}: the reference is no function call", hint="choose another --score")
        is_right = _mean(not given and answer.error is None)  # functions were offered, and none was to be called
        return {"function": is_right, "call_exact": is_right, **_micro("slot", *slots)}
    is_function = [name for name, _ in wanted] == [name for name, _ in given]
    return {"valid_json": _mean(_is_json(answer)), "valid_call": _mean(bool(given)), "function": _mean(is_function),
            "call_exact": _mean([_equal(call) for call in wanted] == [_equal(call) for call in given]),
            **_micro("slot", *slots)}


def spans(example: EvalExample, answer: EvalAnswer) -> Counts:
    """Lists of {"type", "value"} as multisets of pairs; a list that is not of this form has no spans."""
    wanted = spans_of(compare.parse(example.reference.text))
    if wanted is None:
        raise EvidenceError(f"{example.place}: the reference is no JSON list of objects with 'type' and 'value'",
                            hint="choose another --score")
    given = spans_of(compare.parse(answer.text))
    given_spans = given if given is not None else Counter()
    return {"valid_spans": _mean(given is not None), "equal": _mean(given == wanted),
            **_micro("span", *compare.matches(wanted, given_spans))}


def perplexity(example: EvalExample, answer: EvalAnswer) -> Counts:
    """The negative log-likelihood of the reference in nats, and its tokens."""
    if answer.nll is None:
        return {}
    return {"nll_per_answer": (answer.nll, 1.0), "tokens_per_answer": (float(answer.scored_tokens), 1.0)}


def calls_of(answer: EvalAnswer) -> list[tuple[str, Mapping[str, object]]]:
    """An answer's calls: its tool calls, else its text as one call {"name", "arguments"} or a list of them.

    One call that is not of this form makes all of them invalid: half an answer cannot be executed.
    """
    if answer.calls:
        return _all_or_none([_tool_call(call) for call in answer.calls])
    value = compare.parse(answer.text)
    values = value if isinstance(value, list) else [value]
    return _all_or_none([_text_call(item) for item in values])


def slots_of(answer: EvalAnswer) -> Counter[compare.Leaf]:
    """The (argument, value) pairs of all calls of an answer."""
    return _slots(calls_of(answer))


def spans_of(value: object) -> Counter[compare.Leaf] | None:
    """The (type, value) pairs of a list; None if it is no such list."""
    if not isinstance(value, list):
        return None
    pairs: Counter[compare.Leaf] = Counter()
    for item in value:
        if not isinstance(item, dict) or not isinstance(item.get("type"), str) or "value" not in item:
            return None
        pairs[item["type"], compare.canonical(item["value"])] += 1
    return pairs


def built_in(labels: Sequence[str]) -> Mapping[str, Scorer]:
    """Every scorer by its name in --score; `labels` are the allowed labels of a classification."""
    micro = "precision, recall and F1 from sums over all examples (micro)"
    scorers = (
        Scorer("exact", "the answer's text is the reference's; squeezed: runs of white space count as one blank",
               ("exact", "exact_squeezed"), exact),
        Scorer("json", "fields are leaves (path, value) as multisets: order in lists does not count for them, for "
               f"'equal' it does; {micro}",
               ("equal", "valid_json", *_micro_names("field"), "field_f1_per_example"), json_fields),
        Scorer("call", "valid_call: JSON {name, arguments} and nothing else, or tool calls, over rows that want one; "
               f"slots are (argument, value) pairs, whichever function is called; {micro}",
               ("function", "call_exact", *_micro_names("slot"), "valid_call", "valid_json"), function_calls),
        Scorer("spans", f"(type, value) pairs as multisets; {micro}",
               (*_micro_names("span"), "equal", "valid_spans"), spans),
        Scorer("class", "the answer's text is the label; macro F1 is the mean over labels that references have",
               ("accuracy", "outside"), classify.row(labels), classify.macro),
        Scorer(bfcl.TASK, "all calls are right by the rules of the Berkeley function-calling leaderboard, in any "
               "order; dots in names are underscores",
               ("right", "right_functions", "called", "right_without_call"), bfcl.score),
        Scorer("perplexity", "of the reference answers with their end token, under the model; nats",
               ("nll_per_answer", "tokens_per_answer"), perplexity, _perplexity),
    )
    return MappingProxyType({scorer.name: scorer for scorer in scorers})


def pick(examples: Sequence[EvalExample]) -> tuple[str, str]:
    """The scorer for these rows and why, from their meta.task and references."""
    tasks = {example.meta.get("task") for example in examples}
    task = tasks.pop() if len(tasks) == 1 else None
    references = [example.reference for example in examples]
    match task:
        case bfcl.TASK:
            return bfcl.TASK, "--format bfcl"
        case "function_call":
            return "call", "meta.task is function_call"
        case "classification" | "next_action":
            return "class", f"meta.task is {task}"
        case "json_extraction" if all(spans_of(compare.parse(answer.text)) is not None for answer in references):
            return "spans", "meta.task is json_extraction, and references are lists of {type, value}"
        case "json_extraction":
            return "json", "meta.task is json_extraction"
    if all(answer.calls or example.tools for answer, example in zip(references, examples, strict=True)) and any(
            answer.calls for answer in references):
        return "call", "references are tool calls"
    return "exact", "the rows name no task that another scorer is for"


@dataclass
class AnswerKinds:
    """What answers look like, row by row, in bounded memory, and which scorer therefore fits them."""

    rows: int = 0
    calls: int = 0  # rows that call a function, in the way of the API or as JSON text
    may_call: int = 0  # rows that call one, or were offered some and call none
    values: int = 0  # rows whose text is a JSON object or list
    spans: int = 0
    labels: set[str] = field(default_factory=set)
    is_short: bool = True  # all texts are of one short line, and few of them differ

    def add(self, reference: EvalAnswer, *, has_tools: bool) -> None:
        """One more row."""
        value, is_call = compare.parse(reference.text), bool(calls_of(reference))
        self.rows += 1
        self.calls += is_call
        self.may_call += is_call or (has_tools and not reference.calls)
        self.values += isinstance(value, dict | list)
        self.spans += value != [] and spans_of(value) is not None
        text = reference.text.strip()
        if self.is_short:
            self.labels.add(text)
            is_label = bool(text) and len(text) <= LONGEST_LABEL and "\n" not in text and not reference.calls
            self.is_short = is_label and len(self.labels) <= MOST_LABELS

    def fitting(self) -> tuple[str, str]:
        """The scorer for all of these rows, and why."""
        if self.calls and self.may_call == self.rows:
            return "call", f"{self.calls} of {self.rows} answers call a function"
        if self.rows and self.spans == self.rows:
            return "spans", "all answers are lists of {type, value}"
        if self.rows and self.values == self.rows:
            return "json", "all answers are JSON"
        if self.is_short and 1 < len(self.labels) <= self.rows / ROWS_A_LABEL:
            return "class", f"all answers are one of {len(self.labels)} short texts"
        others = [f"{number} {what}" for number, what in ((self.calls, "call a function"), (self.values, "are JSON"))
                  if number]
        return "exact", "the answers are texts" if not others else (
            f"of {self.rows} answers {' and '.join(others)}: no other scorer fits them all")


LONGEST_LABEL, MOST_LABELS, ROWS_A_LABEL = 64, 200, 3


def _perplexity(examples: Sequence[EvalExample], answers: Sequence[EvalAnswer]) -> list[Measure]:
    counts = np.array([(answer.nll or 0.0, answer.scored_tokens) for answer in answers], np.float64).reshape(-1, 2)

    def value(sums: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            out: Floats = np.exp(sums[..., 0] / sums[..., 1])
        return out

    return [Measure("perplexity", counts, value, is_share=False, lower_is_better=True)]


def _all_or_none(calls: Sequence[tuple[str, Mapping[str, object]] | None]) -> list[tuple[str, Mapping[str, object]]]:
    valid = [call for call in calls if call is not None]
    return valid if len(valid) == len(calls) else []


def _tool_call(call: AnsweredCall) -> tuple[str, Mapping[str, object]] | None:
    arguments = compare.parse(call.arguments or "{}")
    return (call.name, arguments) if isinstance(arguments, dict) else None


def _text_call(value: object) -> tuple[str, Mapping[str, object]] | None:
    if not isinstance(value, dict) or value.keys() != {"name", "arguments"}:
        return None
    name, arguments = value["name"], value["arguments"]
    return (name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


def _tool_calls(answer: EvalAnswer) -> list[tuple[str, str]]:
    """The calls of an answer, with arguments in canonical form if they are JSON."""
    parsed = [(call, compare.parse(call.arguments or "{}")) for call in answer.calls]
    return [(call.name, call.arguments if value is compare.INVALID else compare.canonical(value))
            for call, value in parsed]


def _is_json(answer: EvalAnswer) -> bool:
    texts = [call.arguments or "{}" for call in answer.calls] or [answer.text]
    return all(compare.parse(text) is not compare.INVALID for text in texts)


def _equal(call: tuple[str, Mapping[str, object]]) -> tuple[str, str]:
    return call[0], compare.canonical(call[1])


def _slots(calls: Sequence[tuple[str, Mapping[str, object]]]) -> Counter[compare.Leaf]:
    slots: Counter[compare.Leaf] = Counter()
    for _, arguments in calls:
        slots += compare.leaves(arguments)
    return slots


def _reference_json(example: EvalExample) -> object:
    value = compare.parse(example.reference.text)
    if value is compare.INVALID:
        raise EvidenceError(f"{example.place}: the reference is no JSON", hint="choose another --score")
    return value


def _mean(is_so: bool) -> tuple[float, float]:
    return float(is_so), 1.0


def _micro_names(what: str) -> tuple[str, ...]:
    return f"{what}_f1", f"{what}_precision", f"{what}_recall"


def _micro(what: str, both: int, extra: int, missing: int) -> Counts:
    """F1 is also a ratio of sums: 2 TP / (2 TP + FP + FN)."""
    return {f"{what}_f1": (2.0 * both, float(2 * both + extra + missing)),
            f"{what}_precision": (float(both), float(both + extra)),
            f"{what}_recall": (float(both), float(both + missing))}


def _f1(both: int, extra: int, missing: int) -> float:
    """F1 of one example; 1 if the reference and the answer are both empty."""
    return 2 * both / (2 * both + extra + missing) if both + extra + missing else 1.0
