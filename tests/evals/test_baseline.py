"""Baselines, on planted data and on the real sets where they are."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from brise.errors import EvidenceError, MissingExtraError
from brise.evals import baseline, classify, data, scorers
from brise.evals.answering import answer_all
from brise.evals.baseline import BaselineAnswerer, Kind
from brise.evals.example import EvalExample
from tests.evals.rows import example
from tests.evals.test_answering import ignore

REAL = Path(__file__).parents[3] / "shared" / "data"


def rows(first: int, *pairs: tuple[str, str]) -> list[EvalExample]:
    return [example(answer, question, first + number) for number, (question, answer) in enumerate(pairs)]


TRAIN = rows(0, ("play some jazz music", "play"), ("play a song", "play"), ("music please", "play"),
             ("weather in Paris", "weather"), ("will it rain", "weather"))
TEST = rows(100, ("play the song again", "play"), ("rain in Paris", "weather"))


def texts(kind: Kind, train: Sequence[EvalExample], test: Sequence[EvalExample], *, classifies: bool) -> list[str]:
    found = answer_all(BaselineAnswerer(kind, train, classifies=classifies), test, None, ignore)
    return [answer.text for answer in found.answers]


def test_the_majority_answers_the_same_always() -> None:
    assert texts("majority", TRAIN, TEST, classifies=True) == ["play", "play"]


@pytest.mark.parametrize("classifies", [True, False])
def test_tfidf_learns(classifies: bool) -> None:
    assert texts("tfidf", TRAIN, TEST, classifies=classifies) == ["play", "weather"]


def test_one_label_needs_no_model() -> None:
    assert texts("tfidf", TRAIN[:3], TEST, classifies=True) == ["play", "play"]


def test_the_nearest_neighbour_copies_calls() -> None:
    found = texts("tfidf", rows(0, ("weather in Rome", '{"name": "w", "arguments": {"city": "Rome"}}'),
                                ("play jazz", '{"name": "p", "arguments": {}}')), TEST, classifies=False)
    assert found == ['{"name": "p", "arguments": {}}', '{"name": "w", "arguments": {"city": "Rome"}}']


def test_system_messages_count_only_where_they_differ() -> None:
    def with_system(row: EvalExample, text: str) -> EvalExample:
        return replace(row, prompt=({"role": "system", "content": text}, *row.prompt))

    same = [with_system(row, "task") for row in TRAIN]
    assert baseline.texts_of(same, same)[0][0] == "play some jazz music"
    differing = [with_system(row, f"task {number}") for number, row in enumerate(TRAIN)]
    assert baseline.texts_of(differing, same)[0][0] == "task 0\nplay some jazz music"


def test_conversations_that_are_evaluated_are_not_learned() -> None:
    shared = replace(TRAIN[0], conversation=TEST[0].conversation)
    assert baseline.without([shared, *TRAIN[1:]], TEST) == tuple(TRAIN[1:])
    with pytest.raises(EvidenceError, match="all 1 rows"):
        baseline.without([shared], TEST)


def test_no_text_to_learn_from_is_an_error() -> None:
    empty = rows(0, ("?", "a"), ("!", "b"))
    with pytest.raises(EvidenceError, match="no text to learn from"):
        texts("tfidf", empty, TEST, classifies=True)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"brise\[eval\]"):
        texts("tfidf", TRAIN, TEST, classifies=True)
    assert texts("majority", TRAIN, TEST, classifies=True) == ["play", "play"]


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize(("name", "at_least"), [("banking77", 0.87), ("cti_tram", 0.80)])
def test_real_classifications(name: str, at_least: float) -> None:
    """The data's README has 89.7 % and 83.8 %, on other splits. Here: every tenth row, learned from the others."""
    whole = data.read([REAL / name / "train.jsonl"])
    test, train = whole[::10], [row for number, row in enumerate(whole) if number % 10]
    answerer = BaselineAnswerer("tfidf", baseline.without(train, test), classifies=True)
    scorer = scorers.built_in(classify.labels_of(test))["class"]
    accuracy = scorer.measures(test, answer_all(answerer, test, None, ignore).answers)[0]
    assert accuracy.name == "accuracy" and accuracy.estimate >= at_least
