"""What an open test is made of is not exported for training, or is no evidence any more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from brise.cli.main import main
from brise.traffic.sql_store import SqlStore
from brise.traffic.stores import open_store
from tests.prove.logs import changed, rows
from tests.report.traffic import TASK, fill
from tests.traffic.records import exchange


@pytest.fixture
def store(home: Path) -> Iterator[SqlStore]:
    """80 pairs, and a request of the first conversation and one of another that the small model did not see."""
    with closing(open_store(None, home)) as found:
        pairs = changed(rows(80), lambda at, row: {"conversation": f"c{at // 2}"})
        fill(found, pairs)
        found.add([exchange(name, 1.7e9 - 1, task=TASK, conversation=name, request={
            "messages": [{"role": "user", "content": "x"}]}, response={"choices": [{"index": 0, "message": {
                "role": "assistant", "content": "y"}}]}) for name in ("c0", "new")])
        yield found


def exported(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[set[str], str]:
    assert main(["log", "export", "--task", TASK, "--answer", "served", *words]) == 0
    shown = capsys.readouterr()
    return {json.loads(line)["conversation"] for line in shown.out.splitlines()}, shown.err


def test_an_open_test_holds_its_conversations(store: SqlStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(exported(capsys)[0]) == 41, "nobody has looked"
    assert main(["prove", "--task", TASK]) == 4
    capsys.readouterr()
    names, err = exported(capsys)
    assert names == {"new"} and "40 conversations of the open test of 'tickets' are left out" in err
    assert "left out 81: of the open test of 'tickets'" in err
    store.append("proof", {**next(line.body for line in store.ledger()), "verdict": "not good enough"})
    assert len(exported(capsys)[0]) == 41, "it has closed"


def test_what_was_exported_all_the_same_proves_nothing(store: SqlStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prove", "--task", TASK]) == 4
    assert main(["log", "export", "--task", TASK, "--answer", "best", "--min-score", "1", "--include-gate", "--until",
                 "2023-11-14T22:13:20"]) == 1, "no row, and so nothing to write down"
    capsys.readouterr()
    names, err = exported(capsys, "--include-open-tests", "--until", "2023-11-14T22:33:20")
    assert len(names) == 11 and "10 conversations of the open test of 'tickets' are exported" in err
    assert [line.kind for line in store.ledger()] == ["proof", "export"]
    assert main(["prove", "--task", TASK]) == 1
    assert "20 of 80 pairs are of conversations that were exported" in (shown := capsys.readouterr().err)
    since = shown.partition("--since ")[2].split()[0]
    assert main(["prove", "--task", TASK, "--settle", "0", "--since", since, "--plan-only"]) == 0
