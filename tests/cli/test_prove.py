"""`brise prove` from end to end on logs whose truth was planted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from brise.cli.main import main, parse
from brise.cli.prove import options_of
from brise.prove.options import ProveOptions
from tests.prove.logs import changed, rows, write


def reported(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    status = main(["prove", *map(str, words), "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return status, found


def test_an_equal_model_is_promoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path / "log.jsonl", rows(2500))
    status, found = reported(capsys, "--pairs", log)
    assert status == 0 and found["verdict"] == "promote" and found["task"] == "log"
    assert found["gate"]["decided_at"] <= 2500 and found["gate"]["most"] >= found["gate"]["level"]
    assert found["labels"]["rung"] == "outcome" and found["scores"]["difference"]["interval"] == "Tango, paired"
    assert {guard["name"]: guard["verdict"] for guard in found["guards"]} == {
        "p95 latency": "promote", "valid answers": "promote", "refusals": "promote", "length": "promote"}
    assert not any("not looked at" in note for note in found["notes"])
    assert {one["name"] for one in found["slices"] if one["is_proven"]} >= {"route=a", "route=b", "writing=Latin"}


def test_a_log_leaves_a_certificate_and_a_page_where_they_are_wanted(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, certificate, html = write(tmp_path / "log.jsonl", rows(1200)), tmp_path / "c.json", tmp_path / "p.html"
    words = ["prove", "--pairs", str(log), "--certificate", str(certificate), "--html", str(html)]
    assert main(words) == 0
    text = html.read_text()
    for part in ("Promote: the small model may take over", "promote at 32.9", "against: end at 20", "Tango, paired",
                 "<svg", "prefers-color-scheme: dark", "width=device-width"):
        assert part in text
    assert "src=" not in text and "href=" not in text and "<script" not in text
    assert main(["prove", "--verify", str(certificate), "--pairs", str(log)]) == 0
    assert "data: ok: the same 1,200 units give the same differences" in capsys.readouterr().out
    write(log, rows(1200, seed=2))
    assert main(["prove", "--verify", str(certificate), "--pairs", str(log)]) == 3
    assert main(words) == 1 and "is there already" in capsys.readouterr().err


def test_a_judge_that_loves_the_small_model_is_corrected_by_people(tmp_path: Path,
                                                                   capsys: pytest.CaptureFixture[str]) -> None:
    told = rows(600, better=0.05, worse=0.35)
    log = write(tmp_path / "log.jsonl", changed(told, lambda at, row: {
        "reference": None, "small_score": 1, "large_score": 0.5, "rung": "judge"}))
    verdicts = [{"id": row["id"], "rung": "human", "small_score": row["small"]["content"] == row["reference"],
                 "large_score": row["large"]["content"] == row["reference"]} for row in told]
    book = write(tmp_path / "book.jsonl", [
        {**line, "small_score": float(line["small_score"]), "large_score": float(line["large_score"])}
        for line, row in zip(verdicts, told, strict=True) if row["small"]["content"] != row["large"]["content"]])
    status, found = reported(capsys, "--pairs", log, "--judgements", book, "--rung", "judge", "--draw", 0.5)
    assert status == 3 and found["gate"]["units"] == 600 and found["labels"]["rung"] == "judge"
    difference = found["scores"]["difference"]
    assert difference["low"] < -0.3 < difference["high"] < 0, "the truth, not the judge's +0.2"
    assert "corrected" in difference["interval"]


def test_a_worse_model_is_not_good_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path / "log.jsonl", rows(1500, better=0.02, worse=0.12))
    status, found = reported(capsys, "--pairs", log)
    assert status == 3 and found["verdict"] == "not good enough" and found["reason"] == "quality: refuted"
    assert not any(one["is_proven"] for one in found["slices"])


def test_too_few_units_leave_it_undecided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path / "log.jsonl", rows(60))
    assert main(["prove", "--pairs", str(log)]) == 4
    shown = capsys.readouterr().out
    for text in ("Undecided: not enough evidence yet", "Plan: for 90 % power at a margin of 2 points",
                 "mini for big fp1", "Tango, paired", "Labels: outcomes", "candidate 1"):
        assert text in shown


def test_a_slow_model_is_not_promoted_however_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = changed(rows(2500), lambda at, row: {"small": row["small"] | {"seconds": 4.0}})
    status, found = reported(capsys, "--pairs", write(tmp_path / "log.jsonl", slow))
    assert status == 4 and found["gate"]["verdict"] == "promote" and found["reason"] == "p95 latency: not shown yet"
    assert reported(capsys, "--pairs", tmp_path / "log.jsonl", "--without", "latency")[0] == 0


def test_the_plan_looks_at_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path / "log.jsonl", rows(100))
    status, found = reported(capsys, "--pairs", log, "--plan-only", "--psi", "0.1")
    assert status == 0 and found["verdict"] is None and "gate" not in found
    assert found["plan"]["have_units"] == 100 and found["plan"]["is_stated"]
    assert 2141 < found["plan"]["units"] < 3000, "this candidate has 0.03 of the shared 0.05"


def test_the_third_candidate_needs_more_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path / "log.jsonl", rows(60))
    first = reported(capsys, "--pairs", log)[1]["gate"]["level"]
    third = reported(capsys, "--pairs", log, "--candidate", 3)[1]["gate"]["level"]
    assert third == pytest.approx(9 * first)


def test_only_what_came_after_a_change_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path / "log.jsonl", changed(
        rows(200), lambda at, row: {"large": row["large"] | {"fingerprint": "fp1" if at < 80 else "fp2"}}))
    _, found = reported(capsys, "--pairs", log)
    assert found["gate"]["units"] == 120 and found["changes"][0]["what"] == "the large model"
    assert found["left_out"][0]["pairs"] == 80 and found["teachers"] == ["big fp2"]


def test_what_was_trained_on_proves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path / "log.jsonl", changed(rows(60), lambda at, row: {"at": None}))
    train = write(tmp_path / "train.jsonl", [{"prompt": "ticket 7", "completion": "yes"}])
    words = ["prove", "--pairs", str(log), "--train", str(train)]
    assert main(words) == 1
    assert "1 of 60 pairs are of what the small model was trained on" in capsys.readouterr().err
    write(log, rows(60))  # asked at known times, after the training: users do ask the same again
    assert main(words) == 4 and "1 of 60 pairs ask, word for word, what the" in capsys.readouterr().out
    write(train, [{"prompt": "something else", "completion": "yes", "conversation": "c9"}])
    assert main(words) == 1 and "1 of 60 pairs are of what" in capsys.readouterr().err


def test_a_classifier_that_costs_nothing_stands_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path / "log.jsonl", changed(rows(200), lambda at, row: {"prompt": f"say {row['reference']} {at}"}))
    train = write(tmp_path / "train.jsonl", [{"prompt": f"say {word} please {at}", "completion": word}
                                            for at in range(5) for word in ("yes", "no", "maybe")])
    _, found = reported(capsys, "--pairs", log, "--train", train)
    assert found["baselines"][0]["name"] == "TF-IDF + linear" and found["baselines"][0]["estimate"] == 1


def test_the_large_model_against_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path / "log.jsonl", changed(
        rows(100), lambda at, row: {"reference": None, "again": "other" if at % 4 == 0 else row["large"]["content"]}))
    _, found = reported(capsys, "--pairs", log)
    assert found["labels"]["rung"] == "fidelity" and "asked again in 100" in found["labels"]["definition"]
    assert found["baselines"][0]["estimate"] == 0.75 and found["scores"]["difference"]["estimate"] > 0.1


@pytest.mark.parametrize(("words", "message"), [
    ("", "nothing says where the answers are"), ("--pairs no.jsonl", "cannot read 'no.jsonl'"),
    ("--pairs log.jsonl --score exact --scorer a.py:f", "one is allowed"),
    ("--pairs log.jsonl --since 2030-01-01", "none of 40 pairs was asked between"),
    ("--pairs log.jsonl --unit user", "there is no label 'user'"),
    ("--pairs log.jsonl --figure macro_f1", "no share of each answer by itself"),
    ("--pairs log.jsonl --figure f2", "no figure 'f2', it has accuracy"),
    ("--pairs few.jsonl", "20 independent clusters, at least 30"),
    ("--pairs twice.jsonl", "have an id that another one has")])
def test_what_cannot_be_is_said(words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("log.jsonl"), rows(40))
    write(Path("few.jsonl"), rows(20))
    write(Path("twice.jsonl"), rows(20) + rows(20))
    assert main(["prove", *words.split()]) == 1
    assert message in capsys.readouterr().err


def test_a_pattern_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prove", "--pairs", "log.jsonl", "--refusal", "("])
    assert "'(': no regular expression" in capsys.readouterr().err


def test_the_defaults_of_the_options_are_those_of_the_command_line() -> None:
    assert options_of(parse(["prove"])) == ProveOptions()


def test_old_names_of_options_mean_the_same_as_the_better_ones() -> None:
    old = "--unit u --rung human --delta 3 --slice-delta 4 --psi 0.2 --student s --teacher http://a/v1 " \
          "--teacher-name t --teacher-key-env K"
    new = "--cluster u --label-source human --margin 3 --slice-margin 4 --discordance 0.2 --small-model s " \
          "--large-endpoint http://a/v1 --large-name t --large-key-env K"
    assert options_of(parse(["prove", *old.split()])) == options_of(parse(["prove", *new.split()]))
