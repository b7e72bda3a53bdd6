"""Steps that nobody waits for: on threads of the lowest priority, with the numbers of any other step."""

from __future__ import annotations

import gc
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brise.backends.native.backend import NativeBackend, NativeRunner
from brise.models.batch import Batch
from brise.models.weights import place
from tests.backends.inputs import packed_batch
from tests.goldens import golden
from tests.waiting import wait_until


def opened(name: str, threads: int) -> NativeRunner:
    tiny, backend = golden.read(name, "half"), NativeBackend(threads=threads)
    return NativeRunner(backend, tiny.config, place(tiny.weights, backend.place))


def batch(tokens: int) -> Batch:
    made = packed_batch([(0, tokens)], None, 16)
    return replace(made, tokens=np.arange(tokens, dtype=np.int32) % 7, rows=np.arange(min(tokens, 4), dtype=np.int32))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_a_step_in_the_background_has_the_same_bits(name: str, threads: int) -> None:
    runner = opened(name, threads)
    for tokens in (1, 5, 40):
        step = batch(tokens)
        assert (runner.logits(step) == runner.logits(replace(step, background=True))).all()


def test_it_takes_turns_with_other_steps() -> None:
    runner = opened("qwen3", 3)
    steps = [batch(tokens) for tokens in (1, 9, 2, 33)]
    expected = [runner.logits(step) for step in steps]
    work_bytes = runner.work_bytes
    for turn in range(400):
        step = steps[turn % 4]
        assert (runner.logits(replace(step, background=turn % 3 == 0)) == expected[turn % 4]).all()
    assert runner.work_bytes == work_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
def test_as_many_threads_more_have_the_lowest_priority_and_the_others_keep_theirs() -> None:
    def idle() -> int:
        threads = [int(task.name) for task in Path("/proc/self/task").iterdir()]
        return sum(os.sched_getscheduler(thread) == os.SCHED_IDLE for thread in threads)

    gc.collect()  # backends of other tests
    before, runner = idle(), opened("qwen3", 2)
    runner.logits(batch(3))
    assert idle() == before
    runner.logits(replace(batch(3), background=True))
    wait_until(lambda: idle() == before + 2)  # each sets its own when it begins
    del runner
    gc.collect()
    assert idle() == before
