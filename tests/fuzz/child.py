"""Fuzzes one parser for a while, guided by coverage (atheris). tests/fuzz/run.py starts it."""

from __future__ import annotations

import json
import resource
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["brise"], enable_loader_override=False):
    from tests.fuzz import mutate
    from tests.fuzz.parsers import named
    from tests.fuzz.target import PASSED, Target

SAY_S = 1.0
MOST_FINDINGS = 20  # kept inputs of one parser


@dataclass
class Tally:
    """What is known so far; a file says it, because a crash of the process ends the run."""

    inputs: int = 0
    slowest_s: float = 0.0
    slowest: str = ""
    findings: dict[str, str] = field(default_factory=dict)  # what it is, and the file with its input


class Fuzzer:
    """Runs inputs and counts."""

    def __init__(self, target: Target, out: Path) -> None:
        self._target, self._out, self.tally = target, out, Tally()
        self._said_s = time.monotonic()
        self._peak = _peak_bytes()
        self._is_warm = False

    def once(self, data: bytes) -> None:
        """One input."""
        begin_s = time.process_time()
        error = self._target.outcome(data)
        seconds = time.process_time() - begin_s
        peak, self._peak = self._peak, _peak_bytes()
        self.tally.inputs += 1
        if error is not None:
            self._found(_words(error), data, "".join(traceback.format_exception(error)))
        if self._is_warm:  # what is loaded once is no part of an input's cost
            if seconds > self._target.slow_s + self._target.slow_s_a_byte * len(data):
                self._found("slow", data, f"{seconds:.2f} s for {len(data)} bytes")
            if self._peak - peak > self._target.large_bytes + self._target.large_bytes_a_byte * len(data):
                self._found("large", data, f"{(self._peak - peak) >> 20} MB for {len(data)} bytes")
            if seconds > self.tally.slowest_s:
                self.tally.slowest_s, self.tally.slowest = seconds, self._kept("slowest", data)
        self._is_warm = self.tally.inputs > len(self._target.seeds())
        if time.monotonic() > self._said_s + SAY_S:
            self.say()

    def say(self) -> None:
        """Writes the tally down."""
        self._said_s = time.monotonic()
        staged = self._out / "tally.new"
        staged.write_text(json.dumps(asdict(self.tally)))
        staged.replace(self._out / "tally.json")

    def _found(self, what: str, data: bytes, details: str) -> None:
        if what in self.tally.findings or len(self.tally.findings) >= MOST_FINDINGS:
            return
        name = self._kept(f"finding-{sha256(what.encode()).hexdigest()[:8]}", data)
        (self._out / f"{name}.txt").write_text(f"{what}\n{details}")
        self.tally.findings[what] = name
        self.say()

    def _kept(self, name: str, data: bytes) -> str:
        (self._out / name).write_bytes(data)
        return name


def _words(error: BaseException) -> str:
    """The kind of an error and the last line of brise that it came through: one finding, however many inputs."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/brise/" in frame.filename]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "-"
    return f"{type(error).__name__} at {place}" + (f": {error}"[:80] if isinstance(error, AssertionError) else "")


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def main() -> None:
    """Arguments: the parser's name, the folder for what is found, and those of libFuzzer."""
    name, out, *more = sys.argv[1:]
    target = named(name)
    fuzzer = Fuzzer(target, Path(out))

    def changed(data: bytes, max_size: int, seed: int) -> bytes:
        return mutate.changed(data, max_size, seed, atheris.Mutate, by_line=target.form == "lines")

    atheris.Setup([sys.argv[0], *more], fuzzer.once, **({} if target.form == "bytes" else {"custom_mutator": changed}))
    try:
        atheris.Fuzz()
    except PASSED:
        fuzzer.say()
        raise


if __name__ == "__main__":
    main()
