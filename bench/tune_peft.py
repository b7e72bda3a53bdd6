"""Trains one model with brise and with transformers + PEFT in turn; prints speeds, memory and both loss curves.

Each trainer is a process of its own with the same rows in the same order, the same first matrices, rank, learning rate
and AdamW. Windows of a few steps alternate A B A B. A fixed spin loop before and after each says whether the machine
was ours; a window cannot be repeated without changing the curve, so those that were disturbed are counted, and medians
are over calm ones if there are any. A ratio is the median of the ratios of windows that stand side by side. Where
others take the cores, rates a second of the process's own CPU time say more; they are fairest with --threads 1, as
threads that wait for one another may spin.

    python bench/tune_peft.py FOLDER DATA.jsonl --threads 2
    python bench/tune_peft.py FOLDER DATA.jsonl --system-file tools.json --system-tokens 400
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import tune_work
from limits import Machine
from measured import Worker

FOLDER = Path(__file__).parent
CALM = 0.9
NAMES = ("brise", "peft")


@dataclass
class Series:
    """The windows of one trainer; the first is left out of speeds, as it touches memory."""

    windows: list[Mapping[str, Any]] = field(default_factory=list)
    calm: list[bool] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        return [loss for window in self.windows for loss in window["losses"]]

    def rates(self, what: str, clock: str = "seconds") -> list[float]:
        """Of every window that counts."""
        return [window[what] / window[clock] for window in self.windows[1:]]

    @property
    def peak_bytes(self) -> int:
        return max(int(window["peak_bytes"]) for window in self.windows)


def main() -> int:
    given = _arguments().parse_args()
    windows = given.windows + 1
    with tempfile.TemporaryDirectory() as name:
        work, machine = Path(name) / "work.npz", Machine(Path(name), given.threads)
        system = None
        if given.system_file is not None:
            system = tune_work.long_system(given.model, given.system_file, given.system_tokens)
        rows = tune_work.render(given.model, given.data, given.rows, system)
        tune_work.write(work, rows, windows * given.steps, given.batch, given.seed)
        base = [str(given.model), str(work), "--threads", str(given.threads)]
        series = {name: Series() for name in NAMES}
        with (Worker([sys.executable, str(FOLDER / "worker_tune.py"), *base, *given.brise.split()]) as ours,
              Worker([sys.executable, str(FOLDER / "worker_peft.py"), *base, *given.peft.split()]) as peers):
            workers = {"brise": ours, "peft": peers}
            for number in range(windows):
                for name in NAMES:
                    before = machine.calm()
                    series[name].windows.append(workers[name].ask(str(given.steps)))
                    series[name].calm.append(min(before, machine.calm()) >= CALM)
                    _note(number, windows, name, series[name])
    report = _report(series)
    sys.stdout.write(_table(report) + "\n" + json.dumps(
        report | {"versions": {name: workers[name].version for name in NAMES}, "batch": given.batch,
                  "mean_tokens": sum(len(tokens) for tokens, _ in rows) / len(rows), "threads": given.threads,
                  "losses": {name: series[name].losses for name in NAMES}}) + "\n")
    return 0


def _arguments() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("model", type=Path, help="a Hugging Face folder in float32")
    arguments.add_argument("data", type=Path, help="chat JSONL: the last message of each row is learned")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--steps", type=int, default=4, help="steps of a window")
    arguments.add_argument("--windows", type=int, default=5, help="windows that count")
    arguments.add_argument("--rows", type=int, default=400)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--system-file", type=Path, help="every row gets the beginning of this as its system prompt")
    arguments.add_argument("--system-tokens", type=int, default=400)
    arguments.add_argument("--brise", default="", metavar="OPTIONS", help="for worker_tune.py: '--no-sharing', ...")
    arguments.add_argument("--peft", default="", metavar="OPTIONS", help="for worker_peft.py: '--microbatch 2'")
    return arguments


def _report(series: Mapping[str, Series]) -> dict[str, Any]:
    differences = [abs(a - b) for a, b in zip(*(series[name].losses for name in NAMES), strict=True)]
    rates = {f"{title}{suffix}": _rates(series, counts, clock)
             for clock, suffix in (("seconds", "/s"), ("cpu_seconds", " a CPU second"))
             for title, counts in (("tokens of the rows", ("tokens", "tokens")),
                                   ("tokens computed, padding too", ("computed", "padded")),
                                   ("examples", ("examples", "examples")))}
    return {
        "rates": rates,
        "peak_bytes": {name: series[name].peak_bytes for name in NAMES},
        "disturbed": {name: series[name].calm[1:].count(False) for name in NAMES},
        "max_loss_difference": max(differences), "first_loss_difference": differences[0],
        "last_losses": {name: series[name].losses[-1] for name in NAMES}}


def _rates(series: Mapping[str, Series], counts: tuple[str, str], clock: str) -> dict[str, float]:
    """Medians over the windows that were calm for both, or over all if none was, and of their ratios."""
    calm = [all(pair) for pair in zip(*(series[name].calm for name in NAMES), strict=True)][1:]
    ours, theirs = (series[name].rates(count, clock) for name, count in zip(NAMES, counts, strict=True))
    pairs = [(a, b) for a, b, is_calm in zip(ours, theirs, calm, strict=True) if is_calm or not any(calm)]
    ratios = [a / b for a, b in pairs]
    return {"brise": median(a for a, _ in pairs), "peft": median(b for _, b in pairs), "ratio": median(ratios),
            "lowest": min(ratios), "highest": max(ratios), "windows": len(ratios)}


def _table(report: Mapping[str, Any]) -> str:
    """Markdown; a ratio over 1 means that brise is better."""
    lines = ["| | brise | PEFT | ratio | of single windows |", "|---|---|---|---|---|"]
    lines += [f"| {name} | {rate['brise']:.2f} | {rate['peft']:.2f} | {rate['ratio']:.2f} | "
              f"{rate['lowest']:.2f} to {rate['highest']:.2f} |" for name, rate in report["rates"].items()]
    ours, theirs = (report["peak_bytes"][name] for name in NAMES)
    lines.append(f"| peak memory, MB | {ours / 1e6:.0f} | {theirs / 1e6:.0f} | {theirs / ours:.2f} | |")
    first, last = (report["last_losses"][name] for name in NAMES)
    lines.append(f"| last loss | {first:.5f} | {last:.5f} | differ by at most "
                 f"{report['max_loss_difference']:.1e} over all steps | |")
    disturbed = " and ".join(str(report["disturbed"][name]) for name in NAMES)
    return "\n".join([*lines, "", f"Windows that others disturbed: {disturbed}."])


def _note(number: int, windows: int, name: str, series: Series) -> None:
    window = series.windows[-1]
    sys.stderr.write(f"window {number + 1} of {windows}, {name}: {window['tokens'] / window['seconds']:.1f} tokens/s"
                     f"{'' if series.calm[-1] else ', disturbed'}\n")


if __name__ == "__main__":
    raise SystemExit(main())
