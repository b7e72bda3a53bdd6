"""`brise tune` on the processes of torchrun: two gloo ranks end with the adapter of one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from brise.checkpoint.adapters.peft import read_adapter
from brise.checkpoint.open import open_checkpoint
from brise.cli.main import main
from brise.models.weights import LowRank
from brise.tune import run_folder
from tests.checkpoint.make_gguf import write_tiny
from tests.cli.interrupted import interrupted

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "brise")
OPTIONS = ("--threads", "1", "--dtype", "float32", "--batch-size", "8", "--rank", "4", "--save-every", "2")
HANGS_S = 1800  # the three processes of torchrun take 15 s of CPU, which is minutes of wall time beside ten others
WEIGHTS = 5e-5  # as in tests/tune/test_fsdp.py; measured: 1e-6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data, and two finished runs: `one` of one process, `two` of two ranks."""
    place = tmp_path_factory.mktemp("ranks")
    write_tiny(place / "tiny.gguf", "llama")
    (place / "tickets.jsonl").write_text("".join(
        json.dumps({"prompt": f"ticket {number} {'abc' * (number % 5)}", "completion": "yes" if number % 2 else "no"})
        + "\n" for number in range(30)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRISE_HOME", str(place / "home"))
        assert main(words(place, "one", "--steps", "6", "--parity-rows", "0")) == 0
    done = launch(place, "two", "--steps", "6", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    (place / "two.jsonl").write_text(done.stdout)
    return place


def words(place: Path, out: str, *options: str) -> list[str]:
    return ["tune", str(place / "tickets.jsonl"), "--model", str(place / "tiny.gguf"), "--out", str(place / out),
            *OPTIONS, *options]


def environment(place: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1",
            "BRISE_HOME": str(place / "home")}


def launch(place: Path, out: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TORCHRUN, *words(place, out, *options)], env=environment(place), capture_output=True,
                          text=True, timeout=HANGS_S)


def adapter(place: Path, out: str) -> dict[str, LowRank]:
    return dict(read_adapter(place / out / "adapter", open_checkpoint(place / "tiny.gguf").config).low_ranks)


def test_two_ranks_write_the_adapter_of_one_process(place: Path) -> None:
    one, two = adapter(place, "one"), adapter(place, "two")
    assert one.keys() == two.keys()
    for name in one:
        assert np.abs(one[name].a - two[name].a).max() < WEIGHTS, name
        assert np.abs(one[name].b - two[name].b).max() < WEIGHTS, name
    assert run_folder.read_identity(place / "two").settings["processes"] == 2


def test_only_the_first_rank_speaks_and_proves_what_is_served(place: Path) -> None:
    names = [json.loads(line)["event"] for line in (place / "two.jsonl").read_text().splitlines()]
    assert [names.count(name) for name in ("data", "plan", "start", "step", "done")] == [1, 1, 1, 6, 1]
    done = json.loads((place / "two.jsonl").read_text().splitlines()[-1])
    assert done["parity"]["passed"]


def test_ranks_go_on_to_the_same_adapter(place: Path) -> None:
    shutil.copytree(place / "two", place / "cut")
    shutil.rmtree(place / "cut" / "checkpoints" / "step-00000006")
    shutil.rmtree(place / "cut" / "adapter")
    done = launch(place, "cut", "--steps", "6", "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    name = "adapter/adapter_model.safetensors"
    assert (place / "cut" / name).read_bytes() == (place / "two" / name).read_bytes()


def test_a_run_of_ranks_goes_on_as_no_other(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(place, "two", "--steps", "6", "--resume", "--parity-rows", "0")) == 1
    assert "processes was 2, is None" in capsys.readouterr().err


def test_what_ranks_cannot_do_is_said_once(place: Path) -> None:
    done = launch(place, "refused", "--optimizer", "adamw8")
    assert done.returncode == 1 and not (place / "refused").exists()
    assert done.stderr.count("brise: error: the optimiser is adamw8, under torchrun allowed is adamw") == 1


def test_ctrl_c_stops_all_ranks_behind_a_checkpoint(place: Path) -> None:
    command = [*TORCHRUN, *words(place, "long", "--steps", "100000", "--json")]
    ended = interrupted(command, environment(place))
    assert ended.status != 0 and ended.last["event"] == "interrupted" and "--resume" in ended.said
    assert (place / "long" / "checkpoints" / f"step-{ended.last['step']:08}").is_dir()
    assert "terminate called" not in ended.said
