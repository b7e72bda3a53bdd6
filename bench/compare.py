"""Runs one GGUF through brise and llama.cpp in turn; prints ratios and shares of the machine's limits.

Each engine is a process of its own; runs alternate A B A B. A fixed spin loop before and after each run says
whether the machine was ours: a run where it was 10 % slower than at its best is repeated. Medians.
llama.cpp's times hold no sampling; brise's hold its scheduler and sampling.

    python bench/compare.py MODEL.gguf --threads 2 --peer-python ~/llama/bin/python
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median

from brise.checkpoint.gguf.file import GgufFile, open_gguf
from brise.evals.speed import cold_start
from limits import Limits, Machine
from measured import Worker

FOLDER = Path(__file__).parent
CALM = 0.9
WAIT_S = 3.0


@dataclass
class Series:
    """All runs of one engine in one test: those kept, and how many were disturbed."""

    values: list[float] = field(default_factory=list)
    num_repeated: int = 0
    num_disturbed: int = 0  # kept all the same, the repeats were used up


Pair = dict[str, Series]  # "brise" and "llama.cpp"


@dataclass(frozen=True)
class Row:
    """One test's result. A ratio over 1 means that brise is better; `shares` of the limit that `of` names."""

    name: str
    unit: str
    medians: dict[str, float]
    ratio: float
    runs: dict[str, list[float]]
    num_repeated: int
    num_disturbed: int
    of: str = ""
    shares: dict[str, float] = field(default_factory=dict)


def main() -> int:
    options = _arguments().parse_args()
    peer = [options.peer_python, str(FOLDER / "worker_llama.py"), str(options.model),
            "--threads", str(options.threads), "--flash", str(options.flash),
            "--unified", str(options.unified)]
    ours = [sys.executable, str(FOLDER / "worker_brise.py"), str(options.model),
            "--threads", str(options.threads)]
    with tempfile.TemporaryDirectory() as folder:
        _note("limits of this machine")
        machine = Machine(Path(folder), options.threads)
        before = machine.limits()
        starts = _alternate(options, machine, "cold start", {
            "brise": lambda: cold_start(options.model, options.threads).seconds,
            "llama.cpp": lambda: _peer_start(peer)[0]})
        peaks = {"brise": cold_start(options.model, options.threads).peak_bytes,
                 "llama.cpp": _peer_start(peer)[1]}
        context = ["--context", str(max(options.prompt, options.depth + options.decode) + 16)]
        tests: dict[str, Pair] = {}
        with Worker([*ours, *context]) as a, Worker([*peer, *context]) as b:
            for name, command in _commands(options).items():
                tests[name] = _alternate(options, machine, name, {
                    "brise": _rate(a, command), "llama.cpp": _rate(b, command)})
        after = machine.limits()
    limits = Limits(max(before.read_bytes_per_s, after.read_bytes_per_s), max(before.int8_per_s, after.int8_per_s))
    with open_gguf(options.model) as gguf:
        rows = [_start_row(starts), *_rows(gguf, limits, tests)]
    report = {"model": options.model.name, "threads": options.threads, "flash": options.flash,
              "unified": options.unified, "versions": {"brise": a.version, "llama-cpp-python": b.version},
              "limits": asdict(limits), "spin_per_s": machine.best_spin,
              "tests": [asdict(row) for row in rows], "peak_bytes": peaks}
    sys.stdout.write(_table(rows, peaks) + "\n" + json.dumps(report) + "\n")
    return 0


def _arguments() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("model", type=Path, help="a .gguf file")
    arguments.add_argument("--peer-python", default=sys.executable, help="a Python that has llama-cpp-python")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--repeats", type=int, default=3, help="most repeats of a disturbed run")
    arguments.add_argument("--prompt", type=int, default=512)
    arguments.add_argument("--decode", type=int, default=128)
    arguments.add_argument("--depth", type=int, default=32)
    arguments.add_argument("--sequences", type=int, default=8)
    arguments.add_argument("--flash", type=int, choices=(0, 1), default=1, help="llama.cpp's flash attention")
    arguments.add_argument("--unified", type=int, choices=(0, 1), default=0,
                           help="llama.cpp: one cache for all sequences")
    return arguments


def _commands(options: argparse.Namespace) -> dict[str, str]:
    depth, steps, sequences = options.depth, options.decode, options.sequences
    return {f"prefill {options.prompt}": f"prefill {options.prompt}",
            f"decode {steps} at depth {depth}": f"decode 1 {depth} {steps}",
            f"{sequences} sequences at once": f"decode {sequences} {depth} {steps}"}


def _rate(worker: Worker, command: str) -> Callable[[], float]:
    worker.ask(command)  # the first run of a shape touches its memory

    def rate() -> float:
        times = worker.ask(command)
        return float(times["tokens"]) / float(times["seconds"])

    return rate


def _alternate(options: argparse.Namespace, machine: Machine, name: str,
               measures: dict[str, Callable[[], float]]) -> Pair:
    pair = {engine: Series() for engine in measures}
    for number in range(options.runs):
        for engine, measure in measures.items():
            _once(machine, measure, pair[engine], options.repeats)
            _note(f"{name}, run {number + 1} of {options.runs}, {engine}: {pair[engine].values[-1]:.2f}")
    return pair


def _once(machine: Machine, measure: Callable[[], float], series: Series, repeats: int) -> None:
    for attempt in range(repeats + 1):
        before = machine.calm()
        if before < CALM and attempt < repeats:
            time.sleep(WAIT_S)  # no use to measure; whoever it is may be done soon
            series.num_repeated += 1
            continue
        value = measure()
        is_calm = min(before, machine.calm()) >= CALM
        if is_calm or attempt == repeats:
            series.values.append(value)
            series.num_disturbed += not is_calm
            return
        series.num_repeated += 1


def _peer_start(command: list[str]) -> tuple[float, int]:
    """Seconds to the first token of a fresh process, and its most memory."""
    start = time.perf_counter()
    with subprocess.Popen([*command, "--first-token", "hi"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seconds = time.perf_counter() - start
        return seconds, int(json.loads(process.stdout.readline())["peak_bytes"])


def _start_row(pair: Pair) -> Row:
    row = _row("cold start", "s", pair)
    return replace(row, ratio=1 / row.ratio)


def _rows(gguf: GgufFile, limits: Limits, tests: dict[str, Pair]) -> Iterator[Row]:
    token_bytes, token_operations = _work(gguf)
    for name, pair in tests.items():
        if name.startswith("decode"):
            of, limit = "memory bandwidth", limits.read_bytes_per_s / token_bytes
        else:
            of, limit = "int8 peak", limits.int8_per_s / token_operations
        row = _row(name, "tokens/s", pair)
        shares = {engine: value / limit for engine, value in row.medians.items()} if limit else {}
        yield replace(row, of=of, shares=shares)


def _row(name: str, unit: str, pair: Pair) -> Row:
    medians = {engine: median(series.values) for engine, series in pair.items()}
    return Row(name, unit, medians, medians["brise"] / medians["llama.cpp"],
               {engine: series.values for engine, series in pair.items()},
               sum(series.num_repeated for series in pair.values()),
               sum(series.num_disturbed for series in pair.values()))


def _work(gguf: GgufFile) -> tuple[int, int]:
    """Bytes that a decode step reads, and int8 operations of the layers for one token.

    An embedding of its own is looked up, not read; one that is tied to the output is read as the output.
    """
    num_bytes = num_weights = 0
    for name, tensor in gguf.tensors.items():
        if name != "token_embd.weight" or "output.weight" not in gguf.tensors:
            num_bytes += tensor.nbytes
        if name.startswith("blk.") and len(tensor.shape) == 2:
            num_weights += tensor.shape[0] * tensor.shape[1]
    return num_bytes, 2 * num_weights


def _table(rows: list[Row], peaks: dict[str, int]) -> str:
    """Markdown, for a README."""
    lines = ["| test | brise | llama.cpp | ratio | share, brise | share, llama.cpp | repeated | disturbed |",
             "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        shares = [f"{row.shares[engine]:.0%} of {row.of}" if row.shares else "" for engine in row.medians]
        values = [f"{value:.4g}" for value in row.medians.values()]
        lines.append(f"| {row.name}, {row.unit} | {' | '.join(values)} | {row.ratio:.2f} | "
                     f"{' | '.join(shares)} | {row.num_repeated} | {row.num_disturbed} |")
    ratio = peaks["llama.cpp"] / peaks["brise"]
    lines.append(f"| most memory of a short chat, MB | {peaks['brise'] / 1e6:.0f} | "
                 f"{peaks['llama.cpp'] / 1e6:.0f} | {ratio:.2f} | | | | |")
    return "\n".join(lines)


def _note(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
