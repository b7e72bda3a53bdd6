"""Experts that stay in the file: equal results with any budget, memory within the budget, and errors by name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from brise.engine.engine import Engine, EngineSettings
from brise.engine.model import LoadedModel, load
from brise.engine.request import Request, Sampling
from brise.errors import UnsupportedError
from brise.models.batch import Batch
from brise.models.ops import CacheFormat
from brise.models.weights import Array, Mixture
from tests.checkpoint.make_gguf import write_tiny

native_experts = pytest.importorskip("brise.backends.native.experts")
ROOT = Path(__file__).parent.parent.parent
TOKENS = np.arange(3, 43, dtype=np.int32)


@pytest.fixture(scope="module", params=["deepseek2", "mixtral"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("experts") / "tiny.gguf", request.param, format="Q8_0", tied=False)


def expert_bytes(model: LoadedModel) -> int:
    mixture = model.weights.layers[1].feed_forward
    assert isinstance(mixture, Mixture)
    return sum(native_experts.expert_stack(part).matrix_bytes for part in (mixture.w1, mixture.w2, mixture.w3))


def logits(model: LoadedModel, cache_format: CacheFormat = "f16") -> Array:
    """A prompt at once, then tokens one by one."""
    runner = model.backend.runner(model.config, model.weights, 64)
    cache = model.backend.new_cache(model.config, 3, 16, cache_format)
    parts = []
    for first, end in ((0, 32), *((token, token + 1) for token in range(32, 40))):
        positions = np.arange(first, end, dtype=np.int32)
        parts.append(runner.logits(Batch(TOKENS[first:end], positions, np.array([0, end - first], np.int32),
                                         positions - first, np.array([[0, 1, 2]], np.int32), positions), cache))
    return np.concatenate(parts)


@pytest.mark.parametrize("room", [1, 2, 6])
def test_logits_do_not_depend_on_how_many_experts_are_in_memory(path: Path, room: int) -> None:
    resident = load(path, threads=2)
    on_disk = load(path, threads=2, expert_bytes=room * expert_bytes(resident))
    np.testing.assert_array_equal(logits(on_disk), logits(resident))


def test_the_reference_agrees(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", "deepseek2", format="Q8_0", tied=False)
    # An exact cache: where two experts are nearly as good, the rounding of another one decides which a token gets.
    difference = logits(load(path, threads=2), "f32") - logits(load(path, backend="reference"), "f32")
    assert np.abs(difference).max() < 1  # activations are rounded to int8; another expert's numbers are off by more


def test_too_little_room_is_refused_with_what_an_expert_takes(path: Path) -> None:
    one = expert_bytes(load(path, threads=1))
    with pytest.raises(UnsupportedError, match=rf"expert_bytes is {one - 1}, an expert of layers\.[01] takes {one}"):
        load(path, threads=1, expert_bytes=one - 1)


def test_a_model_without_experts_and_the_reference_refuse_the_option(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no experts"):
        load(write_tiny(tmp_path / "m.gguf", "llama"), threads=1, expert_bytes=1 << 20)
    with pytest.raises(UnsupportedError, match="native backend"):
        load(path, backend="reference", expert_bytes=1 << 20)


def test_the_engine_answers_from_experts_on_disk(path: Path) -> None:
    model = load(path, threads=2, expert_bytes=2 * expert_bytes(load(path, threads=1)))
    engine = Engine(model, EngineSettings(num_pages=8))
    engine.submit(Request(prompt=(5, 6, 7), max_tokens=4, sampling=Sampling(temperature=0)))
    deltas = []
    while engine.has_work:
        deltas += engine.step()
    assert deltas[-1].finish in ("length", "stop")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 367 MB, of which 340 MB are experts of 3.5 MB."""
    path = tmp_path_factory.mktemp("large") / "mini.gguf"
    subprocess.run([sys.executable, ROOT / "bench" / "synthesize.py", "--shape", "large3-mini", "--mix", "Q4_0", path],
                   check=True, capture_output=True)
    return path


def peak(path: Path, expert_bytes: int | None) -> tuple[int, str]:
    """Peak resident bytes, file pages included, of a process that runs a prompt of 300 tokens; and its logits."""
    program = f"""
import hashlib, numpy as np
from brise.engine.model import load
from brise.models.batch import Batch
model = load({str(path)!r}, threads=2, expert_bytes={expert_bytes})
at = np.arange(300, dtype=np.int32)
pages = np.arange(19, dtype=np.int32)[None]
runner = model.backend.runner(model.config, model.weights, 512)
cache = model.backend.new_cache(model.config, 19, 16, "f16")
logits = runner.logits(Batch(at + 3, at, np.array([0, 300], np.int32), at[-1:], pages, at), cache)
print(hashlib.sha256(logits.tobytes()).hexdigest(), open("/proc/self/status").read())
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    peak = re.search(r"VmHWM:\s+(\d+) kB", result.stdout)
    assert peak
    return int(peak[1]) * 1024, result.stdout.split()[0]


@pytest.mark.slow
def test_peak_memory_stays_inside_the_room_for_experts(large: Path) -> None:
    room, experts = 30_000_000, 96 * 3_550_000
    whole, expected = peak(large, None)
    some, same = peak(large, room)
    assert same == expected
    # Pages of the file are released every 32 MiB. The peak of the whole model, which is loaded by then, has none.
    # An expert is packed by each of two threads while a third one waits to be forgotten.
    assert some < whole - experts + room + (32 << 20) + 3 * 3_550_000, (some, whole)
