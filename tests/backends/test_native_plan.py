"""A program over shape-only weights says what its steps take."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from brise import _native
from brise.backends.native.backend import NativeBackend, NativeRunner
from brise.errors import UnsupportedError
from brise.models.batch import Batch
from brise.models.ops import Room
from brise.models.weights import Dense, Quant, place
from brise.quant.formats import FORMATS
from tests.backends.inputs import packed_batch
from tests.goldens import golden

SIZES = ((1, 1), (7, 1), (40, 3), (5, 5))


def batch(tokens: int, rows: int) -> Batch:
    made = packed_batch([(0, tokens)], None, 16)
    return replace(made, tokens=np.zeros(tokens, np.int32), rows=np.arange(rows, dtype=np.int32))


@pytest.mark.parametrize("name", ["ministral3_yarn1_untied", "qwen3", "smollm3", "gemma3"])
@pytest.mark.parametrize("size", SIZES)
def test_planned_is_what_a_step_takes(name: str, size: tuple[int, int]) -> None:
    tiny, backend = golden.read(name, "half"), NativeBackend(threads=2)
    planned = NativeRunner(backend, tiny.config, place(tiny.weights, backend.shape_only))
    loaded = NativeRunner(backend, tiny.config, place(tiny.weights, backend.place))
    loaded.logits(batch(*size))
    assert Room(loaded.work_bytes) == planned.planned_bytes(*size) == loaded.planned_bytes(*size)
    assert planned.work_bytes == 0


def test_a_planned_program_does_not_run() -> None:
    tiny, backend = golden.read("llama_tied", "half"), NativeBackend(threads=2)
    planned = NativeRunner(backend, tiny.config, place(tiny.weights, backend.shape_only))
    with pytest.raises(ValueError, match="a weight of it has no memory"):
        planned.logits(batch(2, 1))


@pytest.mark.parametrize("rows", [1, 16, 33])
@pytest.mark.parametrize("format", FORMATS)
def test_a_shape_only_weight_is_as_large_as_the_packed_one(format: str, rows: int) -> None:
    planned = _native.shape_only(format, rows, 256)
    packed = _native.Backend(1, "").pack(format, np.zeros((rows, FORMATS[format].row_bytes(256)), np.uint8), 256)
    assert planned.nbytes == packed.nbytes == _native.weight_bytes(format, rows, 256)


def test_a_vector_is_a_weight_without_columns() -> None:
    assert _native.vector(np.ones(40, np.float32)).nbytes == _native.weight_bytes("F32", 40, 0) == 160
    assert _native.shape_only("F32", 40, 0).nbytes == 160


@pytest.mark.parametrize("shape", [("Q4_0", 4, 33), ("Q9_9", 4, 32), ("F32", 0, 4), ("F32", -1, 0), ("F32", 4, -1)])
def test_a_weight_that_cannot_be_packed_cannot_be_planned(shape: tuple[str, int, int]) -> None:
    with pytest.raises(ValueError, match="columns|weight format|numbers"):
        _native.shape_only(*shape)
    with pytest.raises(ValueError, match="columns|weight format|numbers"):
        _native.weight_bytes(*shape)


def test_the_backend_names_the_weight_it_cannot_plan() -> None:
    with pytest.raises(UnsupportedError, match="wq"):
        NativeBackend().shape_only("wq", Quant("Q4_0", (4, 33), None))
    with pytest.raises(UnsupportedError, match="wq has 3 dimensions"):
        NativeBackend().shape_only("wq", Dense("F32", (4, 4, 4), None))
