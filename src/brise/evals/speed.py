"""Measures a model on this machine: prefill, decode, several sequences at once, a cold start, and memory."""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brise import __version__, settings
from brise.checkpoint.model_files import find_layout
from brise.engine.engine import Engine, EngineSettings
from brise.engine.model import LoadedModel, load
from brise.engine.request import Request, Sampling
from brise.errors import BriseError, ContextLengthError
from brise.hub.locate import find_model
from brise.memory.process import peak_bytes

# A chat in a process of its own, which prints its peak memory at the end.
CHAT = """
import runpy, sys
from brise.memory.process import peak_bytes
sys.argv = ["brise", "chat", *sys.argv[1:]]
try:
    runpy.run_module("brise", run_name="__main__")
finally:
    sys.stderr.write(f"{peak_bytes()}\\n")
"""


@dataclass(frozen=True)
class SpeedOptions:
    """What is measured. Each measurement runs `runs` times, and the median is reported.

    prompt: prompt length for prefill in tokens. decode: tokens to decode. depth: tokens in each sequence before
    decoding starts. sequences: how many sequences are decoded at once, one measurement each. threads: of the kernels;
    None: BRISE_THREADS, or one per core. device: where the model runs.
    """

    model: str
    prompt: int = 512
    decode: int = 128
    depth: int = 32
    sequences: Sequence[int] = (1, 8)
    threads: int | None = None
    runs: int = 5
    device: str = "cpu"


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
    """A new `brise chat` process: the time from its start to the first token, and its peak memory."""

    seconds: float
    peak_bytes: int


class BenchEngine:
    """An engine with room for `num_sequences` of `max_tokens`, without the prefix cache, which would skip work."""

    def __init__(self, model: LoadedModel, num_sequences: int, max_tokens: int) -> None:
        self._vocab_size = min(model.config.vocab_size, model.tokenizer.vocab_size)
        self._engine = Engine(model, EngineSettings(
            max_context=min(max_tokens, model.config.max_context),
            num_pages=num_sequences * -(-max_tokens // EngineSettings.page_size),
            max_sequences=num_sequences, max_waiting=num_sequences, prefix_cache=False))

    def prefill(self, length: int) -> Rate:
        """One prompt of `length` tokens, up to its first sampled token."""
        self._submit(0, length, max_tokens=1)
        start = time.perf_counter()
        while self._engine.has_work:
            self._step()
        return Rate(length, time.perf_counter() - start)

    def decode(self, num_sequences: int, depth: int, steps: int) -> Rate:
        """`steps` tokens for each of the sequences, which hold `depth` tokens at the start.

        Only the time in which all of them decode is counted: a long queue of prompts takes several steps.
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
        """Queues a prompt of tokens from the whole vocabulary, the same in each run; its answer never ends early."""
        prompt = tuple((7919 * (position + 1) + 104729 * index) % self._vocab_size
                       for position in range(length))
        return self._engine.submit(Request(prompt, max_tokens, Sampling(temperature=0), ignore_eos=True))

    def _step(self) -> dict[str, tuple[int, bool]]:
        """Runs a step: how many tokens each request got, and whether it has ended."""
        deltas = self._engine.step()
        for delta in deltas:
            if delta.finish == "error":
                raise BriseError(f"the engine failed: {delta.error}")
        return {delta.request_id: (len(delta.tokens), delta.finish is not None) for delta in deltas}


@dataclass(frozen=True)
class SpeedReport:
    """All runs of each measurement; `concurrent` by the number of sequences, `starts` empty without a chat template."""

    options: SpeedOptions
    name: str
    file_bytes: int
    backend: Mapping[str, str | int]
    machine: str
    prefill: Sequence[Rate]
    decode: Sequence[Rate]
    concurrent: Mapping[int, Sequence[Rate]]
    starts: Sequence[Start]
    peak_bytes: int

    def document(self) -> dict[str, object]:
        """The report as JSON; rates are in tokens per second."""
        return {
            "model": self.name, "brise": __version__, "file_bytes": self.file_bytes, **self.backend,
            "machine": self.machine, "runs": self.options.runs, "prompt": self.options.prompt,
            "decode": self.options.decode, "depth": self.options.depth,
            "prefill_tokens_per_s": median(self.prefill), "prefill_runs": _rounded(self.prefill),
            "decode_tokens_per_s": median(self.decode), "decode_runs": _rounded(self.decode),
            "concurrent_tokens_per_s": {str(n): median(rates) for n, rates in self.concurrent.items()},
            "concurrent_runs": {str(n): _rounded(rates) for n, rates in self.concurrent.items()},
            "cold_start_s": _middle([start.seconds for start in self.starts]),
            "cold_start_runs": [round(start.seconds, 4) for start in self.starts],
            "chat_peak_bytes": max((start.peak_bytes for start in self.starts), default=None),
            "bench_peak_bytes": self.peak_bytes,
        }


def measure(options: SpeedOptions, note: Callable[[str], None] = lambda text: None) -> SpeedReport:
    """Loads the model and measures it; `note` is called with the name of each step."""
    threads = options.threads or settings.read().threads
    located = find_model(options.model, settings.read())
    note(f"loading {located.name} from {located.path}")
    model = load(located.path, threads=threads, device=options.device)
    longest = max(options.prompt + 1, options.depth + options.decode + 1)
    if longest > model.config.max_context:
        shown = max(options.prompt, options.depth)
        raise ContextLengthError(shown, longest - shown, model.config.max_context)
    starts: list[Start] = []
    if model.chat is not None:
        note(f"cold start: {options.runs} processes")
        starts = [cold_start(located.path, threads, options.device) for _ in range(options.runs + 1)][1:]
    engine = BenchEngine(model, max(options.sequences), longest)
    note(f"prefill of {options.prompt} tokens")
    prefill = repeat(options.runs, lambda: engine.prefill(options.prompt))

    def decode(num_sequences: int) -> list[Rate]:
        note(f"decode of {options.decode} tokens, sequences: {num_sequences}")
        return repeat(options.runs, lambda: engine.decode(num_sequences, options.depth, options.decode))

    one = decode(1)
    concurrent = {number: one if number == 1 else decode(number) for number in options.sequences}
    file_bytes = sum(file.stat().st_size for file in find_layout(located.path).files)
    return SpeedReport(options, located.name, file_bytes, model.backend.facts(), _machine(), prefill, one, concurrent,
                       starts, peak_bytes())


def cold_start(path: Path, threads: int | None, device: str = "cpu") -> Start:
    """Runs `brise chat` for one token in a new Python process; its files are in the page cache by then."""
    options = ["--max-tokens", "1", "--temperature", "0", "--device", device,
               *(["--threads", str(threads)] if threads else [])]
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
    """`runs` measurements, after one that is discarded because it touches memory for the first time."""
    measure()
    return [measure() for _ in range(runs)]


def median(rates: Sequence[Rate]) -> float:
    """The median in tokens per second."""
    return round(statistics.median(rate.tokens_per_s for rate in rates), 2)


def _middle(values: Sequence[float]) -> float | None:
    return round(statistics.median(values), 4) if values else None


def _rounded(rates: Sequence[Rate]) -> list[float]:
    return [round(rate.tokens_per_s, 2) for rate in rates]


def _machine() -> str:
    """The processor's name if Linux reports it."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines()
             if line.startswith("model name")] if info.is_file() else []
    return f"{names[0] if names else platform.machine()}, {len(names) or 'some'} CPUs"
