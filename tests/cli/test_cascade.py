"""`brise cascade` and `brise audit` from end to end, over a store."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brise.cli.main import main
from brise.traffic.sql_store import SqlStore
from brise.traffic.stores import default_place, open_store
from tests.switch.ledger_lines import audit, switched
from tests.switch.shadow_rows import judged, put, shadowed


@pytest.fixture
def store(home: Path) -> Iterator[SqlStore]:
    opened = open_store(None, home)
    yield opened
    opened.close()


def document(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> dict[str, Any]:
    assert main([*words, "--json"]) == status
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_threshold_is_certified_and_the_switch_uses_it(store: SqlStore, capsys: pytest.CaptureFixture[str]) -> None:
    put(store, shadowed(900))
    assert main(["cascade", "calls"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("the floor") < shown.index("certified:") and "fidelity, not correctness" in shown
    assert main(["switch", "calls", "--candidate", "small", "--force", "--reason", "a trial"]) == 0
    assert "kept are answers with a confidence of" in capsys.readouterr().err
    lines = list(store.ledger())
    assert [line.kind for line in lines] == ["certification", "cascade", "switch"]
    assert lines[0].body["rule"] == lines[2].body["rule"] == lines[1].body["digest"]
    assert lines[2].body["tolerance"] >= 0.05


def test_an_impossible_promise_is_an_answer(store: SqlStore, capsys: pytest.CaptureFixture[str]) -> None:
    put(store, shadowed(300, error=0.4, knows=False))
    assert main(["cascade", "calls", "--risk", "1"]) == 3
    assert "this guarantee is impossible on your data" in capsys.readouterr().out
    found = document(capsys, "cascade", "calls", "--risk", "1", status=3)
    assert found["rule"] is None and found["why_not"] and found["feasibility"]["floor"] > 0.3
    assert [(line.kind, line.body["result"]) for line in store.ledger()] == [("certification", "impossible")] * 2


def test_every_other_look_at_the_same_data_has_less_of_delta(store: SqlStore,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    def number(*words: str) -> int:
        assert main(["cascade", "calls", *words, "--json"]) in (0, 3)
        return int(json.loads(capsys.readouterr().out)["look"]["number"])

    put(store, shadowed(900))
    assert [number(), number("--risk", "4"), number("--risk", "1"), number(), number("--score", "exact")] == [
        1, 2, 3, 1, 4]
    lines = [line.body for line in store.ledger() if line.kind == "certification"]
    assert lines[1]["delta"] == pytest.approx(0.05 * 6 / (2 * math.pi) ** 2) and lines[1]["delta_of_all"] == 0.05
    assert main(["cascade", "calls", "--until", "1970-01-01T00:20"]) == 1, "20 conversations are too few"
    assert number("--since", "1970-01-01T01:00") == 5, "a refusal costs nothing, another beginning does"
    assert main(["cascade", "calls", "--risk", "4"]) == 3, "what may fail with 5 % is not shown with 0.76 %"
    assert "interim analysis 2 of these data: it may fail with 0.76 %, all analyses of them together with 5 %" in (
        capsys.readouterr().out)
    later = shadowed(1900)
    put(store, tuple(part[900:] for part in later))  # type: ignore[arg-type]
    assert [number("--since", "1970-01-01T02:46:40"), number()] == [1, 7]


def test_a_plan_costs_nothing_and_says_what_an_analysis_will(store: SqlStore,
                                                            capsys: pytest.CaptureFixture[str]) -> None:
    put(store, shadowed(900))
    planned = document(capsys, "cascade", "calls", "--plan")
    assert planned["is_plan"] and planned["rule"] is None and planned["look"]["number"] == 1
    assert main(["cascade", "calls", "--risk", "6", "--plan"]) == 0
    shown = capsys.readouterr()
    assert "interim analysis 1 of these data takes 3 % of a delta of 5 %, and leaves 2 % to all others" in shown.out
    assert "this plan costs nothing" in shown.out and "certified:" not in shown.out and not list(store.ledger())
    command = shown.err.partition("next: brise ")[2]
    assert command.strip() == "cascade calls --risk 6 --delta 5"
    assert main(command.split()) == 0
    assert "takes 3 % of a delta of 5 %" in capsys.readouterr().err, "it is said before the analysis, too"
    assert document(capsys, "cascade", "calls", "--plan")["look"] == {
        "number": 2, "delta": pytest.approx(0.05 * 6 / (2 * math.pi) ** 2)}
    assert main(["cascade", "calls", "--risk", "6", "--plan"]) == 0
    assert "analysed before: interim analysis 1, again, costs nothing" in capsys.readouterr().out
    assert [line.kind for line in store.ledger()] == ["certification", "cascade"]


def test_a_plan_says_what_is_impossible_beforehand(store: SqlStore, capsys: pytest.CaptureFixture[str]) -> None:
    put(store, shadowed(300, error=0.4, knows=False))
    found = document(capsys, "cascade", "calls", "--risk", "1", "--plan-only")
    assert found["why_not"] and found["feasibility"]["floor"] > 0.3 and not list(store.ledger())
    assert main(["cascade", "calls", "--risk", "1", "--plan", "--until", "1970-01-01T00:20"]) == 1
    assert not list(store.ledger()), "a plan that is refused leaves no line either"


def test_a_dry_run_writes_a_look_and_no_rule(store: SqlStore, capsys: pytest.CaptureFixture[str]) -> None:
    put(store, shadowed(900))
    assert document(capsys, "cascade", "calls", "--dry-run")["rule"]["kept"] > 0.5
    assert [line.kind for line in store.ledger()] == ["certification"]


def test_conversations_with_several_requests_are_certified_by_conversation(
        store: SqlStore, capsys: pytest.CaptureFixture[str]) -> None:
    put(store, shadowed(400, error=0.03, turns=3))
    rule = document(capsys, "cascade", "calls")["rule"]
    assert rule["method"].endswith("sums over conversations of up to 4 answers")
    rule = document(capsys, "cascade", "calls", "--per", "conversation")["rule"]
    assert rule["method"].endswith("means of clusters") and rule["units"] == 3 * rule["clusters"]


def test_errors_name_what_is_missing(store: SqlStore, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cascade", "calls"]) == 1
    assert "brise serve MODEL --upstream URL --shadow" in capsys.readouterr().err
    put(store, shadowed(50))
    assert main(["cascade", "calls"]) == 1
    assert "50 independent conversations" in capsys.readouterr().err
    assert [line.body["result"] for line in store.ledger()] == ["refused"]
    assert main(["cascade", "calls", "--store", str(home / "elsewhere.sqlite")]) == 1
    assert "there is no store" in capsys.readouterr().err


def write_history(store: SqlStore) -> None:
    store.append("switch", switched(share=0.5))
    for at in range(40):
        store.append("audit", audit(-1.0 if at % 10 == 0 else 0.0, probability=0.5 if at % 2 else 0.1))
    store.append("back", {"task": "calls", "by": "user", "user": "tester", "reason": "enough"})


def test_an_audit_shows_quality_evidence_and_what_happened(store: SqlStore, capsys: pytest.CaptureFixture[str]) -> None:
    write_history(store)
    assert main(["audit"]) == 0
    shown = capsys.readouterr().out
    assert "42 lines, whole" in shown and "enough" in shown and "tester" in shown
    found = document(capsys, "audit", "calls")
    switch = found["tasks"][0]["switches"][0]
    assert switch["audits"] == 40 and switch["audited_mean"]["estimate"] == pytest.approx(-40 / 240)
    assert switch["audited_mean"]["low"] < switch["audited_mean"]["estimate"] < switch["audited_mean"]["high"]
    assert [event["kind"] for event in found["events"]] == ["switch", "back"]
    assert not found["tasks"][0]["is_on"] and switch["highest_evidence"] >= switch["evidence"]


def test_a_changed_line_is_named(store: SqlStore, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_history(store)
    store.close()
    with sqlite3.connect(default_place(home)) as database:
        database.execute("UPDATE ledger SET body = replace(body, '-1.0', '0.0') WHERE number = 12")
    database.close()
    assert main(["audit"]) == 1
    shown = capsys.readouterr()
    assert "broken at line 12" in shown.out and "line 12 was changed" in shown.err
    assert document(capsys, "audit", status=1)["broken"]["number"] == 12


def test_a_noted_digest_shows_that_lines_were_cut_off(store: SqlStore, capsys: pytest.CaptureFixture[str]) -> None:
    write_history(store)
    noted = document(capsys, "audit")["last_digest"]
    assert document(capsys, "audit", "--expect", noted[:12])["is_whole"]
    assert main(["audit", "--expect", "f" * 64]) == 1
    assert "lines were cut off at the end" in capsys.readouterr().err


def test_the_output_says_what_weighs_alike_and_what_has_no_label(store: SqlStore,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    written = shadowed(700, error=0.03, turns=2)
    differing = [answer.id for answer in written[1] if "wrong" in str(answer.response)]
    put(store, judged(written, {id: 0.0 for id in differing[3:]}))
    assert main(["cascade", "calls", "--risk", "10"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "3 answers differ and have no label: they count as wrong" in shown
    assert "the guarantee: each answer weighs alike; of a conversation the first 2 count, 0 are cut" in shown
    found = document(capsys, "cascade", "calls", "--risk", "10", "--per", "conversation")
    assert found["per"] == "conversation" and found["unlabelled"] == 3
    assert main(["cascade", "calls", "--per", "conversation", "--rows-per-conversation", "4"]) == 1
    assert "both given" in capsys.readouterr().err
