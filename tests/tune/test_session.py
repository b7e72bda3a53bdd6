"""A run stops anywhere and goes on to the same bits; evaluation decides what is kept, and when it is enough."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from brise.errors import CheckpointError, EvidenceError, OutputError
from brise.tune import run_folder
from brise.tune.run_folder import TrainingCheckpoint
from brise.tune.session import MAX_SKIPPED, TrainingSession
from brise.tune.watch import Step
from brise.watch import RunningClock
from tests.tune import small_run
from tests.tune.small_run import IDENTITY, Silent

ROOT = Path(__file__).parents[2]
Open = Callable[..., TrainingSession]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Makes sessions, and closes their folders in the end."""
    made: list[TrainingSession] = []

    def session(folder: Path, **changes: object) -> TrainingSession:
        run = run_folder.reopen(folder) or run_folder.create(folder, IDENTITY)
        made.append(TrainingSession(small_run.trainer(small_run.recipe(**changes)), run, Silent(), save_every=2))
        made[-1].restore()
        return made[-1]

    yield session
    for each in made:
        each.folder.close()


def weights(which: TrainingSession) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in which.trainer.trained.parameters.values()]


@pytest.mark.parametrize("kind", ["32", "8", "rounds"])
def test_killed_and_resumed_runs_end_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    """Killed at a call of the disk or before a step, and again soon after it went on."""
    places = range(2, 64, 6)
    tasks = [(tmp_path / "whole", 0)] + [(tmp_path / str(place), at) for place in places for at in (place, 6, 0)]
    words = [str(word) for folder, at in tasks for word in (folder, at, kind)]
    done = subprocess.run([sys.executable, "-m", "tests.tune.small_run", *words], capture_output=True, text=True,
                          cwd=ROOT)
    whole, *ends = map(int, done.stdout.split())
    assert whole > max(places) and len(ends) == 3 * len(places), done.stderr
    assert set(ends[0::3]) == {-signal.SIGKILL} and min(ends[2::3]) > 0
    expected = (tmp_path / "whole" / "weights.bin").read_bytes()
    for place in places:
        assert (tmp_path / str(place) / "weights.bin").read_bytes() == expected
        steps = [line["step"] for line in run_folder.read_log(tmp_path / str(place))]
        assert steps == list(range(1, 10))


def test_a_run_that_is_stopped_before_its_rows_are_there_saves_where_it_is(opened: Open, tmp_path: Path) -> None:
    parted = opened(tmp_path / "parted")
    parted.ready = lambda: parted.trainer.step < 3
    assert parted.run() == "interrupted"
    assert parted.folder.steps()[-1] == parted.trainer.step == 3


def test_time_in_which_the_process_stood_still_is_no_time_of_training(opened: Open, tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    run, now = opened(tmp_path / "run"), [0.0]
    run.clock, told = RunningClock(lambda: now[0]), list[float]()
    take = run.trainer.run_step

    def step() -> Step:
        now[0] += 3600.0 if run.trainer.step == 4 else 2.0
        return take()

    monkeypatch.setattr(run.trainer, "run_step", step)
    monkeypatch.setattr(run.watcher, "stepped", lambda step, seconds: told.append(seconds))
    assert run.run() == "done"
    assert told[3:6] == [2.0, 0.5, 2.0] and run.seconds == pytest.approx(2.0 * (len(told) - 1) + 0.5)


def test_an_interrupted_run_saves_where_it_is(opened: Open, tmp_path: Path) -> None:
    whole, parted = opened(tmp_path / "whole"), opened(tmp_path / "parted")
    assert whole.run() == "done"
    parted.is_stopped = lambda: parted.trainer.step == 5
    assert parted.run() == "interrupted" and parted.folder.steps()[-1] == 5
    parted.folder.close()
    again = opened(tmp_path / "parted")
    assert again.trainer.step == 5 and again.run() == "done"
    assert all(map(torch.equal, weights(whole), weights(again)))
    assert again.best == whole.best and again.tokens == whole.tokens


def test_the_best_weights_come_back(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = opened(tmp_path / "run", eval_every=2)
    losses = iter([3.0, 1.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(run.trainer, "evaluate", lambda: next(losses))
    kept: list[torch.Tensor] = []
    monkeypatch.setattr(run.watcher, "saved", lambda step: kept.extend(weights(run)) if step == 4 else None)
    run.run()
    assert run.best is not None and (run.best.step, run.best.loss) == (4, 1.0)
    assert not all(map(torch.equal, weights(run), kept))
    run.take_best()
    assert all(map(torch.equal, weights(run), kept))


def test_patience_ends_a_run_early(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = opened(tmp_path / "run", eval_every=1, patience=2)
    losses = iter([3.0, 2.0, 2.5, 2.5])
    monkeypatch.setattr(run.trainer, "evaluate", lambda: next(losses))
    assert run.run() == "early" and run.trainer.step == 4
    run.folder.close()
    again = opened(tmp_path / "run", eval_every=1, patience=2)
    assert again.run() == "early" and again.trainer.step == 4


def test_gradients_that_are_never_finite_end_the_run(opened: Open, tmp_path: Path) -> None:
    run = opened(tmp_path / "run", epochs=10.0)
    before = weights(run)
    for parameter in run.trainer.trained.parameters.values():
        parameter.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(EvidenceError, match=f"{MAX_SKIPPED} steps.*\n?.*--lr"):
        run.run()
    assert all(map(torch.equal, weights(run), before))


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint(opened: Open, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    run = opened(tmp_path / "run")
    save = run.folder.save

    def full(checkpoint: TrainingCheckpoint, best_step: int | None = None) -> None:
        if checkpoint.step >= 4:
            raise OutputError("no space left")
        save(checkpoint, best_step)

    monkeypatch.setattr(run.folder, "save", full)
    with pytest.raises(OutputError):
        run.run()
    run.folder.close()
    assert opened(tmp_path / "run").trainer.step > 0


def test_a_checkpoint_of_other_shapes_is_refused_by_name(opened: Open, tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    run.run()
    run.folder.close()
    with pytest.raises(CheckpointError, match="layers.0.attention.wq.a"):
        opened(tmp_path / "run", rank=8)


def test_what_dora_needs_of_frozen_matrices_is_computed_once_a_run() -> None:
    trainer = small_run.trainer(small_run.recipe(method="dora"))
    trainer.run_step()
    first = {key: squares for key, (_, squares) in trainer._row_norms.items()}
    trainer.run_step()
    assert len(first) == len([name for name in trainer.trained.parameters if name.endswith(".magnitude")])
    assert all(squares is first[key] for key, (_, squares) in trainer._row_norms.items())


def test_the_optimiser_rounds_by_the_seed_of_the_recipe() -> None:
    found = []
    for seed in (1, 1, 2):
        made = small_run.trainer(small_run.recipe(optimizer="adamw8", rank=64))  # tensors large enough for 8 bits
        trainer = replace(made, recipe=replace(made.recipe, seed=seed))
        for parameter in trainer.trained.parameters.values():
            parameter.grad = torch.linspace(-1.0, 1.0, parameter.numel()).view(parameter.shape)
        trainer.optimizer.step(0.1)
        found.append(trainer.optimizer.tensors())
    same, other = ([torch.equal(found[0][name], each[name]) for name in found[0]] for each in found[1:])
    assert all(same) and not all(other)
