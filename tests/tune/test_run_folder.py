"""A run's folder: checkpoints whole or not at all, one run at a time, and only the run that was begun."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brise.errors import CheckpointError, OutputError
from brise.tune import run_folder
from brise.tune.run_folder import CHECKPOINTS, STATE, TENSORS, Identity, RunFolder, TrainingCheckpoint

IDENTITY = Identity({"rank": 16, "lr": 1e-3, "method": "lora"}, "b" * 64, "d" * 64)


def checkpoint(step: int, size: int = 1000) -> TrainingCheckpoint:
    return TrainingCheckpoint(step, {"w": np.full((size, 4), step, np.float32), "codes": np.arange(9, dtype=np.uint8)},
                              {"best": 0.5, "nested": {"a": [1, 2]}})


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    made = run_folder.create(tmp_path / "run", IDENTITY)
    yield made
    made.close()


def test_a_checkpoint_comes_back_as_it_was(run: RunFolder) -> None:
    run.save(checkpoint(3))
    back = run.newest()
    assert back is not None and back.step == 3 and back.state == checkpoint(3).state
    for name, array in checkpoint(3).tensors.items():
        assert np.array_equal(back.tensors[name], array) and back.tensors[name].dtype == array.dtype


def test_the_last_two_and_the_best_are_kept(run: RunFolder) -> None:
    for step in (2, 4, 6, 8, 10):
        run.save(checkpoint(step), best_step=4)
    assert run.steps() == [4, 8, 10]
    assert not list((run.path / CHECKPOINTS).glob(".*"))


def test_reopening_goes_on_where_it_was(run: RunFolder) -> None:
    run.begin_log(0)
    for step in (1, 2, 3):
        run.log({"step": step, "loss": 1.0 / step})
    run.save(checkpoint(2))
    run.close()
    again = run_folder.reopen(run.path)
    assert again is not None and again.identity == IDENTITY
    newest = again.newest()
    assert newest is not None
    again.begin_log(newest.step)
    again.log({"step": 3, "loss": 9.0})
    again.close()
    assert [line["loss"] for line in run_folder.read_log(run.path)] == [1.0, 0.5, 9.0]


def test_a_line_that_was_cut_off_does_not_count(run: RunFolder) -> None:
    run.begin_log(0)
    run.log({"step": 1, "loss": 1.0})
    with (run.path / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert len(list(run_folder.read_log(run.path))) == 1


def test_nothing_begun_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    assert run_folder.reopen(tmp_path / "none") is None
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()  # killed before run.json was there
    run_folder.create(tmp_path / "run", IDENTITY).close()


def test_a_folder_with_a_run_or_anything_else_is_not_taken(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="--resume"):
        run_folder.create(run.path, IDENTITY)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(OutputError, match="there already"):
        run_folder.create(tmp_path / "other", IDENTITY)


def test_two_runs_do_not_share_a_folder(run: RunFolder) -> None:
    with pytest.raises(OutputError, match="another brise is training"):
        run_folder.reopen(run.path)
    run.close()
    again = run_folder.reopen(run.path)
    assert again is not None
    again.close()


@pytest.mark.parametrize(("change", "named"), [
    ({"settings": {**IDENTITY.settings, "rank": 8}}, "rank was 16, is 8"), ({"base": "c" * 64}, "base model was bbbb"),
    ({"data": "e" * 64}, "data were dddd"), ({"settings": {**IDENTITY.settings, "new": 1}}, "new was None, is 1")])
def test_another_run_is_refused_by_what_differs(change: dict[str, object], named: str) -> None:
    run_folder.check_same(IDENTITY, IDENTITY)
    with pytest.raises(OutputError, match=named):
        run_folder.check_same(IDENTITY, replace(IDENTITY, **change))  # type: ignore[arg-type]


def test_a_damaged_checkpoint_is_named(run: RunFolder) -> None:
    run.save(checkpoint(3))
    path = run.path / CHECKPOINTS / "step-00000003" / TENSORS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="step-00000003.*damaged"):
        run.newest()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}', '{"format": 2, "step": 3}',
                                  '{"format": 1, "step": 4, "sha256": "", "state": {}}',
                                  '{"format": 1, "step": 3, "sha256": "0", "state": {}}'])
def test_a_state_that_lies_is_a_checkpoint_error(run: RunFolder, text: str) -> None:
    run.save(checkpoint(3))
    (run.path / CHECKPOINTS / "step-00000003" / STATE).write_text(text)
    with pytest.raises(CheckpointError):
        run.newest()


FULL = """
import resource, sys
from pathlib import Path
from brise.errors import OutputError
from brise.tune import run_folder
from tests.tune.test_run_folder import IDENTITY, checkpoint
run = run_folder.create(Path(sys.argv[1]), IDENTITY)
run.save(checkpoint(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
try:
    run.save(checkpoint(2, 10_000))
except OutputError as error:
    print(error)
"""


def test_a_full_disk_is_an_error_and_the_last_checkpoint_stays_good(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "run")], capture_output=True, text=True,
                          cwd=Path(__file__).parents[2])
    assert "no space left" in done.stdout and "make room" in done.stdout, done.stdout + done.stderr
    left = run_folder.reopen(tmp_path / "run")
    assert left is not None and left.steps() == [1]
    newest = left.newest()
    assert newest is not None and float(newest.tensors["w"][0, 0]) == 1.0
    left.close()


KILLED = """
import os, signal, sys
from pathlib import Path
from brise.tune import run_folder
from tests.tune.test_run_folder import IDENTITY, checkpoint
def main(path, at):
    calls = 0
    def killing(real):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call
    os.fsync, os.rename, os.rmdir, os.unlink = map(killing, (os.fsync, os.rename, os.rmdir, os.unlink))
    run = run_folder.create(path, IDENTITY)
    run.begin_log(0)
    for step in range(1, 5):
        run.log({"step": step})
        run.save(checkpoint(step))
for at in range(1, 200, 3):  # each run is a fork: importing takes a third of a second
    if not (child := os.fork()):
        try:
            main(Path(sys.argv[1]) / str(at), at)
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
    _, status = os.waitpid(child, 0)
    print(at, os.waitstatus_to_exitcode(status))
    if not status:
        break
"""


def test_killed_at_any_call_that_changes_the_disk_what_is_there_is_whole(tmp_path: Path) -> None:
    """Every fsync, rename and removal of four saves; the newest checkpoint is complete, and never older than the last
    but one that was begun."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True,
                          cwd=Path(__file__).parents[2])
    ends = [(int(at), int(status)) for at, status in map(str.split, done.stdout.splitlines())]
    assert [status for _, status in ends] == [-signal.SIGKILL] * (len(ends) - 1) + [0], done.stderr
    assert ends[-1][0] > 20
    for at, _ in ends:
        again = run_folder.reopen(tmp_path / str(at))
        if again is not None:
            newest = again.newest()
            step = 0 if newest is None else newest.step
            assert newest is None or float(newest.tensors["w"].min()) == step
            assert len(list(run_folder.read_log(again.path))) in (step, step + 1)
            again.begin_log(step)
            again.close()


def test_settings_are_read_as_plain_values_only(run: RunFolder) -> None:
    text = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps(text | {"settings": {"rank": [16]}}))
    run.close()
    with pytest.raises(CheckpointError, match="plain values"):
        run_folder.reopen(run.path)
