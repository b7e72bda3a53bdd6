"""Compiles and runs limits.cpp: what this machine allows, and the canary: whether it is ours just now."""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

READ_MEGABYTES = 1024  # more than any last-level cache


@dataclass(frozen=True)
class Limits:
    """The best rates seen, all threads together."""

    read_bytes_per_s: float
    int8_per_s: float  # multiply-add counts as two; 0: not known how to measure here


class Machine:
    """The compiled program, and the canary's undisturbed rate: the best seen so far."""

    def __init__(self, folder: Path, threads: int) -> None:
        compiler = shutil.which("c++") or shutil.which("g++")
        if compiler is None:
            raise SystemExit("compare: error: no C++ compiler\nhint: apt install g++")
        self._program = folder / "limits"
        native = ["-mcpu=native"] if platform.machine() == "aarch64" else ["-march=native"]
        source = Path(__file__).with_name("limits.cpp")
        subprocess.run([compiler, "-O3", "-std=c++20", *native, "-pthread", source, "-o", self._program],
                       check=True)
        self._threads = threads
        # One thread alone finds a free core more easily, so that a busy machine does not pass as a slow one.
        self.best_spin = max(self._run("spin", number) for number in [1, threads] * 5)

    def limits(self, rounds: int = 5) -> Limits:
        """The best of several rounds: others can only take away."""
        return Limits(
            read_bytes_per_s=max(self._run("read", READ_MEGABYTES, self._threads) for _ in range(rounds)),
            int8_per_s=max(self._run("int8", self._threads) for _ in range(rounds)))

    def calm(self) -> float:
        """The canary's rate as a share of its best: under 0.9 somebody else uses the cores."""
        rate = self._run("spin", self._threads)
        self.best_spin = max(self.best_spin, rate)
        return rate / self.best_spin

    def _run(self, test: str, *numbers: int) -> float:
        done = subprocess.run([self._program, test, *map(str, numbers)], check=True, capture_output=True, text=True)
        return float(done.stdout)
