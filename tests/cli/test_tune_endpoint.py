"""`brise tune --teacher-endpoint`: a server's texts are learned, if their provider allows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brise.checkpoint.adapters.lineage import read_lineage
from brise.cli.main import main
from tests.engine.stub import stub_model
from tests.serve.live import live

ALLOWED = '[[allow]]\nprovider = "acme"\nbasis = "contract 7"\ndate = 2026-01-01\nscope = "training"\n'


@pytest.fixture
def words(tiny_path: Path, tmp_path: Path) -> list[str]:
    """A run but for its teacher."""
    data = tmp_path / "tickets.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"ticket {number}", "completion": "no idea"}) + "\n"
                            for number in range(12)))
    (tmp_path / "rights.toml").write_text(ALLOWED)
    return ["tune", str(data), "--model", str(tiny_path), "--out", str(tmp_path / "run"), "--threads", "1", "--dtype",
            "float32", "--steps", "1", "--batch-size", "4", "--rank", "4", "--parity-rows", "0"]


def asked(url: str, *options: str) -> list[str]:
    return ["--teacher-endpoint", f"{url}/v1", "--teacher-name", "stub", *options]


def test_answers_of_an_endpoint_are_what_is_learned(words: list[str], tmp_path: Path) -> None:
    hosted = ("--teacher-provider", "Acme", "--rights", str(tmp_path / "rights.toml"))
    with live(stub_model("play")) as server:
        assert main([*words, *asked(server.url, *hosted)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "asked" / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and {row["messages"][-1]["content"] for row in rows} == {"play"}
    assert {row["provider"] for row in rows} == {"acme"} and rows[3]["messages"][0]["content"] == "ticket 3"
    lineage = read_lineage(tmp_path / "run" / "adapter")
    assert lineage is not None and lineage.rights == {"acme": "contract 7 (2026-01-01)"}
    assert lineage.settings["teacher_name"] == "stub"


def test_what_was_answered_is_not_asked_again(words: list[str], tmp_path: Path) -> None:
    with live(stub_model("play")) as server:
        teacher = asked(server.url, "--teacher-open")
        assert main([*words, *teacher]) == 0
    # The server is gone.
    assert main([*words, *teacher, "--resume"]) == 0


def test_a_right_is_asked_for_before_the_endpoint(words: list[str], tmp_path: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, *asked("http://127.0.0.1:1", "--teacher-provider", "acme")]) == 1
    assert "12 rows hold answers of 'acme', a hosted provider, and no rights file" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_answers_that_are_cut_are_left_out_and_said(words: list[str], tmp_path: Path,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    with live(stub_model("a long answer")) as server:
        assert main([*words, *asked(server.url, "--teacher-open", "--teacher-tokens", "2")]) == 1
    said = capsys.readouterr().err
    assert "12 of 12 prompts are left out: the answer is cut, at --teacher-tokens" in said
    assert "none of 12 prompts got an answer that can be learned" in said


@pytest.mark.parametrize(("options", "named"), [
    ("--teacher-name gpt-4o --teacher-open", "gpt-4o is hosted by openai"),
    ("--teacher-name big --teacher-open --teacher-provider acme", "big is hosted by acme"),
    ("--teacher-name big", "it is not known who hosts big"), ("", "--teacher-endpoint needs --teacher-name"),
    ("--teacher-name big --teacher-open --dry-run", "--dry-run asks nobody"),
    ("--teacher-name big --teacher-open --teacher x", "--teacher and --teacher-endpoint do not go together"),
    ("--teacher-name big --teacher-open --teacher-key-env NO_SUCH", "variable 'NO_SUCH' is not set")])
def test_what_does_not_go_together_is_refused(options: str, named: str, words: list[str],
                                              capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--teacher-endpoint", "http://127.0.0.1:1/v1", *options.split()]) == 1
    assert named in capsys.readouterr().err


def test_options_of_an_endpoint_need_one(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--teacher-open"]) == 1
    assert "--teacher-open needs --teacher-endpoint URL" in capsys.readouterr().err
