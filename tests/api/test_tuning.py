"""`brise.tune`, `brise.evaluate`, `brise.parity`: what the commands do, from a program's own data."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

import brise
from brise.api.tuning import EvaluationOptions, TrainingOptions
from brise.cli.main import main
from brise.evals.options import EvalOptions
from brise.tune.options import TuneOptions

ROWS = [{"prompt": f"ticket {number} {'abc' * (number % 5)}", "completion": "yes" if number % 2 else "no"}
        for number in range(30)]


@pytest.fixture(scope="module")
def run(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> brise.TuneResult:
    """A short run on rows in memory."""
    pytest.importorskip("torch")
    return brise.tune(ROWS, model=tiny_path, out=tmp_path_factory.mktemp("tuned") / "run", steps=3, rank=4,
                      batch_size=8, threads=1, dtype="float32", parity_rows=2)


@pytest.mark.slow
def test_rows_in_memory_train_the_adapter_that_the_command_trains(run: brise.TuneResult, tiny_path: Path,
                                                                  tmp_path: Path) -> None:
    data = tmp_path / "tickets.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["tune", str(data), "--model", str(tiny_path), "--out", str(tmp_path / "run"), "--steps", "3", "--rank",
             "4", "--batch-size", "8", "--threads", "1", "--dtype", "float32", "--parity-rows", "2"]
    assert main(words) == 0 and run.adapter is not None
    ours, theirs = (folder / "adapter_model.safetensors" for folder in (run.adapter, tmp_path / "run" / "adapter"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert run.metrics["steps"] == 3 and run.end == "done" and run.passed


@pytest.mark.slow
def test_what_was_trained_is_measured_and_served(run: brise.TuneResult, tiny_path: Path) -> None:
    assert run.adapter is not None
    with brise.load(tiny_path, threads=1, adapters={"tickets": run.adapter}) as model:
        plain, tuned = (brise.evaluate(ROWS[:6], model=model, adapter=adapter, max_tokens=4)
                        for adapter in (None, run.adapter))
        assert len(plain.answers) == 6 and plain.figures.keys() == tuned.figures.keys()
        assert model.chat("ticket 3", adapter="tickets", temperature=0, max_tokens=4).text == model.chat(
            "ticket 3", adapter=run.adapter, temperature=0, max_tokens=4).text


def test_a_loaded_model_and_its_path_have_the_same_figures(model: brise.Model, tiny_path: Path) -> None:
    loaded, named = (brise.evaluate(ROWS[:5], model=each, max_tokens=4, score="exact", threads=1)
                     for each in (model, tiny_path))
    assert loaded.document["figures"] == named.document["figures"] and loaded.answers == named.answers


@pytest.mark.slow
def test_parity_replays_what_was_held_out(run: brise.TuneResult, tiny_path: Path) -> None:
    assert run.adapter is not None
    report = brise.parity(ROWS, model=tiny_path, adapter=run.adapter, max_rows=2, threads=1)
    assert report.passed and report.num_rows == 2 and report.check() is report


def test_a_dry_run_says_what_it_would_take(tiny_path: Path, tmp_path: Path) -> None:
    # The plan counts this process, in which other tests ran before.
    planned = brise.tune(ROWS, model=tiny_path, out=tmp_path / "run", dry_run=True, memory="16GB")
    assert planned.end == "planned" and planned.adapter is None and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("options", "message"), [
    ({"on_policy": brise.RoundOptions()}, "^on_policy needs teacher=MODEL"), ({"memory": "lots"}, "memory is 'lots'"),
    ({"data": []}, "data must be a path"), ({"data": "/nope.jsonl"}, "nope.jsonl"), ({"model": "absent"}, "no model")])
def test_a_run_that_cannot_be_is_an_error_in_plain_words(tiny_path: Path, tmp_path: Path, options: dict[str, object],
                                                         message: str) -> None:
    with pytest.raises(brise.BriseError, match=message):
        brise.tune(**{"data": ROWS, "model": tiny_path, "out": tmp_path / "run", **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(("options", "message"), [
    ({}, "give one of model, endpoint and baseline"), ({"endpoint": "http://127.0.0.1:9"}, "^endpoint needs name"),
    ({"baseline": "tfidf", "max_tokens": 3}, "^max_tokens goes with model or endpoint, not with baseline")])
def test_an_evaluation_that_cannot_be_is_an_error_in_plain_words(options: dict[str, object], message: str) -> None:
    with pytest.raises(brise.EvidenceError, match=message):
        brise.evaluate(ROWS, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "options", "own"), [
    (TrainingOptions, TuneOptions, {"data", "model", "out", "memory"}),
    (EvaluationOptions, EvalOptions, {"data", "model", "adapter", "endpoint", "baseline"})])
def test_python_takes_every_option_that_the_command_line_has(kind: type, options: type, own: set[str]) -> None:
    assert kind.__annotations__.keys() | own == {field.name for field in fields(options)}
