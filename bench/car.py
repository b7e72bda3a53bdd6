"""How well a tuned model understands the demo's car, beside what costs less, and what the rules make of its mistakes.

    python bench/car.py ADAPTER [--model smollm2] [--asked 300] [--threads N] [--keep FOLDER]
    python bench/car.py --more FILE

ADAPTER is that of `brise demo --car --keep FOLDER` (FOLDER/car/adapter). Utterances are new ones of the phrasings that
it was trained on, and of phrasings, values and ways to join three requests that it was not. Beside it answer the
untrained model and the nearest training row by TF-IDF. An utterance is right if all its calls are, with all arguments
and in order; it is the unit of every interval (Clopper and Pearson, 95 %). With `--bfcl N` the untrained model is asked
N of the held-out ones as tools, from a file in the leaderboard's form, too. --more writes 2,000 rows that go on where
the demo's end, to train further on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from brise.api.answers import ToolCall
from brise.demo.car_talk import CarTalk, Utterance, car_rules
from brise.demo.workload import ARGUMENTS, FunctionCall
from brise.evals import answers_file, data, scorers
from brise.evals.data import Reading
from brise.stats.intervals import Interval, binomial_interval

ROWS, SEEN_SEED, HELD_OUT_SEED, ANSWER_TOKENS = 2000, 3, 2, 200  # those of the demo
MORE = {"door": ("door", "action"), "recline": ("seat", "to")}
WHOLE_NUMBERS = ("celsius", "level", "percent")

Given = list[FunctionCall]


def evaluated(rows: Path, answers: Path, *words: str) -> None:
    """Asks the rows by `brise eval`; an interrupted run goes on."""
    subprocess.run([sys.executable, "-m", "brise", "eval", str(rows), "--score", "call", "--out", str(answers), *words],
                   check=True, stdout=subprocess.DEVNULL)


def answered(rows: Path, answers: Path) -> list[Given]:
    """The calls of each row's answer; an answer that is no list of calls has none."""
    saved = answers_file.read(answers).answers
    return [[FunctionCall(name, dict(arguments)) for name, arguments in scorers.calls_of(saved[example.digest])]
            for example in data.read([rows], Reading())]


def share(right: Sequence[bool]) -> str:
    if not right:
        return "-"
    found: Interval = binomial_interval(sum(right), len(right))
    return f"{found.estimate:.1%} ({found.low:.1%} to {found.high:.1%}) of {len(right)}"


def plain(calls: Sequence[FunctionCall]) -> list[tuple[str, dict[str, object]]]:
    return [(call.function, dict(call.arguments)) for call in calls]


def understanding(asked: Sequence[Utterance], given: Sequence[Given]) -> dict[str, str]:
    """Shares of utterances that are right, by the number of calls that they mean."""
    right = [plain(each.calls) == plain(calls) for each, calls in zip(asked, given, strict=True)]
    named = [[call.function for call in each.calls] == [call.function for call in calls]
             for each, calls in zip(asked, given, strict=True)]
    by_number = {name: [hit for each, hit in zip(asked, right, strict=True) if low <= len(each.calls) <= high]
                 for name, low, high in (("one call", 1, 1), ("two calls", 2, 2), ("three or more", 3, 99))}
    return {"all right": share(right), "functions right": share(named)} | {
        name: share(hits) for name, hits in by_number.items()}


def judged(asked: Sequence[Utterance], given: Sequence[Given]) -> dict[str, str]:
    """What the rules decide about the calls: an utterance is wrong where something runs at once that was not meant."""
    decided, counts, harmless, noticed = Counter[str](), Counter[str](), list[bool](), list[bool]()
    for each, calls in zip(asked, given, strict=True):
        decisions = [_decision(call, each) for call in calls]
        decided.update(decisions)
        ran = [call for call, decision in zip(calls, decisions, strict=True) if decision == "run"]
        harmless.append(all(call in each.calls for call in ran))
        counts["dangerous calls that ran"] += sum(_is_dangerous(call, each) for call in ran)
        for call in each.calls:
            if _decision(call, each) != "run":
                noticed.append(call in calls)
    return {"calls": f"{decided['run']} run, {decided['confirm']} wait, {decided['refuse']} are refused",
            "nothing unmeant ran": share(harmless), "meant calls to confirm or refuse, made as meant": share(noticed),
            "doors and driver's seat of a moving car": f"{counts['dangerous calls that ran']} ran"}


def _decision(call: FunctionCall, said: Utterance) -> str:
    written = ToolCall("", call.function, json.dumps(dict(call.arguments)))
    return car_rules().judge(written, said.state.values()).decision


def _is_dangerous(call: FunctionCall, said: Utterance) -> bool:
    """By other words than the rules'."""
    opens = call.function == "door" and call.arguments.get("action") in ("open", "unlock")
    moves = call.function == "recline" and call.arguments.get("seat") == "driver"
    return said.state.speed_kmh > 0 and (opens or moves)


def leaderboard(asked: Sequence[Utterance], folder: Path) -> Path:
    """The utterances as a file of the leaderboard, with their right answers beside it."""
    functions = [{"name": name, "description": f"In the car: {name.replace('_', ' ')}.", "parameters": {
        "type": "dict", "required": list(arguments), "properties": {
            each: {"type": "integer" if each in WHOLE_NUMBERS else "string"} for each in arguments}}}
        for name, arguments in {**ARGUMENTS, **MORE}.items() if name != "none"]
    wanted = [each for each in asked if all(call.function != "none" for call in each.calls)]
    path = folder / "BFCL_v4_live_parallel_multiple_car.json"
    beside = folder / "possible_answer" / path.name
    beside.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({
        "id": each.id, "function": functions,
        "question": [[{"role": "user", "content": f"{each.state.words()}\n{each.text}"}]]}) + "\n" for each in wanted))
    beside.write_text("".join(json.dumps({"id": each.id, "ground_truth": [
        {call.function: {name: [value] for name, value in call.arguments.items()}} for call in each.calls]}) + "\n"
        for each in wanted))
    return path


def measure(args: argparse.Namespace, folder: Path) -> None:
    """Asks all systems, and prints their figures; rows and answers go to the folder."""
    train = folder / "train.jsonl"
    train.write_text("".join(each.row() for each in CarTalk(1).utterances(ROWS, is_held_out=False)))
    model = ["--model", args.model, "--threads", str(args.threads), "--max-tokens", str(ANSWER_TOKENS)]
    systems = (("tuned", [*model, "--adapter", str(args.adapter)], args.asked),
               ("nearest row", ["--baseline", "tfidf", "--train", str(train)], args.asked),
               ("untrained", model, args.untrained))
    for split, seed in (("seen", SEEN_SEED), ("held out", HELD_OUT_SEED)):
        every = CarTalk(seed).utterances(args.asked, is_held_out=split != "seen")
        for name, words, count in systems:
            asked = every[:count]
            stem = f"{split}-{name}".replace(" ", "-")
            rows = folder / f"{stem}.jsonl"
            rows.write_text("".join(each.row() for each in asked))
            evaluated(rows, folder / f"{stem}-answers.jsonl", *words)
            given = answered(rows, folder / f"{stem}-answers.jsonl")
            for figure, value in {**understanding(asked, given), **judged(asked, given)}.items():
                print(f"{split:>8}  {name:<12}  {figure}: {value}", flush=True)
    if args.bfcl:
        path = leaderboard(CarTalk(HELD_OUT_SEED).utterances(args.bfcl, is_held_out=True), folder)
        subprocess.run([sys.executable, "-m", "brise", "eval", str(path), "--format", "bfcl", *model], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", metavar="ADAPTER", type=Path, nargs="?")
    parser.add_argument("--more", metavar="FILE", type=Path, help="write further rows, and measure nothing")
    parser.add_argument("--model", default="smollm2", help="the model that was tuned (default: smollm2)")
    parser.add_argument("--asked", type=int, default=300, help="utterances of each kind (default: 300)")
    parser.add_argument("--untrained", type=int, default=50, help="of them for the untrained model (default: 50)")
    parser.add_argument("--bfcl", type=int, default=0, help="utterances in the leaderboard's form (default: 0)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="rows and answers go there (default: nowhere)")
    args = parser.parse_args()
    if (args.adapter is None) == (args.more is None):
        parser.error("give either ADAPTER or --more")
    if args.more is not None:
        further = CarTalk(1).utterances(2 * ROWS, is_held_out=False)[ROWS:]
        args.more.write_text("".join(each.row() for each in further))
        return
    with tempfile.TemporaryDirectory() as kept:
        folder = args.keep or Path(kept)
        folder.mkdir(parents=True, exist_ok=True)
        measure(args, folder)


if __name__ == "__main__":
    main()
