"""How well each signal of a cascade tells a small model's right answers from its wrong ones: AUROC, on your own rows.

    python bench/signals.py MODEL ROWS.jsonl --adapter FOLDER

Rows are chat JSONL; an answer is right if it says the same as the last message.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path

import numpy as np

from brise.cli import serve_adapters
from brise.dialects import answers
from brise.dialects.table import named
from brise.engine.engine import Engine, EngineSettings
from brise.engine.engine_thread import EngineThread
from brise.engine.model import load
from brise.hub.store import ModelStore, locate
from brise.prove import calibrate
from brise.prove.calibration_rows import CalibrationRow
from brise.serve.engine_models import EngineModels
from brise.settings import read
from brise.stats import thresholds
from brise.switch import novelty, signals

AT_A_TIME = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--number", type=int, help="only the first N rows")
    parser.add_argument("--max-tokens", type=int, default=80)
    args = parser.parse_args()
    located = locate(args.model, ModelStore(read().home))
    engine = Engine(load(located.path, name="base", digest=located.digest), EngineSettings(
        max_sequences=AT_A_TIME, max_adapters=1))
    if args.adapter is not None:
        serve_adapters.load(engine, "small", args.adapter, any_base=False)
    worker = EngineThread(engine)
    worker.start()
    lines = [json.loads(line) for line in args.rows.read_text(encoding="utf-8").splitlines()][:args.number]
    try:
        name = "base" if args.adapter is None else "small"
        rows = asyncio.run(ask(EngineModels({"base": worker}), name, lines, args))
    finally:
        worker.shutdown(drain=False)
    report(rows)


async def ask(local: EngineModels, name: str, lines: list[dict[str, object]],
              args: argparse.Namespace) -> list[CalibrationRow]:
    room = asyncio.Semaphore(AT_A_TIME)

    async def one(number: int, line: dict[str, object]) -> CalibrationRow:
        messages = line["messages"]
        assert isinstance(messages, list)
        *prompt, wanted = messages
        body = {"model": "x", "messages": prompt, "temperature": 0, "max_tokens": args.max_tokens}
        async with room:
            found = await local.answer(name, named("chat"), body, logprobs=signals.NUM_RIVALS)
        right = answers.of(found.body).text.strip() == str(wanted["content"]).strip()
        return CalibrationRow(str(number), str(line.get("conversation", number)), float(number),
                              answers.user_text(body),
                              signals.measure(body, found.body, found.tokens), not right, not right)

    return list(await asyncio.gather(*(one(number, line) for number, line in enumerate(lines))))


def report(rows: list[CalibrationRow]) -> None:
    wrong = np.array([row.wrong for row in rows], np.float64)
    print(f"{len(rows)} answers, {100 * wrong.mean():.1f} % wrong")
    cut = len(rows) // 3
    rows = calibrate.with_novelty(rows, novelty.cover([row.text for row in rows[:cut]]))
    judged = [row.signals for row in rows]
    for name in sorted(judged[0]):
        has = [at for at, found in enumerate(judged) if name in found]
        found = thresholds.auroc(np.array([judged[at][name] for at in has]), wrong[has])
        print(f"{name:12} {max(found, 1 - found):.3f} {'' if found >= 0.5 else '(less is surer)'} of {len(has)}")


if __name__ == "__main__":
    main()
