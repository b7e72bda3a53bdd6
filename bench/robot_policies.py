"""How well a tuned model flies missions that no row had, beside what costs less.

    python bench/robot_policies.py ADAPTER ROWS [--model smollm2] [--episodes 300] [--threads N] [--json FILE]
    python bench/robot_policies.py ADAPTER ROWS --camera seeing/smollm2.gguf [--episodes 300] ...

ADAPTER is what `brise tune ROWS --actions` has made. Beside it fly: the expert, which knows what the mission means; a
controller that does not read it; TF-IDF with a linear model, and with the nearest row, which learn from ROWS; and the
model without training, under the same mask of tokens (its adapter with B = 0). With --camera, a model that `brise act
camera` made of the adapter's own: the adapter flies by pictures, and by black ones, which show what the pictures are
worth. The episode is the unit of every interval (Clopper and Pearson, 95 %).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import numpy as np

import brise
from brise import settings
from brise.checkpoint.adapters.lineage import read_lineage
from brise.checkpoint.adapters.peft import read_adapter, write_adapter
from brise.checkpoint.open import open_checkpoint
from brise.hub.locate import find_model
from brise.robots import camera, gate_task
from brise.robots.acting_server import Messages
from brise.robots.baselines import RowsPolicy
from brise.robots.gate_course import SPACE
from brise.robots.gate_task import Answering, FlightReport, FlyOptions

Flyer = RowsPolicy | Literal["expert", "without words"] | Answering
AT_A_TIME = 64  # flights whose questions the engine answers together


def untrained(adapter: Path, model: str, folder: Path) -> Path:
    """The adapter with B = 0: it changes nothing, and names the action space."""
    config = open_checkpoint(find_model(model, settings.read()).path).config
    given = read_adapter(adapter, config)
    nothing = {path: replace(low, b=np.zeros_like(low.b)) for path, low in given.low_ranks.items()}
    write_adapter(folder / "untrained", replace(given, low_ranks=nothing), read_lineage(adapter), config)
    return folder / "untrained"


def asking(model: brise.Model, adapter: Path | str, threads: ThreadPoolExecutor) -> Answering:
    """A policy that asks a model of this process."""
    def answering(asked: Sequence[Messages]) -> np.ndarray:
        chunks = threads.map(lambda messages: model.act(messages, adapter=adapter), asked)
        return np.array([chunk.commands[0] for chunk in chunks])
    return answering


def in_the_dark(answering: Answering) -> Answering:
    """A policy whose cameras show nothing: all pictures are black."""
    black = camera.image_part(np.zeros((camera.STRIP.height, len(camera.RING) * camera.STRIP.width, 3), np.uint8))

    def darkened(message: Mapping[str, object]) -> Mapping[str, object]:
        content = message["content"]
        if not isinstance(content, list):
            return message
        return {**message, "content": [black if part["type"] == "image_url" else part for part in content]}
    return lambda asked: answering([[darkened(message) for message in messages] for messages in asked])


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
    parser.add_argument("--camera", help="a model that sees: fly by pictures")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    reports = []
    with (tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_A_TIME) as threads,
          brise.load(args.camera or args.model, adapters={"tuned": args.adapter}, any_base=args.camera is not None,
                     threads=args.threads) as model):
        tuned = asking(model, "tuned", threads)
        policies: dict[str, Flyer] = {
            "expert": "expert", "does not read the mission": "without words",
            "TF-IDF + linear": RowsPolicy("linear", args.rows),
            "TF-IDF + nearest row": RowsPolicy("nearest", args.rows), "tuned": tuned}
        if args.camera is not None:
            policies = {"pictures": tuned, "black pictures": in_the_dark(tuned)}
        else:
            policies["untrained"] = asking(model, untrained(args.adapter, args.model, Path(folder)), threads)
        for name, policy in policies.items():
            if args.only is not None and not name.startswith(tuple(args.only.split(","))):
                continue
            for split in args.splits.split(","):
                begin = time.perf_counter()
                options = FlyOptions(policy, args.episodes, split, args.seed, camera=args.camera is not None)
                report = gate_task.fly(options)
                print(shown(name, report, time.perf_counter() - begin), flush=True)
                reports.append({"policy": name, **asdict(report)})
    if args.json is not None:
        args.json.write_text(json.dumps({"space": SPACE.digest, "reports": reports}, indent=1))


if __name__ == "__main__":
    main()
