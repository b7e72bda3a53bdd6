"""`brise.prove`: the verdict of the command, from files, from rows and from captured traffic."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

import brise
from brise.cli.main import main
from tests.prove.logs import rows, write


def test_a_log_has_the_verdict_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path / "log.jsonl", rows(1200))
    found = brise.prove(log, margin=0.03, certificate=tmp_path / "certificate.json")
    assert main(["prove", "--pairs", str(log), "--margin", "3", "--json"]) == 0
    assert found.verdict == "promote" and found.certificate is not None
    assert {**found.document, "certificate": None} == json.loads(capsys.readouterr().out)
    assert found.proof is not None and max(found.proof.outcome.path) > 1 / 0.05
    assert found.certificate_path == tmp_path / "certificate.json" and found.certificate_path.is_file()


def test_rows_in_memory_are_a_log_too() -> None:
    found = brise.prove([{**row} for row in rows(800, better=0.0, worse=0.3)], margin=0.02)
    assert found.verdict == "not good enough" and found.certificate is None


def test_a_plan_says_what_it_takes() -> None:
    found = brise.prove([{**row} for row in rows(60)], plan_only=True, discordance=0.1)
    assert found.proof is None and found.verdict is None and found.plan.units > 100


def test_the_claim_may_be_about_answers_or_conversations() -> None:
    told = [{"conversation": at, "prompt": "q", "small_score": 1 - (turn > 0), "large_score": 1}
            for at in range(60) for turn in range(1 if at % 6 else 6)]
    answers, alike = brise.prove(told), brise.prove(told, per="conversation")
    assert [found.proof.difference.estimate for found in (answers, alike) if found.proof is not None] == pytest.approx([
        -50 / 110, -50 / 360])
    cut = brise.prove(told, rows_per_conversation=1).proof
    assert cut is not None and cut.difference.estimate == 0 and len(cut.clusters.cut) == 50
    assert answers.document["terms"]["weighting"] == {"per": "answer", "most_rows": None}


@pytest.mark.parametrize(("options", "message"), [
    ({"pairs": [{"small": "a", "large": "a"}], "per": "row"}, "'row', allowed is answer or conversation"),
    ({"pairs": [{"small": "a", "large": "a"}], "rows_per_conversation": 0}, "is 0, allowed is 1 and more"),
    ({"pairs": [{"small": "a", "large": "a"}], "per": "conversation", "rows_per_conversation": 3},
     "^per='conversation' and rows_per_conversation|^per conversation and rows_per_conversation"),
    ({}, "nothing says where the answers are"), ({"pairs": [], }, "pairs must be a path"),
    ({"pairs": {"small": "a"}}, "pairs is one row"), ({"pairs": [{"small": object()}]}, r"pairs\[0\] cannot be"),
    ({"pairs": [{"small": "a"}]}, "rows are no pairs"), ({"pairs": "/nope.jsonl"}, "cannot read '/nope.jsonl'"),
    ({"pairs": [{"small": "a", "large": "a"}], "margin": 2}, "margin is 2, allowed is a share"),
    ({"task": "t", "since": datetime(2026, 1, 1)}, "has no zone"),
    ({"task": "t", "store": "/nope.sqlite", "since": datetime(2026, 1, 1, tzinfo=UTC)}, "no store at '/nope.sqlite'"),
    ({"pairs": [{"small": "a", "large": "a"}], "any_base": True}, "any_base needs adapter=FOLDER"),
    ({"task": "t", "candidate": 2}, "^candidate is for a log")])
def test_what_cannot_be_proven_is_an_error_in_plain_words(options: dict[str, object], message: str) -> None:
    with pytest.raises(brise.BriseError, match=message):
        brise.prove(**options)  # type: ignore[arg-type]


def test_an_option_that_does_not_exist_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="no option 'delta'"):
        brise.prove("log.jsonl", delta=2)  # type: ignore[call-arg]
