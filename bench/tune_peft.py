"""Trains one model with brise and with transformers + PEFT in turn; prints speeds, memory and both loss curves.

Each trainer is a process of its own with the same rows in the same order, the same first matrices, rank, learning rate
and AdamW. Windows of a few steps alternate A B A B. A fixed spin loop before and after each says whether the machine
was ours; a window cannot be repeated without changing the curve, so those that were disturbed are counted, and medians
are over calm ones if there are any.

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
    """The windows of one trainer, the first left out of speeds: it touches memory."""

    windows: list[Mapping[str, Any]] = field(default_factory=list)
    calm: list[bool] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        return [loss for window in self.windows for loss in window["losses"]]

    def rate(self, what: str) -> float:
        pairs = list(zip(self.windows, self.calm, strict=True))[1:]
        kept = [window for window, is_calm in pairs if is_calm] or [window for window, _ in pairs]
        return median(window[what] / window["seconds"] for window in kept)

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
              Worker([sys.executable, str(FOLDER / "worker_peft.py"), *base]) as peers):
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
    return arguments


def _report(series: Mapping[str, Series]) -> dict[str, Any]:
    differences = [abs(a - b) for a, b in zip(*(series[name].losses for name in NAMES), strict=True)]
    return {
        "tokens_per_s": {name: series[name].rate("tokens") for name in NAMES},
        "computed_per_s": {"brise": series["brise"].rate("computed"), "peft": series["peft"].rate("padded")},
        "examples_per_s": {name: series[name].rate("examples") for name in NAMES},
        "peak_bytes": {name: series[name].peak_bytes for name in NAMES},
        "disturbed": {name: series[name].calm[1:].count(False) for name in NAMES},
        "max_loss_difference": max(differences), "first_loss_difference": differences[0],
        "last_losses": {name: series[name].losses[-1] for name in NAMES}}


def _table(report: Mapping[str, Any]) -> str:
    """Markdown; a ratio over 1 means that brise is better."""
    lines = ["| | brise | PEFT | ratio | disturbed windows |", "|---|---|---|---|---|"]
    disturbed = " / ".join(str(report["disturbed"][name]) for name in NAMES)
    for key, name in (("tokens_per_s", "tokens/s of the rows"), ("computed_per_s", "tokens/s, computed (padding too)"),
                      ("examples_per_s", "examples/s")):
        ours, theirs = (report[key][name] for name in NAMES)
        lines.append(f"| {name} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f} | {disturbed} |")
    ours, theirs = (report["peak_bytes"][name] for name in NAMES)
    lines.append(f"| peak memory, MB | {ours / 1e6:.0f} | {theirs / 1e6:.0f} | {theirs / ours:.2f} | |")
    first, last = (report["last_losses"][name] for name in NAMES)
    lines.append(f"| last loss | {first:.5f} | {last:.5f} | differ by at most "
                 f"{report['max_loss_difference']:.1e} over all steps | |")
    return "\n".join(lines)


def _note(number: int, windows: int, name: str, series: Series) -> None:
    window = series.windows[-1]
    sys.stderr.write(f"window {number + 1} of {windows}, {name}: {window['tokens'] / window['seconds']:.1f} tokens/s"
                     f"{'' if series.calm[-1] else ', disturbed'}\n")


if __name__ == "__main__":
    raise SystemExit(main())
