"""The file of verdicts: whole lines, whatever a crash left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from brise.errors import EvidenceError
from brise.evals.example import EvalAnswer
from brise.prove import label_book
from brise.prove.label_book import FileBook, Verdict
from brise.prove.label_queue import steadiness
from brise.prove.pairs import ModelAnswer, Pair


def pair(name: str) -> Pair:
    return Pair(name, name, name, ModelAnswer(EvalAnswer("a")), ModelAnswer(EvalAnswer("b")))


def test_a_line_that_a_crash_cut_is_left_out_and_written_over(tmp_path: Path) -> None:
    book = FileBook(tmp_path / "book.jsonl")
    assert not book.verdicts()
    book.write(pair("x"), Verdict("x", 1, 0, "ann", 5.0))
    with (tmp_path / "book.jsonl").open("a") as file:
        file.write('{"id": "y", "small_sc')
    assert [verdict.pair for verdict in book.verdicts()] == ["x"]
    book.write(pair("y"), Verdict("y", 0, 1, "bob", 6.0, True))
    assert book.verdicts() == [Verdict("x", 1, 0, "ann", 5.0), Verdict("y", 0, 1, "bob", 6.0, True)]


def test_the_newest_first_look_counts_and_second_looks_do_not() -> None:
    verdicts = [Verdict("x", 1, 0, "ann", 1.0), Verdict("x", 0, 0, "bob", 2.0), Verdict("x", 0, 1, "ann", 3.0, True)]
    [judged] = label_book.with_verdicts([pair("x")], verdicts)
    assert [(found.small, found.large, found.who) for found in judged.judgements] == [(0, 0, "bob")]
    with pytest.raises(EvidenceError, match="'z', which the log does not have"):
        label_book.with_verdicts([pair("x")], [Verdict("z", 1, 1, "ann", 1.0)])


def test_steadiness_is_of_pairs_that_were_looked_at_twice() -> None:
    assert steadiness([Verdict("x", 1, 0, "ann", 1.0)]) is None
    found = steadiness([Verdict(name, 1, 0, "ann", 1.0, is_second) for name in "abcd" for is_second in (False, True)]
                       + [Verdict("e", 1, 0, "ann", 1.0), Verdict("e", 0, 1, "ann", 2.0, True)])
    assert found is not None and found.pairs == 5 and found.same == 0.8
