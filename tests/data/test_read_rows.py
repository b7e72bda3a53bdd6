"""Files and folders of rows: bad rows are kept with their line, and nothing in a folder is passed over unsaid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brise.data.parse_row import RowRules
from brise.data.read_rows import BadRow, BadRowsError, Columns, FileRows, read_rows
from brise.errors import EvidenceError
from tests.data.rows import chat, write

GOOD = json.dumps(chat("hi", "ho")).encode()


def read(*paths: Path, columns: Columns | None = None) -> FileRows:
    return read_rows(paths, RowRules(), columns)


@pytest.mark.parametrize(("line", "reason"), [
    (b"{", "not JSON"), (b'{"messages": "\xff"}', "not UTF-8: byte 14"), (b"[1, 2", "not JSON"),
    (b'{"a": 1, "a": 2}', "given twice"), (b'{"a": NaN}', "NaN"), (b'{"a": "\\ud800"}', "lone surrogate"),
    (b"[" * 100 + b"]" * 100, "nested deeper"), (b"{}", "neither 'messages'")])
def test_a_bad_line_is_kept_with_its_number(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\r\n\n" + line + b"\n" + GOOD)
    rows = read(path)
    assert [example.place for example in rows.examples] == [f"{path}:1", f"{path}:4"]
    assert [bad.place for bad in rows.bad] == [f"{path}:3"] and reason in rows.bad[0].reason
    assert rows.files == {str(path): 3}


def test_a_folder_is_read_in_order_and_the_rest_is_named(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        write(tmp_path / name, [chat("hi", name)])
    (tmp_path / "labels.json").write_text("[]")
    (tmp_path / "c.csv").write_text("prompt,completion\nhi,c\n")
    rows = read(tmp_path)
    assert [example.messages[-1]["content"] for example in rows.examples] == ["a.jsonl", "b.jsonl", "c"]
    assert rows.passed_over == [str(tmp_path / "labels.json")]


def test_a_table_of_something_else_in_a_folder_is_named_and_not_read(tmp_path: Path) -> None:
    answers = tmp_path / "answers.csv"
    answers.write_text("prompt,small,large\nhi,a,b\n")
    with pytest.raises(EvidenceError, match="no column 'completion'; it has 'prompt', 'small', 'large'"):
        read(tmp_path)
    write(tmp_path / "tickets.jsonl", [chat("hi", "ho")])
    rows = read(tmp_path)
    assert (len(rows.examples), rows.passed_over) == (1, [str(answers)])
    with pytest.raises(EvidenceError, match="has no column 'completion'"):
        read(tmp_path / "tickets.jsonl", answers)


@pytest.mark.parametrize(("name", "text", "problem"), [
    ("a.json", "[]", "is no data file"), ("a.jsonl", "\n", "there is no row"), ("none.jsonl", None, "cannot read"),
    ("a.csv", "", "no column 'prompt'"), ("a.csv", "prompt,completion,prompt\n", "two columns")])
def test_what_is_no_data_is_refused(tmp_path: Path, name: str, text: str | None, problem: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(EvidenceError, match=problem):
        read(tmp_path / name)


def test_an_empty_folder_and_a_file_given_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="has no data file"):
        read(tmp_path)
    path = write(tmp_path / "a.jsonl", [chat("hi", "ho")])
    with pytest.raises(EvidenceError, match="given twice"):
        read(path, tmp_path)


def test_a_table_is_read_by_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeffask,say,who,note\n"hi, ""you""",ho,7,x\n"two\nlines",é,,y\n'.encode())
    rows = read(path, columns=Columns("ask", "say", conversation="who"))
    first, second = rows.examples
    assert [message["content"] for message in first.messages] == ['hi, "you"', "ho"]
    assert (first.conversation, first.meta, first.place) == ("7", {"note": "x"}, f"{path}:2")
    assert second.messages[0]["content"] == "two\nlines" and second.place == f"{path}:4"
    assert second.conversation.startswith("opening:")


@pytest.mark.parametrize(("line", "reason"), [
    (b"only one", "1 cells, the table 2 columns"), (b"hi,\xff", "not UTF-8"), (b"hi,", "is empty"),
    (b'"hi"x,ho', "no record of a table")])
def test_a_bad_line_of_a_table_is_kept(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"prompt,completion\nhi,ho\n" + line + b"\n")
    rows = read(path)
    assert len(rows.examples) == 1 and rows.bad[0].place == f"{path}:3" and reason in rows.bad[0].reason


@pytest.mark.parametrize(("row", "reason"), [
    (f'long,{"a" * 200_000}', None), ('a,b,c', "3 cells"), ('"hi"x,ho', "no record"), ('"hi"x,"a\nb"', "no record"),
    ("a,\0", None)])
def test_a_bad_row_of_a_table_costs_no_other_row(tmp_path: Path, row: str, reason: str | None) -> None:
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["prompt,completion", "q1,a1", row, *(f"q{number},a" for number in range(2, 500))]))
    rows = read(path)
    assert len(rows.examples) + len(rows.bad) == 500 and len(rows.bad) == (reason is not None)
    assert reason is None or reason in rows.bad[0].reason


def test_a_quote_that_never_closes_says_which_lines_it_took(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,completion\nq1,a1\nq2,"a2\nq3,a3\n')
    rows = read(path)
    assert len(rows.examples) == 1 and "lines 3 to 4 are not read" in rows.bad[0].reason


@pytest.mark.parametrize("row", [
    {**chat("a", "b"), "finish_reason": "length"}, {**chat("a", "b"), "meta": {"finish_reason": "max_tokens"}},
    {"prompt": "a", "completion": "b", "finish_reason": "content_filter"},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "finish_reason": "length"}]}])
def test_an_answer_that_is_not_whole_is_left_out_and_counted(tmp_path: Path, row: dict[str, object]) -> None:
    whole = {**chat("a", "b"), "finish_reason": "stop"}
    rows = read(write(tmp_path / "a.jsonl", [whole, row]))
    assert len(rows.examples) == 1 and not rows.bad and rows.files == {str(tmp_path / "a.jsonl"): 2}
    assert rows.left_out.to_json() == [{"rows": 1, "why": next(iter(rows.left_out))}]
    assert "finish reason" in next(iter(rows.left_out))


def test_an_answer_that_is_not_learned_may_be_cut(tmp_path: Path) -> None:
    asked, cut = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "finish_reason": "length"}
    row = {"messages": [asked, {**cut, "weight": 0}, asked, {"role": "assistant", "content": "c"}]}
    example, = read(write(tmp_path / "a.jsonl", [row])).examples
    assert "finish_reason" not in example.messages[1]


def test_the_error_lists_twenty_rows_and_counts_the_rest() -> None:
    with pytest.raises(BadRowsError) as caught:
        raise BadRowsError([BadRow(f"a:{number}", "why") for number in range(1, 26)], 100)
    text = str(caught.value)
    assert "25 of 100 rows" in text and "a:20: why" in text and "a:21" not in text and "and 5 more" in text
