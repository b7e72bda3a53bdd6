"""`brise prove` on captured traffic: certificates, the ledger, candidates, and what a replay finds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from brise.cli.main import main
from brise.prove import pairs_store
from brise.traffic.records import NOT_DRAWN, SHED, Label, RecordedAnswer, shadow_skip
from brise.traffic.sql_store import SqlStore
from brise.traffic.stores import open_store
from tests.prove.logs import changed, rows
from tests.report.traffic import TASK, body, fill


@pytest.fixture
def store(home: Path) -> Iterator[SqlStore]:
    """The store of this machine."""
    with closing(open_store(None, home)) as found:
        yield found


def reported(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    status = main(["prove", *map(str, words), "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return status, found


def test_a_promotion_leaves_a_signed_certificate_that_replays(store: SqlStore, home: Path,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    fill(store, rows(1200))
    status, found = reported(capsys, "--task", TASK, "--without", "latency")
    assert status == 0 and found["labels"]["rung"] == "outcome" and found["student"] == "mini"
    path = Path(found["certificate"])
    assert path.parent == home / "gateway" / "certificates" and path.name.startswith("tickets-")
    entries = {entry.kind: entry.body for entry in store.ledger()}
    assert entries["certificate"]["path"] == str(path) and entries["certificate"]["n"] == 1200
    assert entries["proof"]["verdict"] == "promote"
    fill(store, changed(rows(40, seed=2), lambda at, row: {"id": f"n{at}", "conversation": f"n{at}",
                                                           "at": row["at"] + 1e6}))
    status, again = reported(capsys, "--verify", path)
    assert status == 0 and [(check["check"], check["passed"]) for check in again["checks"]] == [
        ("signature", True), ("path", True), ("time", True), ("ledger", True), ("data", True)]


def test_a_replay_says_where_it_parts(store: SqlStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(store, rows(1200))
    path = tmp_path / "certificate.json"
    assert reported(capsys, "--task", TASK, "--certificate", path)[0] == 0
    other = json.loads(path.read_text())
    other["certificate"]["differences"][7] += 1
    changed_path = tmp_path / "changed.json"
    changed_path.write_text(json.dumps(other))
    assert main(["prove", "--verify", str(changed_path)]) == 3
    shown = capsys.readouterr().out
    for text in ("signature: WRONG: the certificate was changed after it was signed", "path: WRONG: K after unit 8 was",
                 "ledger: WRONG: the ledger does not have this certificate", "data: WRONG: unit 8 had D = 1.0"):
        assert text in shown
    store.expire(rows(1200)[400]["at"])
    assert main(["prove", "--verify", str(path)]) == 3
    assert "data: WRONG" in capsys.readouterr().out
    store.expire(2e9)
    assert main(["prove", "--verify", str(path)]) == 0
    assert "data: not looked at: the pairs cannot be read any more" in capsys.readouterr().out


def test_every_other_candidate_costs_alpha(store: SqlStore, capsys: pytest.CaptureFixture[str]) -> None:
    fill(store, rows(60))
    assert [reported(capsys, "--task", TASK)[1]["terms"]["candidate"] for _ in range(2)] == [1, 1]
    later = changed(rows(60), lambda at, row: {"id": f"b{at}", "conversation": f"b{at}", "at": row["at"] + 7200,
                                               "small": row["small"] | {"model": "other"}})
    fill(store, later)
    assert main(["prove", "--task", TASK]) == 1
    assert "2 candidates answered 'tickets' in this time: mini, other" in capsys.readouterr().err
    # Of the first one's data the newest is of the 60th minute, the second one's begin at the 120th.
    assert reported(capsys, "--task", TASK, "--student", "other")[1]["terms"]["candidate"] == 1
    store.append("proof", {"task": TASK, "student": "third", "candidate": 2, "until_s": later[-1]["at"]})
    fill(store, changed(later, lambda at, row: {"id": f"c{at}", "small": row["small"] | {"model": "fourth"}}))
    assert reported(capsys, "--task", TASK, "--student", "fourth")[1]["terms"]["candidate"] == 3


def test_another_beginning_costs_alpha_and_fresh_data_do_not(store: SqlStore,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    def candidate(*words: object) -> object:
        return reported(capsys, "--task", TASK, *words)[1]["terms"]["candidate"]

    fill(store, rows(120))
    begins = ("--since", "2023-11-14T22:43:20")  # the 30th minute
    assert [candidate(), candidate(*begins), candidate(*begins), candidate()] == [1, 2, 2, 1]
    fill(store, changed(rows(60), lambda at, row: {"id": f"b{at}", "conversation": f"b{at}", "at": row["at"] + 1e6}))
    assert [candidate("--since", "2023-11-20"), candidate()] == [1, 3], "it grew into data that had begun anew"
    assert [candidate(), candidate("--since", "2023-11-20")] == [3, 1]


def test_another_definition_costs_alpha_and_more_data_do_not(store: SqlStore,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    def candidate(*words: object) -> object:
        return reported(capsys, "--task", TASK, *words)[1]["terms"]["candidate"]

    fill(store, rows(60))
    tried = (), ("--rung", "fidelity"), ("--delta", 3), ("--without", "length"), ("--slice", "route"), ("--settle", 60)
    assert [candidate(*words) for words in tried] == [1, 2, 3, 4, 5, 6]
    assert candidate("--alpha", 0.1, "--power", 0.8, "--rung", "outcome") == 1, "the same claim, read otherwise"
    fill(store, changed(rows(90), lambda at, row: {"id": f"b{at}", "conversation": f"b{at}", "at": row["at"] + 7200}))
    assert [candidate(*words) for words in tried] == [1, 2, 3, 4, 5, 6]


def test_a_comparison_with_another_candidate_says_nothing_of_this_one(store: SqlStore) -> None:
    found = rows(1, better=1.0)
    fill(store, found, labelled=False)
    at = found[0]["at"]
    store.add(answers=[RecordedAnswer("o-r0", "r0", at, "shadow", "other", response=body("both?", "other"))],
              labels=[Label("1", "r0", at + 1, "human", "ann", 0.0, "s-r0", 1.0),
                      Label("2", "r0", at + 2, "human", "ann", 1.0, "o-r0", 1.0)])
    judged = pairs_store.read(store, TASK, small_model="mini").pairs[0].judgements
    assert [(one.small, one.large) for one in judged] == [(1.0, 0.0)]


def test_only_conversations_that_are_over_count(store: SqlStore, capsys: pytest.CaptureFixture[str]) -> None:
    talks = changed(rows(80), lambda at, row: {"conversation": f"c{at // 2}", "at": row["at"] + (at % 2) * 5000})
    fill(store, talks)
    _, found = reported(capsys, "--task", TASK)
    assert found["gate"]["units"] == 40 and found["gate"]["rows"] == 40
    assert found["left_out"] == [{"pairs": 40, "why": "of conversations under 3600 s old, or asked later in one than "
                                                      "that"}]
    assert reported(capsys, "--task", TASK, "--settle", 9000)[1]["gate"]["rows"] == 80
    assert reported(capsys, "--task", TASK, "--unit", "route", "--plan-only")[1]["plan"]["have_units"] == 2


def test_without_labels_it_is_fidelity_and_says_so(store: SqlStore, capsys: pytest.CaptureFixture[str]) -> None:
    fill(store, rows(200), labelled=False)
    _, found = reported(capsys, "--task", TASK)
    assert found["labels"]["rung"] == "fidelity" and "no correctness" in found["labels"]["source"]
    assert found["scores"]["difference"]["estimate"] < 0
    assert main(["prove", "--task", TASK, "--rung", "human"]) == 1
    assert "pairs differ and nobody has said which answer is good" in capsys.readouterr().err


def test_what_is_not_there_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prove", "--task", TASK]) == 1
    assert "there is no store at" in capsys.readouterr().err
    with closing(open_store(None, home)):
        assert main(["prove", "--task", TASK]) == 1
    assert "no request of the task 'tickets' was answered by both models" in capsys.readouterr().err


def test_a_second_shadow_counts_not_and_a_cascades_data_are_noted(store: SqlStore,
                                                                  capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(60)
    fill(store, found, labelled=False)
    store.add(answers=[RecordedAnswer("z-again", found[0]["id"], found[0]["at"] + 9, "shadow", "mini",
                                      response=body("other", "mini"))])
    store.append("cascade", {"task": TASK, "candidate": "mini", "until_s": found[30]["at"]})
    _, report = reported(capsys, "--task", TASK)
    assert report["gate"]["rows"] == 60
    assert any("brise cascade set its threshold on data up to 2023-11-14 22:43 UTC" in note
               for note in report["notes"])


def test_other_weights_under_the_same_name_are_another_candidate(store: SqlStore,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    def answered(fingerprint: str, number: int, after_s: float, seed: int) -> None:
        fill(store, changed(rows(number, seed=seed), lambda at, row: {
            "id": f"{fingerprint}{at}", "conversation": f"{fingerprint}{at}", "at": row["at"] + after_s}),
            fingerprint=fingerprint)

    answered("v1", 1200, 0.0, 0)
    status, found = reported(capsys, "--task", TASK, "--without", "latency")
    assert status == 0
    path = Path(found["certificate"])
    assert json.loads(path.read_text())["certificate"]["student"]["fingerprint"] == "v1"
    answered("v2", 60, 1e6, 1)
    status, found = reported(capsys, "--task", TASK, "--without", "latency")
    assert status == 4 and found["gate"]["units"] == 60
    assert found["left_out"] == [{"pairs": 1200, "why": "answered by another version of the candidate, with other "
                                                        "weights or another adapter"}]
    assert main(["prove", "--verify", str(path)]) == 0
    assert "data: ok" in capsys.readouterr().out


def test_what_the_shadow_left_unanswered_stands_beside_what_was_left_out(
        store: SqlStore, capsys: pytest.CaptureFixture[str]) -> None:
    fill(store, rows(60))
    store.skip([(0.0, shadow_skip(SHED, TASK), 9), (0.0, shadow_skip(NOT_DRAWN, TASK), 240),
                (0.0, shadow_skip(SHED, "other"), 5)])
    found = reported(capsys, "--task", TASK)[1]
    assert {item["why"].partition(" (")[0]: item["pairs"] for item in found["left_out"]} == {SHED: 9, NOT_DRAWN: 240}
    assert main(["prove", "--task", TASK]) == 4
    shown = next(line for line in capsys.readouterr().out.splitlines() if "drawn for the shadow and shed" in line)
    assert shown.split()[-2] == "9"


def test_a_plan_costs_nothing_and_an_analysis_says_what_it_takes(store: SqlStore,
                                                                capsys: pytest.CaptureFixture[str]) -> None:
    fill(store, rows(60))
    for words in (["--plan"], ["--plan-only", "--margin", "5"]):
        status, found = reported(capsys, "--task", TASK, *words)
        assert status == 0 and found["analysis"]["number"] == 1 and not found["analysis"]["is_again"]
    assert main(["prove", "--task", TASK, "--plan"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "as candidate 1 of these data takes 3 % of an alpha of 5 %, and leaves 2 % to all others" in shown
    assert not list(store.ledger())
    assert main(["prove", "--task", TASK]) == 4
    assert "takes 3 % of an alpha of 5 %" in capsys.readouterr().err
    found = reported(capsys, "--task", TASK, "--plan")[1]
    assert found["analysis"]["is_again"] and found["analysis"]["number"] == 1
    assert reported(capsys, "--task", TASK, "--plan", "--margin", "5")[1]["analysis"]["number"] == 2
    assert [line.kind for line in store.ledger()] == ["proof"]
