"""How well a tuned model flies missions that no row had, beside what costs less.

    python bench/robot_policies.py ADAPTER ROWS [--model smollm2] [--episodes 300] [--threads N] [--json FILE]

ADAPTER is what `brise tune ROWS --actions` has made. Beside it fly: the expert, which knows what the mission means; a
controller that does not read it; TF-IDF with a linear model, and with the nearest row, which learn from ROWS; and the
model without training, under the same mask of tokens (its adapter with B = 0). The episode is the unit of every
interval (Clopper and Pearson, 95 %).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

import brise
from brise import settings
from brise.checkpoint.adapters.lineage import read_lineage
from brise.checkpoint.adapters.peft import read_adapter, write_adapter
from brise.checkpoint.open import open_checkpoint
from brise.hub.locate import find_model
from brise.robots import gate_task
from brise.robots.acting_server import Messages
from brise.robots.baselines import RowsPolicy
from brise.robots.gate_course import SPACE
from brise.robots.gate_task import Answering, FlightReport, FlyOptions

AT_A_TIME = 64  # flights whose questions the engine answers together


def untrained(adapter: Path, model: str, folder: Path) -> Path:
    """The adapter with B = 0: it changes nothing, and names the action space."""
    config = open_checkpoint(find_model(model, settings.read()).path).config
    given = read_adapter(adapter, config)
    nothing = {path: replace(low, b=np.zeros_like(low.b)) for path, low in given.low_ranks.items()}
    write_adapter(folder / "untrained", replace(given, low_ranks=nothing), read_lineage(adapter), config)
    return folder / "untrained"


def asking(model: brise.Model, adapter: Path, threads: ThreadPoolExecutor) -> Answering:
    """A policy that asks a model of this process."""
    def answering(asked: Sequence[Messages]) -> np.ndarray:
        chunks = threads.map(lambda messages: model.act(messages, adapter=adapter), asked)
        return np.array([chunk.commands[0] for chunk in chunks])
    return answering


def shown(name: str, report: FlightReport, seconds: float) -> str:
    share = report.success
    ended = ", ".join(f"{count} {ending}" for ending, count in sorted(report.endings.items()))
    return (f"{report.split:>11}  {name:<26} {share.estimate:6.1%} ({share.low:.1%} to {share.high:.1%})  {ended}  "
            f"[{seconds:.0f} s]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", help="policies to fly, by the first words of their names, separated by commas")
    parser.add_argument("--splits", default="combination,template")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    reports = []
    with (tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_A_TIME) as threads,
          brise.load(args.model, threads=args.threads) as model):
        policies = {
            "expert": "expert", "does not read the mission": "without words",
            "TF-IDF + linear": RowsPolicy("linear", args.rows),
            "TF-IDF + nearest row": RowsPolicy("nearest", args.rows),
            "untrained": asking(model, untrained(args.adapter, args.model, Path(folder)), threads),
            "tuned": asking(model, args.adapter, threads)}
        for name, policy in policies.items():
            if args.only is not None and not name.startswith(tuple(args.only.split(","))):
                continue
            for split in args.splits.split(","):
                begin = time.perf_counter()
                report = gate_task.fly(FlyOptions(policy, args.episodes, split, args.seed))  # type: ignore[arg-type]
                print(shown(name, report, time.perf_counter() - begin), flush=True)
                reports.append({"policy": name, **asdict(report)})
    if args.json is not None:
        args.json.write_text(json.dumps({"space": SPACE.digest, "reports": reports}, indent=1))


if __name__ == "__main__":
    main()
