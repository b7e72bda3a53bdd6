"""Files whose matrices have several formats, as llama.cpp writes where rows are no multiple of 256 numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brise.backends.reference.ops import ReferenceOps
from brise.checkpoint.gguf.file import open_gguf
from brise.checkpoint.gguf.read_model import read_config, read_weights
from brise.memory.model_header import read_header
from brise.memory.serving_plan import MemoryRequest, make
from brise.models import decoder
from brise.models.batch import Batch
from brise.models.weights import Array, Weight, place
from tests import tolerances
from tests.backends.emulate import RoundedActivationOps
from tests.backends.inputs import packed_batch
from tests.backends.under_test import UnderTest
from tests.checkpoint.make_gguf import write_tiny

TOKENS = np.random.default_rng(5).integers(3, 280, 20).astype(np.int32)
MIXES = [("Q2_K", "IQ4_NL"), ("Q3_K", "IQ4_NL"), ("IQ4_XS", "IQ4_NL"), ("MXFP4", "MXFP4")]


def batch(first: int, count: int) -> Batch:
    made = packed_batch([(first, count)], [[0, 1]])
    return Batch(TOKENS[first:first + count], made.positions, made.query_starts, np.arange(count, dtype=np.int32),
                 made.page_table, made.slots)


@pytest.mark.parametrize(("format", "fallback"), MIXES)
def test_logits_are_those_of_the_files_numbers(under_test: UnderTest, tmp_path: Path, format: str,
                                               fallback: str) -> None:
    file = open_gguf(write_tiny(tmp_path / "m.gguf", "llama", format=format, fallback=fallback))
    assert {tensor.format for tensor in file.tensors.values()} == {"F32", format, fallback}
    config, weights = read_config(file), read_weights(file, read_config(file))
    whole = replace(batch(0, len(TOKENS)), page_table=None, slots=None)
    exact, emulated = (decoder.forward(ops, config, weights, whole) for ops in (ReferenceOps(), RoundedActivationOps()))
    placed = place(weights, under_test.backend.place)

    def logits(parts: list[int]) -> Array:
        cache = under_test.backend.new_cache(config, 2, 16, "f32")
        runner = under_test.backend.runner(config, placed, len(TOKENS))
        starts = np.cumsum([0, *parts[:-1]])
        return np.concatenate([runner.logits(batch(int(first), count), cache)
                               for first, count in zip(starts, parts, strict=True)])

    prompt = logits([len(TOKENS)])
    if not under_test.is_quantized:
        assert np.abs(prompt - exact).max() <= tolerances.GOLDEN_LOGITS * np.abs(exact).max()
        return
    rms = [np.sqrt(np.mean((one - exact)**2)) for one in (prompt, emulated)]
    assert 0 < rms[0] < tolerances.SMOLLM2_NATIVE_OVER_EMULATED * rms[1]
    assert np.array_equal(prompt, logits([7, *[1] * 13]))


@pytest.mark.parametrize(("format", "fallback"), MIXES)
def test_the_plan_has_the_bytes_that_are_placed(tmp_path: Path, format: str, fallback: str) -> None:
    native = pytest.importorskip("brise.backends.native.backend").NativeBackend()
    path = write_tiny(tmp_path / "m.gguf", "llama", format=format, fallback=fallback)
    total = 0

    def count(name: str, weight: Weight) -> Weight:
        nonlocal total
        made: Weight = native.place(name, weight)
        total += native.nbytes(made).host
        return made

    file = open_gguf(path)
    place(read_weights(file, read_config(file)), count)
    assert make(read_header(path, "m"), MemoryRequest(), native).weights_bytes == total
