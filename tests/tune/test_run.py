"""brise.tune as a function: a run without a terminal, from its options to its result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from brise.data.prepare import DataOptions
from brise.errors import UnsupportedError
from brise.memory.training_plan import CONTEXT_BYTES
from brise.tune import parity, run
from brise.tune.options import RoundOptions, TeacherEndpoint, TeacherOptions, TuneOptions
from brise.tune.parity.options import ParityOptions
from tests.checkpoint.make_gguf import write_tiny


@pytest.fixture
def options(tmp_path: Path) -> TuneOptions:
    data = tmp_path / "tickets.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"ticket {number}", "completion": "yes" if number % 2 else "no"})
                            + "\n" for number in range(20)))
    return TuneOptions((data,), str(write_tiny(tmp_path / "tiny.gguf", "llama")), tmp_path / "run", steps=2, rank=4,
                       batch_size=8, dtype="float32", threads=1, parity_rows=4)


def test_a_run_gives_its_adapter_metrics_and_parity(options: TuneOptions) -> None:
    result = run(options)
    assert result.end == "done" and result.adapter == options.folder / "adapter" and result.model is None
    assert result.metrics.keys() == {"steps", "tokens", "seconds", "held_out_loss", "best_step"}
    assert result.step == 2 and result.passed and result.parity is not None and result.curve_png is not None
    report = parity.run(ParityOptions(options.model, result.adapter, options.data, max_rows=4, threads=1))
    assert report.passed


def test_a_dry_run_plans_and_writes_nothing(options: TuneOptions) -> None:
    result = run(replace(options, dry_run=True))
    assert result.end == "planned" and result.plan.total_bytes > 0 and result.data.train.examples > 0
    assert result.adapter is None and not options.folder.exists()


def test_the_folder_is_named_after_data_and_model() -> None:
    assert TuneOptions((Path("a/tickets.jsonl"),), "b/tiny.gguf").folder == Path("tickets-tiny")


@pytest.mark.parametrize(("fields", "message"), [
    ({"on_policy": RoundOptions()}, "--on-policy needs --teacher MODEL"),
    ({"on_policy": RoundOptions(), "teacher": TeacherOptions("m"), "epochs": 2.0}, "--epochs and --on-policy"),
    ({"on_policy": RoundOptions(), "teacher": TeacherOptions("m"), "rows": DataOptions(targets="all")},
     "--learn is all"),
    ({"teacher": TeacherOptions("m"), "teacher_endpoint": TeacherEndpoint("http://x/v1", "m", is_open=True)},
     "do not go together"),
    ({"targets": ("router",)}, "the target module is 'router'"), ({"rank": 5000}, "the rank is 5000"),
    ({"device": "vulkan"}, "allowed are auto, cpu, cuda and cuda:N; a Vulkan device serves models and trains none")])
def test_options_that_cannot_be_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        TuneOptions((Path("data.jsonl"),), "tiny", **fields)  # type: ignore[arg-type]


def test_on_policy_has_its_own_defaults() -> None:
    recipe = TuneOptions((Path("data.jsonl"),), "tiny", teacher=TeacherOptions("m"), on_policy=RoundOptions()).recipe()
    assert recipe.steps == 80 and recipe.eval_every == 16 and recipe.distill_direction == "reverse"


def test_a_run_for_a_gpu_is_planned_without_one_and_not_begun(options: TuneOptions) -> None:
    planned = run(replace(options, device="cuda", method="qlora", memory=10**9, dry_run=True)).plan
    assert planned is not None and planned.is_gpu and planned.total_bytes <= 10**9
    assert ("context", "CUDA, assumed", CONTEXT_BYTES) in planned.rows() and planned.host_bytes > 0
    with pytest.raises(UnsupportedError, match="has 0 GPUs that torch can use\nhint: --dry-run plans"):
        run(replace(options, device="cuda"))
    with pytest.raises(UnsupportedError, match="--offload all needs a GPU"):
        run(replace(options, device="cpu", offload="all"))
