"""`brise bench`: its table and its line of JSON, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brise.cli.main import main

SMALL = ["--prompt", "20", "--decode", "6", "--depth", "4", "--runs", "2", "--threads", "1"]


def test_the_line_of_json_has_every_measurement(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tiny_path), *SMALL, "--sequences", "1,3", "--json-only"]) == 0
    out, _ = capsys.readouterr()
    report = json.loads(out)
    assert out.count("\n") == 1
    assert report["threads"] == 1 and report["runs"] == len(report["prefill_runs"]) == 2
    assert set(report["concurrent_tokens_per_s"]) == {"1", "3"}
    numbers = (report["prefill_tokens_per_s"], report["decode_tokens_per_s"], report["cold_start_s"],
               report["chat_peak_bytes"], report["bench_peak_bytes"])
    assert all(number > 0 for number in numbers)


def test_the_table_comes_before_the_json(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tiny_path), *SMALL, "--sequences", "2"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert json.loads(last)["model"] == "tiny"
    assert any("prefill, 20 tokens" in line for line in table)
    assert any("2 sequences at once" in line for line in table)


def test_what_does_not_fit_the_context_is_refused(
        tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tiny_path), "--prompt", "4000"]) == 1
    assert "maximum context length is 512" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--runs", "0"], ["--sequences", "1,x"], ["--prompt", "-3"]])
def test_wrong_numbers_are_refused(words: list[str], tiny_path: Path) -> None:
    with pytest.raises(SystemExit) as left:
        main(["bench", str(tiny_path), *words])
    assert left.value.code == 2


def test_speculation_is_measured_for_each_source(tiny_path: Path, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"messages": [
        {"role": "user", "content": f"ticket {number}"},
        {"role": "assistant", "content": f'{{"queue": "mail", "ticket": {number}}}'}]}) + "\n" for number in range(12)))
    words = ["bench", str(tiny_path), "--threads", "1", "--speculate", str(rows), "--learn", str(rows), "--count", "6"]
    assert main(words) == 0
    *table, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert report["answers"] == 6 and list(report["sources"]) == ["off", "prompt", "ngrams", "together"]
    assert report["sources"]["off"]["drafted"] == 0 and report["sources"]["off"]["gain"] == 1.0
    assert any("ngrams" in line for line in table)


def test_speculation_on_the_models_own_answers_follows_a_schema(tiny_path: Path, tmp_path: Path,
                                                                capsys: pytest.CaptureFixture[str]) -> None:
    rows, schema = tmp_path / "rows.jsonl", tmp_path / "schema.json"
    rows.write_text("".join(json.dumps({"prompt": f"ticket {number}", "completion": "mail"}) + "\n"
                            for number in range(4)))
    schema.write_text('{"type": "object", "properties": {"queue": {"enum": ["mail"]}}, "required": ["queue"]}')
    assert main(["bench", str(tiny_path), "--threads", "1", "--speculate", str(rows), "--count", "2",
                 "--schema", str(schema), "--json-only"]) == 0
    assert list(json.loads(capsys.readouterr().out)["sources"]) == ["off", "prompt", "grammar", "together"]


def test_rows_without_answers_cannot_be_measured(tiny_path: Path, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    assert main(["bench", str(tiny_path), "--speculate", str(rows)]) == 1
    assert "has 1 answers" in capsys.readouterr().err
