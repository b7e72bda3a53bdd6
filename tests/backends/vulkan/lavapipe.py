"""Shaders on Mesa's software device with subgroups of 4, 8 and 16: each runs on all three, whose bits must be equal.

The width is fixed when the driver starts, so each has a process. `python -m tests.backends.vulkan.lavapipe` is one: it
reads pickled calls from its input and answers on its output.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from brise import _native
from brise.models.weights import Array

VECTOR_WIDTHS = (128, 256, 512)  # bits: subgroups of 4, 8 and 16
_ROOT = Path(__file__).resolve().parents[3]


class Lavapipe:
    """The software device at the three widths."""

    def __init__(self) -> None:
        self._processes = [_start(width) for width in VECTOR_WIDTHS]

    def dispatch(self, shader: str, buffers: Sequence[Array], push: bytes, groups: tuple[int, int, int],
                 constants: Sequence[int] = ()) -> list[Array]:
        """The buffers after one run of the shader; the buffers given are left alone."""
        flat = [np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in buffers]
        call = (shader, flat, push, groups, list(constants))
        for process in self._processes:
            assert process.stdin is not None
            pickle.dump(call, process.stdin)
            process.stdin.flush()
        answers = [_answer(process) for process in self._processes]
        for width, answer in zip(VECTOR_WIDTHS[1:], answers[1:], strict=True):
            for binding, (one, other) in enumerate(zip(answers[0], answer, strict=True)):
                same = one.tobytes() == other.tobytes()
                assert same, f"{shader}: binding {binding} has other bits at {width} than at {VECTOR_WIDTHS[0]}"
        return [one.view(x.dtype).reshape(x.shape) for one, x in zip(answers[0], buffers, strict=True)]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.communicate(timeout=60)


def _start(width: int) -> subprocess.Popen[bytes]:
    icds = sorted(str(path) for path in Path("/usr/share/vulkan/icd.d").glob("lvp_icd*.json"))
    environment = {**os.environ, "LP_NATIVE_VECTOR_WIDTH": str(width), "LP_NUM_THREADS": "1"}
    if icds:
        environment |= {"VK_ICD_FILENAMES": icds[0], "VK_DRIVER_FILES": icds[0]}
    return subprocess.Popen([sys.executable, "-m", __name__], cwd=_ROOT, env=environment, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE)


def _answer(process: subprocess.Popen[bytes]) -> list[Array]:
    assert process.stdout is not None
    answer = pickle.load(process.stdout)
    if isinstance(answer, str):
        raise RuntimeError(answer)
    out: list[Array] = answer
    return out


def _serve(calls: BinaryIO, answers: BinaryIO) -> None:
    device: Any = _native.VulkanDevice("")
    while True:
        try:
            shader, buffers, push, groups, constants = pickle.load(calls)
        except EOFError:
            return
        try:
            answer: Any = device.dispatch(shader, buffers, push, groups, constants)
        except Exception as error:  # goes to the test
            answer = f"{type(error).__name__}: {error}"
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
