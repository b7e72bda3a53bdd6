"""Runs that end early, and go on: nothing is asked twice, and nothing that was answered is lost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from brise.errors import EvidenceError, NetworkError, OutputError
from brise.evals import answers_file
from brise.evals.answering import answer_all
from brise.evals.example import AnsweredCall, EvalAnswer, EvalExample
from tests.evals.rows import example, examples


class Parrot:
    """Answers with the reference; breaks at the places in `breaks` with that error."""

    name, parallel = "parrot", 2

    def __init__(self, breaks: Mapping[str, BaseException] | None = None, *, max_tokens: int = 9) -> None:
        self.breaks, self.max_tokens = breaks or {}, max_tokens
        self.asked: list[str] = []
        self.prepared: list[str] = []
        self.is_closed = False

    def identity(self) -> Mapping[str, object]:
        return {"max_tokens": self.max_tokens, "schema": None}

    def prepare(self, examples: Sequence[EvalExample]) -> None:
        self.prepared = [example.digest for example in examples]

    def answer(self, example: EvalExample) -> EvalAnswer:
        self.asked.append(example.digest)
        if example.digest in self.breaks:
            raise self.breaks[example.digest]
        return EvalAnswer(example.reference.text, (AnsweredCall("f", "{}"),), nll=0.5)

    def close(self) -> None:
        self.is_closed = True


def ignore(step: int) -> None:
    """A progress bar that nobody sees."""


ROWS = tuple(examples(*"abcdefgh"))


def test_answers_come_in_the_order_of_the_examples() -> None:
    parrot = Parrot()
    found = answer_all(parrot, ROWS, None, ignore)
    assert [answer.text for answer in found.answers] == list("abcdefgh") and found.num_kept == 0 and parrot.is_closed


def test_equal_examples_are_asked_once() -> None:
    parrot = Parrot()
    found = answer_all(parrot, [example("a"), example("a")], None, ignore)
    assert len(found.answers) == 2 and len(parrot.asked) == 1


@pytest.mark.parametrize("error", [NetworkError("gone"), KeyboardInterrupt()])
def test_a_broken_run_keeps_what_it_has_and_the_next_asks_the_rest(tmp_path: Path, error: BaseException) -> None:
    out, broken = tmp_path / "answers.jsonl", Parrot({"digest 5": error})
    with pytest.raises(type(error)):
        answer_all(broken, ROWS, out, ignore)
    kept = set(answers_file.read(out).answers)
    assert broken.is_closed and kept and "digest 5" not in kept
    again = Parrot()
    steps: list[int] = []
    found = answer_all(again, ROWS, out, steps.append)
    assert sorted(again.asked) == sorted(again.prepared) == sorted({row.digest for row in ROWS} - kept)
    assert found.answers == answer_all(Parrot(), ROWS, None, ignore).answers and found.num_kept == len(kept)
    assert sum(steps) == len(ROWS)


class Failing(Parrot):
    """Has no answer for the places in `breaks`."""

    def answer(self, example: EvalExample) -> EvalAnswer:
        self.asked.append(example.digest)
        return EvalAnswer(error="too long") if example.digest in self.breaks else EvalAnswer(example.reference.text)


def test_errors_are_kept_for_comparisons_and_asked_again(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    answer_all(Failing({"digest 3": NetworkError("")}), ROWS, out, ignore)
    assert answers_file.read(out).answers["digest 3"].error == "too long"
    again = Parrot()
    found = answer_all(again, ROWS, out, ignore)
    assert again.asked == ["digest 3"] and found.answers[3].error is None
    assert answers_file.read(out).answers["digest 3"].error is None


def test_if_nothing_is_answered_the_rest_is_not_asked() -> None:
    rows = examples(*map(str, range(100)))
    failing = Failing({row.digest: NetworkError("") for row in rows})
    with pytest.raises(EvidenceError, match="none of the first 20 examples got an answer; the last: too long"):
        answer_all(failing, rows, None, ignore)
    assert len(failing.asked) < 30 and failing.is_closed


def test_a_whole_file_asks_nothing(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    answer_all(Parrot(), ROWS, out, ignore)
    before, idle = out.read_bytes(), Parrot({row.digest: NetworkError("asked") for row in ROWS})
    assert answer_all(idle, ROWS, out, ignore).num_kept == len(ROWS) and out.read_bytes() == before


@pytest.mark.parametrize("cut", [1, 7, 60])
def test_a_last_line_that_was_cut_is_asked_again(tmp_path: Path, cut: int) -> None:
    out = tmp_path / "answers.jsonl"
    answer_all(Parrot(), ROWS, out, ignore)
    whole = out.read_bytes()
    out.write_bytes(whole[:-cut])
    again = Parrot()
    answer_all(again, ROWS, out, ignore)
    assert len(again.asked) == 1 and sorted(out.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    answer_all(Parrot(), ROWS, out, ignore)
    with pytest.raises(OutputError, match="has answers with max_tokens 9, this run has 10"):
        answer_all(Parrot(max_tokens=10), ROWS, out, ignore)


@pytest.mark.parametrize("text", ["hello\n", "{}\n", '{"brise_eval": 2, "system": "", "settings": {}}\n', "[1]\n"])
def test_another_file_is_not_written_to(tmp_path: Path, text: str) -> None:
    out = tmp_path / "notes.txt"
    out.write_text(text)
    with pytest.raises(OutputError, match="is no file of answers"):
        answer_all(Parrot(), ROWS, out, ignore)
    assert out.read_text() == text


def test_two_runs_do_not_share_a_file(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    with (answers_file.continued(out, "parrot", {}), pytest.raises(OutputError, match="another brise is writing"),
          answers_file.continued(out, "parrot", {})):
        pass


def test_every_field_of_an_answer_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    answer = EvalAnswer("ü\n", (AnsweredCall("f", '{"a": 1}'),), "length", "too long", 3, 4, 1.5, 6)
    with answers_file.continued(out, "parrot", {}) as file:
        file.append(ROWS[0], answer)
    assert answers_file.read(out).answers == {"digest 0": answer}
    assert json.loads(out.read_text().splitlines()[1])["place"] == "data.jsonl:1"
