"""The measurements of `brise bench`: each drives the engine directly and takes one time."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from brise.engine.engine import Engine, EngineSettings
from brise.engine.model import LoadedModel
from brise.engine.request import Request, Sampling
from brise.errors import BriseError
from brise.models.batch import PAGE_SIZE

CHAT = """
import sys
from brise.cli.main import main
status = main(["chat", *sys.argv[1:]])
from brise.cli.bench_runs import peak_bytes
sys.stderr.write(f"{peak_bytes()}\\n")
sys.exit(status)
"""


@dataclass(frozen=True)
class Rate:
    """`tokens` in `seconds`."""

    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Start:
    """A fresh `brise chat` process: from its start to the first token, and the most memory it had."""

    seconds: float
    peak_bytes: int


class BenchEngine:
    """An engine with room for `num_sequences` of `max_tokens`, and no prefix cache to cheat with."""

    def __init__(self, model: LoadedModel, num_sequences: int, max_tokens: int) -> None:
        self._vocab_size = min(model.config.vocab_size, model.tokenizer.vocab_size)
        self._engine = Engine(model, EngineSettings(
            max_context=min(max_tokens, model.config.max_context), page_size=PAGE_SIZE,
            num_pages=num_sequences * -(-max_tokens // PAGE_SIZE),
            max_sequences=num_sequences, max_waiting=num_sequences, prefix_cache=False))

    def prefill(self, length: int) -> Rate:
        """One prompt of `length` tokens, up to its first picked token."""
        self._submit(0, length, max_tokens=1)
        start = time.perf_counter()
        while self._engine.has_work:
            self._step()
        return Rate(length, time.perf_counter() - start)

    def decode(self, num_sequences: int, depth: int, steps: int) -> Rate:
        """`steps` tokens for each of the sequences, which hold `depth` tokens at the start.

        Counted is the time in which all of them are under way: a long queue of prompts takes several steps.
        """
        ids = {self._submit(index, depth, max_tokens=steps + 1) for index in range(num_sequences)}
        started: set[str] = set()
        while started < ids:
            started |= self._step().keys()
        count, start = 0, time.perf_counter()
        while True:
            tokens = self._step()
            count += sum(number for number, _ in tokens.values())
            if any(is_last for _, is_last in tokens.values()):
                break
        seconds = time.perf_counter() - start
        while self._engine.has_work:
            self._step()
        return Rate(count, seconds)

    def _submit(self, index: int, length: int, max_tokens: int) -> str:
        """A prompt from all over the vocabulary, the same in each run; its answer never ends early."""
        prompt = tuple((7919 * (position + 1) + 104729 * index) % self._vocab_size
                       for position in range(length))
        return self._engine.submit(Request(prompt, max_tokens, Sampling(temperature=0), ignore_eos=True))

    def _step(self) -> dict[str, tuple[int, bool]]:
        """How many tokens each request got, and whether that was its end."""
        deltas = self._engine.step()
        for delta in deltas:
            if delta.finish == "error":
                raise BriseError(f"the engine failed: {delta.error}")
        return {delta.request_id: (len(delta.tokens), delta.finish is not None) for delta in deltas}


def cold_start(path: Path, threads: int | None) -> Start:
    """A fresh Python process runs `brise chat` for one token; files are in the page cache by then."""
    options = ["--max-tokens", "1", "--temperature", "0", *(["--threads", str(threads)] if threads else [])]
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", CHAT, str(path), "hi", *options], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None  # as asked for above
        child.stdout.read(1)
        seconds = time.perf_counter() - start
        _, log = child.communicate()
    words = log.decode(errors="replace").strip().splitlines()
    if child.returncode or not words or not words[-1].isdigit():
        raise BriseError(f"`brise chat` failed while its start was measured: {' '.join(words[-3:])}")
    return Start(seconds, int(words[-1]))


def repeat(runs: int, measure: Callable[[], Rate]) -> list[Rate]:
    """`runs` measurements after one that is thrown away, which touches memory for the first time."""
    measure()
    return [measure() for _ in range(runs)]


def peak_bytes() -> int:
    """The most memory this process had. On Linux ru_maxrss would count the parent's before exec too."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
