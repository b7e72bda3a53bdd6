"""`brise log` as a user types it."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from brise.cli.main import main
from brise.traffic.records import NOT_DRAWN, SHED, shadow_skip
from brise.traffic.sql_store import SqlStore
from brise.traffic.stores import open_store
from tests.traffic.records import FULL, answer, exchange, label

FIRST, SECOND = "0" * 31 + "1", "0" * 31 + "2"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened(home: Path) -> closing[SqlStore]:
    return closing(open_store(None, home))


@pytest.fixture
def filled(home: Path) -> Path:
    with opened(home) as store:
        store.add([exchange(FIRST, 1.0, task="triage", subject="anna", labels={"team": "a"}),
                   exchange(SECOND, 2.0, mode="degraded", served_by="mine"), FULL],
                  [answer("shadow1", FIRST)], [label("l", FULL.id)])
        store.skip([(1.0, "off", 3)])
    return home


def output(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main(["log", *words]) == status
    found = capsys.readouterr()
    return found.out, found.err


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def test_without_a_store_it_says_where_one_would_be(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = output(capsys, status=1)
    assert "there is no store at" in err and "traffic.sqlite" in err and "hint: brise serve --upstream" in err
    assert not (home / "gateway").exists()


def test_the_newest_come_first(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = output(capsys)
    assert [line.split()[0] for line in out.splitlines()] == ["id", FULL.id, SECOND, FIRST]
    assert "question" in out and not err
    out, err = output(capsys, "list", "--limit", "1", "--json")
    assert [row["id"] for row in lines(out)] == [FULL.id]


@pytest.mark.parametrize(("words", "expected"), [
    (["--task", "triage", "--subject", "anna"], [FULL.id, FIRST]), (["--mode", "degraded"], [SECOND]),
    (["--label", "team=a"], [FIRST]), (["--with", "shadow"], [FIRST]), (["--since", "2h"], []),
    (["--until", "1970-01-02"], [FULL.id, SECOND, FIRST])])
def test_filters(filled: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: list[str]) -> None:
    assert [row["id"] for row in lines(output(capsys, "list", "--json", *words)[0])] == expected


@pytest.mark.parametrize("words", [["--since", "noon"], ["--label", "x"], ["--mode", "none"], ["--limit", "0"],
                                   ["--until", "30y"]])
def test_a_filter_that_means_nothing_is_refused(filled: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["log", "list", *words])


def test_search_opens_the_bodies(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [row["id"] for row in lines(output(capsys, "search", f"QUESTION {SECOND}", "--json")[0])] == [SECOND]
    assert output(capsys, "search", "nobody said it")[1] == "nothing was found\n"


def test_show_has_everything(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = output(capsys, "show", FIRST)
    assert "anna" in out and f"question {FIRST}" in out and "shadow shadow1 by ?" in out
    shown = json.loads(output(capsys, "show", FULL.id, "--json")[0])
    assert shown["usage"] == {"prompt_tokens": 12, "completion_tokens": 3, "cached_tokens": 4}
    assert shown["labels"][0]["note"] == "well said" and "no exchange 'x'" in output(capsys, "show", "x", status=1)[1]


def test_what_a_model_wrote_cannot_command_the_terminal(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(home) as store:
        store.add([exchange("a", model="m\x1b[2J", task="t\x1b[31m", error="e\x1b]0;x\x07", request={
            "messages": [{"role": "user", "content": "\x1b[2Jhi"}]}, status=500)])
    for words in (["list"], ["show", "a"], ["stats"]):
        assert "\x1b" not in output(capsys, *words)[0]


def test_stats_count_each_task(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(output(capsys, "stats", "--json")[0])
    triage = next(task for task in shown["tasks"] if task["task"] == "triage")
    assert shown["exchanges"] == 3 and shown["skipped"] == {"off": 3} and triage["exchanges"] == 2
    assert triage["prompt_tokens"] == 12 and triage["cost_usd"] == pytest.approx(0.00125)
    assert "3 requests were not written: off" in output(capsys, "stats")[0]


def test_stats_say_what_the_shadow_left_unanswered(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(filled) as store:
        store.skip([(0.0, shadow_skip(SHED, "triage"), 3), (7200.0, shadow_skip(SHED, "triage"), 4),
                    (0.0, shadow_skip(NOT_DRAWN, "my: task"), 40)])
    text, shown = output(capsys, "stats")[0], json.loads(output(capsys, "stats", "--json")[0])
    assert "7 answered requests of 'triage' have no shadow answer: drawn for the shadow and shed: its queue" in text
    assert "40 answered requests of 'my: task' have no shadow answer: not drawn for the shadow" in text
    assert shown["shadow"] == {"triage": {SHED: 7}, "my: task": {NOT_DRAWN: 40}} and shown["skipped"] == {"off": 3}


def test_stats_say_of_how_many_requests_the_cost_is_known(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown, text = json.loads(output(capsys, "stats", "--json")[0]), output(capsys, "stats")[0]
    assert shown["cost"] == {"usd": pytest.approx(0.00125), "known": 1, "number": 3}
    assert "cost is known for 33 % of the answered requests (1 of 3): a sum over them is a lower bound" in text
    assert "tokens are known for 33 % of the answered requests (1 of 3)" in text
    assert "at least 0.0013" in text and "unknown" in text and "?" not in text
    assert "cost           unknown" in output(capsys, "show", FIRST)[0]


def test_stats_name_what_was_asked_besides(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(filled) as store:
        store.add([], [answer("audit1", FIRST, role="audit", cost_usd=0.5), answer("audit2", FIRST, role="audit")])
    assert "triage: audit answers cost at least 0.5000 USD besides (1 of 2 known)" in output(capsys, "stats")[0]
    task = next(each for each in json.loads(output(capsys, "stats", "--json")[0])["tasks"] if each["task"] == "triage")
    assert task["other"]["audit"] == {"usd": 0.5, "known": 1, "number": 2}


def test_labels(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output(capsys, "label", FIRST, "--score", "0.5", "--answer", "shadow1", "--answer-score", "1", "--note", "why")
    with opened(filled) as store:
        found, = store.labels([FIRST])
    assert (found.score, found.answer, found.answer_score, found.rung, found.who, found.note) == (
        0.5, "shadow1", 1.0, "human", "me", "why")
    for words, reason in ((["x", "--score", "1"], "no exchange"), ([FIRST], "nothing to write down"),
                          ([FIRST, "--answer", "shadow1"], "nothing to write"), (
                              [FIRST, "--answer", "x", "--answer-score", "1"], "it has: shadow1"),
                          ([FIRST, "--score", "1", "--answer", "shadow1"], "belong together")):
        assert reason in output(capsys, "label", *words, status=1)[1]


def test_what_is_exported_is_scrubbed_and_can_come_back(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(filled) as store:
        store.add([exchange("mail", 3.0, task="mail", request={
            "messages": [{"role": "user", "content": "I am a@b.io"}]})])
    _, err = output(capsys, "export", "--task", "mail", "--out", "out.jsonl")
    row, = lines((filled / "out.jsonl").read_text())
    assert row["messages"][0]["content"] == "I am [EMAIL_1]" and "exported 1 rows" in err and "replaced 1 EMAIL" in err
    assert "a@b.io" in output(capsys, "export", "--task", "mail", "--no-scrub")[0]
    assert "is there already" in output(capsys, "export", "--out", "out.jsonl", status=1)[1]
    assert "imported 1 exchanges" in output(capsys, "import", "out.jsonl")[1]
    assert "were there already" in output(capsys, "import", "out.jsonl")[1]


def test_an_export_of_nothing_is_an_error_and_leaves_no_file(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = output(capsys, "export", "--mode", "degraded", "--out", "out.jsonl", status=1)
    assert "no row to export" in err and "left out 1: the large model did not answer it" in err
    assert not (filled / "out.jsonl").exists()


def test_nothing_of_a_file_with_a_bad_row_is_imported(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "A"}]})
    (home / "rows.jsonl").write_text(f"{row}\nbroken\n")
    _, err = output(capsys, "import", "rows.jsonl", status=1)
    assert "1 of 2 rows cannot be imported, and nothing was" in err and "rows.jsonl:2: the row is not JSON" in err
    with opened(home) as store:
        assert store.count() == 0
    _, err = output(capsys, "import", "rows.jsonl", "--skip-bad", "--task", "mine")
    assert "imported 1 exchanges" in err and "left out rows.jsonl:2" in err
    with opened(home) as store:
        assert [found.task for found in store.exchanges()] == ["mine"]


def test_imported_turns_of_one_conversation_are_threaded(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "A"}]
    (home / "rows.jsonl").write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in (
        first, [*first, {"role": "user", "content": "b"}, {"role": "assistant", "content": "B"}])))
    output(capsys, "import", "rows.jsonl")
    with opened(home) as store:
        one, two = store.exchanges()
    assert two.parent == one.id and two.conversation == one.conversation


def test_forgetting_and_expiring(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "2 exchanges have no content" in output(capsys, "forget", "anna")[1]
    with opened(filled) as store:
        assert [found.request is None for found in store.exchanges()] == [True, False, True]
    assert "deleted 3 exchanges" in output(capsys, "expire", "--older-than", "30d")[1]
    with opened(filled) as store:
        assert store.count() == 0


def test_forgetting_in_one_store_leaves_the_other(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(open_store(None, home)) as main_store, closing(open_store("sample.sqlite", home)) as sample:
        for store in (main_store, sample):
            store.add([exchange(FIRST, subject="user 17")])
    _, err = output(capsys, "forget", "user 17", "--store", "sample.sqlite")
    assert "1 exchange has no content" in err
    assert f"brise log forget 'user 17' --store {home / 'gateway' / 'traffic.sqlite'}" in err
    assert len(output(capsys, "export", "--subject", "user 17", "--provider", "none")[0].splitlines()) == 1


def test_an_export_is_for_its_owner_only(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = os.umask(0)
    try:
        output(capsys, "export", "--out", "rows.jsonl")
    finally:
        os.umask(before)
    assert (filled / "rows.jsonl").stat().st_mode & 0o777 == 0o600


def test_half_characters_are_shown_and_exported(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = exchange(FIRST, request={"messages": [{"role": "user", "content": "half \ud83d"}]}, subject="a\ud83d",
                    conversation="c\ud83d", labels={"x": "\udfff"})
    with closing(open_store(None, home)) as store:
        store.add([half])
    for words in (["show", FIRST], ["list"], ["export"], ["export", "--out", "x.jsonl"], ["stats"],
                  ["show", FIRST, "--json"]):
        out, err = output(capsys, *words)
        (out + err).encode()
    assert "half \ufffd" in (home / "x.jsonl").read_text(encoding="utf-8")


def test_labels_of_a_file(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (filled / "labels.csv").write_text(f"id,score\n{FIRST},1\n{SECOND},0\nnobody,1\n")
    _, err = output(capsys, "label", "--file", "labels.csv")
    assert "added 2 labels" in err and "left out labels.csv:4: the store has no request of this id" in err
    out, _ = output(capsys, "label", "--file", "labels.csv", "--json")
    assert {row["why"]: row["rows"] for row in json.loads(out)["left_out"]} == {
        "the same label is there already": 2, "the store has no request of this id": 1}
    (filled / "labels.csv").write_text("id,score\nnobody,1\n")
    output(capsys, "label", "--file", "labels.csv", status=1)
    output(capsys, "label", FIRST, "--file", "labels.csv", status=1)
    assert "no exchange is named" in output(capsys, "label", status=1)[1]


def test_counts_of_an_export_and_an_import_for_machines(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(output(capsys, "export", "--out", "x.jsonl", "--json")[0])
    assert found["rows"] == 2 and found["left_out"] == [{"rows": 1, "why": "the large model did not answer it"}]
    assert "--json needs --out" in output(capsys, "export", "--json", status=1)[1]
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (filled / "rows.jsonl").write_text(f"{json.dumps(row)}\n[1]\n[2]\n")
    found = json.loads(output(capsys, "import", "rows.jsonl", "--skip-bad", "--json")[0])
    assert (found["added"], found["known"], found["left_out"]) == (1, 0, [{"rows": 2, "why": "it is no JSON object"}])
