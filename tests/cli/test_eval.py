"""`brise eval` from end to end: tiny models, baselines, a server, files of answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from brise.cli.main import main
from brise.evals import answering
from brise.evals.answering import Answered
from brise.evals.evaluate import sample
from tests.engine.stub import stub_model
from tests.evals.rows import examples, write
from tests.serve.live import live

SNIPS = Path(__file__).parents[3] / "shared" / "data" / "snips_calls" / "train.jsonl"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    pairs = [(f"play song {number}", "play") for number in range(30)] + [
        (f"rain in town {number}", "weather") for number in range(20)]
    return write(tmp_path / "data.jsonl", *pairs, task="classification")


@pytest.fixture
def train(tmp_path: Path) -> Path:
    pairs = [(f"a song {number} please", "play") for number in range(9)] + [
        (f"any rain {number}", "weather") for number in range(8)]
    return write(tmp_path / "train.jsonl", *pairs, task="classification")


def reported(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main(["eval", *map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_baselines(rows: Path, train: Path, capsys: pytest.CaptureFixture[str]) -> None:
    majority = reported(capsys, rows, "--baseline", "majority", "--train", train)
    assert majority["figures"]["accuracy"]["estimate"] == 0.6 and majority["examples"] == 50
    assert majority["confusions"] == [{"reference": "weather", "answer": "play", "times": 20}]
    tfidf = reported(capsys, rows, "--baseline", "tfidf", "--train", train)
    assert tfidf["figures"]["accuracy"]["estimate"] == 1 and tfidf["system"] == "TF-IDF + linear"
    assert tfidf["score"] == "class" and tfidf["chosen"] == "meta.task is classification"
    assert tfidf["labels"] == "reference answers of the data, compared by program"


def test_a_model_on_this_machine_keeps_its_answers(tiny_path: Path, rows: Path, tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "answers.jsonl"
    words = (rows, "--model", tiny_path, "--max-tokens", 3, "--sample", 20, "--out", out)
    first, again = reported(capsys, *words), reported(capsys, *words)
    assert first["kept"] == 0 and again["kept"] == first["asked"] == 20 and again["asked"] == 0
    assert first["figures"] == again["figures"] and first["figures"]["outside"]["estimate"] == 1
    assert first["figures"]["accuracy"]["low"] is None, "20 conversations are too few for an interval"


def test_two_systems_on_the_same_rows(rows: Path, train: Path, tmp_path: Path,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "majority.jsonl"
    reported(capsys, rows, "--baseline", "majority", "--train", train, "--out", out)
    words = ["eval", str(rows), "--baseline", "tfidf", "--train", str(train), "--against", str(out)]
    against = reported(capsys, *words[1:])["against"]
    assert against["system"] == "majority" and against["examples"] == 50
    accuracy = against["figures"]["accuracy"]
    assert accuracy["other"] == 0.6 and accuracy["difference"]["estimate"] == 0.4
    assert 0.2 < accuracy["difference"]["low"] < 0.4 < accuracy["difference"]["high"] < 0.6
    assert main(words) == 0
    shown = capsys.readouterr().out
    for text in ("TF-IDF + linear: 50 examples, 50 conversations", "majority", "+40.0 %", "100.0 %", "Tango, paired",
                 "compared on 50 examples"):
        assert text in shown


def test_an_endpoint(rows: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", "secret")
    with live(stub_model("play")) as server:
        found = reported(capsys, rows, "--endpoint", f"{server.url}/v1", "--name", "stub", "--key-env", "TEACHER_KEY")
    assert found["figures"]["accuracy"]["estimate"] == 0.6 and found["completion_tokens"] == 5 * 50


def test_perplexity_and_a_scorer_of_ones_own(tiny_path: Path, rows: Path, tmp_path: Path,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    found = reported(capsys, rows, "--model", tiny_path, "--score", "perplexity", "--sample", 5)["figures"]
    assert found["perplexity"]["estimate"] > 1 and found["tokens_per_answer"]["estimate"] > 1
    (tmp_path / "mine.py").write_text("def length(example, answer):\n    return len(example['reference']['text'])\n")
    mine = reported(capsys, rows, "--model", tiny_path, "--scorer", f"{tmp_path / 'mine.py'}:length", "--max-tokens", 1)
    assert mine["score"] == "length" and mine["figures"]["score"]["estimate"] == (4 * 30 + 7 * 20) / 50


def test_what_cannot_be_compared_is_said_before_anything_is_asked(rows: Path, tmp_path: Path,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text("def broken(example, answer):\n    return answer['txt']\n")
    for words in (["--score", "json"], ["--scorer", f"{tmp_path / 'mine.py'}:broken"]):
        out, endpoint = tmp_path / "out.jsonl", ["--endpoint", "http://127.0.0.1:1/v1", "--name", "x"]
        assert main(["eval", str(rows), *endpoint, "--out", str(out), *words]) == 1
        assert "data.jsonl:1" in capsys.readouterr().err and not out.exists()


def test_ctrl_c_says_how_to_go_on(rows: Path, train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: object) -> Answered:
        raise KeyboardInterrupt

    monkeypatch.setattr(answering, "_ask", pressed)
    words = ["eval", str(rows), "--baseline", "majority", "--train", str(train)]
    assert main([*words, "--out", str(tmp_path / "out.jsonl")]) == 130
    assert "out.jsonl has the answers so far, and the same command goes on from there" in capsys.readouterr().err
    assert main(words) == 130
    assert "nothing is kept" in capsys.readouterr().err


def test_labels_may_be_more_than_the_references_have(rows: Path, train: Path, tmp_path: Path,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text('["weather", "other"]')
    found = reported(capsys, rows, "--baseline", "majority", "--train", train, "--labels", labels)
    assert found["figures"]["outside"]["estimate"] == 1


@pytest.mark.parametrize(("words", "message"), [
    ("--baseline tfidf", "--baseline needs --train"), ("--endpoint http://127.0.0.1:1/v1", "--endpoint needs --name"),
    ("--baseline majority --train data.jsonl", "all 50 rows of --train are of conversations that are evaluated"),
    ("--baseline majority --train train.jsonl --threads 2", "--threads goes with --model, not with --baseline"),
    ("--endpoint http://127.0.0.1:1/v1 --name x --adapter a", "--adapter goes with --model, not with --endpoint"),
    ("--endpoint http://127.0.0.1:1/v1 --name x --key-env NO_SUCH", "variable 'NO_SUCH' is not set"),
    ("--model tiny --any-base", "--any-base needs --adapter"), ("--model tiny --train x", "--train goes with"),
    ("--baseline majority --train train.jsonl --score exact --scorer a.py:f", "one is allowed"),
    ("--baseline majority --train train.jsonl --score exact --labels data.jsonl", "--labels goes with"),
    ("--baseline majority --train train.jsonl --score perplexity", "a baseline has no perplexity"),
    ("--baseline majority --train train.jsonl --score json", "the reference is no JSON"),
    ("--baseline majority --train train.jsonl --json-schema x", "--json-schema goes with --model or --endpoint"),
    ("--endpoint http://127.0.0.1:1/v1 --name x --json-schema data.jsonl", "'data.jsonl' is no JSON"),
    ("--baseline majority --train train.jsonl --against no.jsonl", "cannot read 'no.jsonl'"),
    ("--baseline majority --train train.jsonl --against train.jsonl", "is no file of answers")])
def test_what_cannot_be_is_said(rows: Path, train: Path, words: str, message: str,
                                capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rows.parent)
    assert main(["eval", "data.jsonl", *words.split()]) == 1
    assert message in capsys.readouterr().err


def test_a_sample_is_the_same_whatever_the_order() -> None:
    rows = examples(*map(str, range(50)))
    chosen = sample(rows, 10)
    assert len(chosen) == 10 and {row.digest for row in chosen} == {row.digest for row in sample(rows[::-1], 10)}
    assert list(chosen) == [row for row in rows if row in chosen] and sample(rows, 99) == rows


@pytest.mark.skipif(not SNIPS.is_file(), reason="needs ../shared/data")
def test_the_real_model_on_real_rows(smollm2_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Untuned it knows no function's name: not one call is right, and the likelihood of the references is low."""
    calls = reported(capsys, SNIPS, "--model", smollm2_path, "--sample", 8, "--max-tokens", 24)
    assert calls["score"] == "call" and calls["figures"]["call_exact"]["estimate"] == 0
    perplexity = reported(capsys, SNIPS, "--model", smollm2_path, "--sample", 8, "--score", "perplexity")
    assert 5 < perplexity["figures"]["perplexity"]["estimate"] < 20
