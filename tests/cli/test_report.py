"""`brise report` on a planted store: terminal, page, JSON, errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brise.cli.main import main
from tests.checkpoint.make_gguf import write_tiny
from tests.prove.planted import TASK, Planted

PRICES = """
[models."big-1"]
input = 2.0
output = 10.0
[hardware]
price = 1000
years = 4
watts = 50
usd_per_kwh = 0.3
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path))
    folder = tmp_path / "gateway"
    folder.mkdir()
    planted = Planted(folder, home=tmp_path)
    planted.requests(120, shadow=0.9)
    planted.proof("not good enough", -0.08)
    planted.store.close()
    return tmp_path


def test_it_says_what_to_do_and_what_it_does_not_know(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "gateway" / "prices.toml").write_text(PRICES)
    assert main(["report", "--html", str(home / "report.html")]) == 0
    out = capsys.readouterr().out
    assert "Stay on the large model" in out and "What this report does not know" in out and "$0.60" in out
    assert "Stay on the large model" in (home / "report.html").read_text()


def test_json_names_the_licence_of_the_model(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny(home / "small.gguf", "llama")
    assert main(["report", "--task", TASK, "--model", str(home / "small.gguf"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["advice"]["choice"] == "stay" and document["control"]["model"]["name"] == "small"
    assert document["cost"]["systems"]["hosted"]["usd"] is None


@pytest.mark.parametrize(("words", "message"), [
    (["--store", "nowhere.sqlite"], "nowhere.sqlite"), (["--task", "other"], "tasks are: car"),
    (["--prices", "nowhere.toml"], "nowhere.toml"), (["--adapter", "x"], "--model"),
    (["--days", "0.00001"], "in this time")])
def test_errors_say_what_is_wrong(home: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
                                  ) -> None:
    assert main(["report", *words]) == 1
    assert message in capsys.readouterr().err
