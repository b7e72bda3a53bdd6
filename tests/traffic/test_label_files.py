"""Labels of many answers from a table, JSON lines or Python: what is none is counted and costs no other row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brise.errors import EvidenceError
from brise.traffic import label_files
from brise.traffic.label_files import LabelRow, LoadedLabels, load, load_file
from brise.traffic.sql_store import SqlStore
from tests.traffic.records import answer, exchange


@pytest.fixture
def filled(store: SqlStore) -> SqlStore:
    store.add([exchange(id) for id in "abcd"], [answer("s", "a")])
    return store


def scores(store: SqlStore) -> dict[str, float | None]:
    return {label.exchange: label.score for label in store.labels(list("abcd"))}


def table(folder: Path, *lines: str) -> Path:
    path = folder / "labels.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_table_with_everything_that_may_be_wrong(filled: SqlStore, tmp_path: Path) -> None:
    path = table(tmp_path, "\ufeffid,score,extra", "a,1,x", "b,0.5,", "c,true,", "unknown,1,", "a,1,again", "a,0,other",
                 "d,much,", "d,1.5,", "d,nan,", ",1,", "d,,", "d", '"d"x,1,', "a\0b,1,")
    loaded = load_file(filled, path)
    assert scores(filled) == {"a": 1.0, "b": 0.5, "c": 1.0} and loaded.added == 3
    assert loaded.left_out == {
        label_files.UNKNOWN: 2, label_files.SAME: 1, label_files.OTHER: 1, label_files.BAD_SCORE: 3,
        label_files.NO_ID: 1, label_files.NO_SCORE: 1, "it has not the 3 cells of the table's header": 1,
        next(why for why in loaded.left_out if "no record" in why): 1}
    assert (f"{path}:5", label_files.UNKNOWN) in loaded.bad and len(loaded.bad) == 10


def test_a_file_that_is_loaded_twice_adds_nothing(filled: SqlStore, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (
        {"id": "a", "score": 1, "answer": "s", "answer_score": 0, "note": "half \ud83d", "at": "2026-01-01"},
        {"request_id": "b", "outcome": False, "who": "shop"})) + '{"id": "c", "id": "d"}\n[1]\n')
    loaded = load_file(filled, path, who="crm")
    assert loaded.added == 2 and load_file(filled, path, who="crm").left_out[label_files.SAME] == 2
    first, second = sorted(filled.labels(list("abcd")), key=lambda label: label.exchange)
    assert (first.rung, first.who, first.score, first.answer, first.answer_score, first.at_s) == (
        "outcome", "crm", 1.0, "s", 0.0, 1767225600.0)
    assert (second.who, second.score, loaded.left_out.total()) == ("shop", 0.0, 2)


def test_labels_from_python(filled: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_files, "AT_ONCE", 2)
    loaded = load(filled, (LabelRow(id, score=1.0) for id in ("a", "b", "x", "c", "a")), "human", "eva")
    assert (loaded.added, dict(loaded.left_out)) == (3, {label_files.UNKNOWN: 1, label_files.SAME: 1})
    wrong = load(filled, [LabelRow("a", answer="none", answer_score=1.0), LabelRow("a", answer="s"), LabelRow("a"),
                          LabelRow("a", score=2.0)])
    assert dict(wrong.left_out) == dict.fromkeys((label_files.UNKNOWN_ANSWER, label_files.ALONE, label_files.NO_SCORE,
                                                  label_files.BAD_SCORE), 1)
    assert load(filled, [LabelRow("a", score=0.0, who="max")], "human").added == 1  # for another person


@pytest.mark.parametrize(("name", "text", "problem"), [
    ("a.txt", "id,score", "no file of labels"), ("a.csv", "x,score\n", "no column 'id'"),
    ("a.csv", "id,x\n", "no column 'score'"), ("a.csv", "id,score\n", "no row"), ("none.csv", None, "cannot read")])
def test_what_is_no_file_of_labels(store: SqlStore, tmp_path: Path, name: str, text: str | None, problem: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(EvidenceError, match=problem):
        load_file(store, tmp_path / name)


def test_counts_for_machines() -> None:
    loaded = LoadedLabels(2)
    loaded.leave_out("a:1", label_files.UNKNOWN)
    assert loaded.to_json() == {"added": 2, "left_out": [{"rows": 1, "why": label_files.UNKNOWN}],
                                "bad": [{"place": "a:1", "reason": label_files.UNKNOWN}]}
