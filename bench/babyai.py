"""How well policies do in BabyAI's levels: steps of the data set, and missions in closed loop.

    python bench/babyai.py DATA [--server URL --model NAME] [--episodes 300] [--max-steps N] [--temperature 1]

DATA is the folder of the data set babyai_steps (train.jsonl, test.jsonl). Without a server: the most frequent action,
the nearest row by TF-IDF, and TF-IDF with a linear model, all learned from train.jsonl; with one: its model, and how
it does at both temperatures. Intervals of steps are over missions, those of missions over missions. Steps whose text is
also in train.jsonl are counted apart: the first view of one mission can be that of another.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from brise.evals.baseline import linear_model, most_similar, vectorized
from brise.robots import babyai
from brise.robots.acting_server import ActingServer, ServerAddress
from brise.robots.babyai import ACTIONS
from brise.robots.babyai_task import WalkOptions, WalkPolicy, WalkReport, walk
from brise.stats.intervals import Interval, ratio

Rows = Sequence[Mapping[str, Any]]


def text_of(row: Mapping[str, Any]) -> str:
    return str(row["messages"][-1]["content"])


def steps(rows: Rows, actions: Sequence[int]) -> Interval:
    """The share of steps that are right."""
    right: dict[str, list[bool]] = {}
    for row, action in zip(rows, actions, strict=True):
        right.setdefault(row["conversation"], []).append(action == int(row["actions"][0][-1]))
    return ratio([sum(each) for each in right.values()], [len(each) for each in right.values()])


def show(name: str, test: Rows, known: set[str], actions: Sequence[int], report: WalkReport | None) -> None:
    new = [at for at, row in enumerate(test) if text_of(row) not in known]
    whole = steps(test, actions)
    unseen = steps([test[at] for at in new], [actions[at] for at in new])
    print(f"{name}: steps {percent(whole)} of {len(test)}, of new texts {percent(unseen)} of {len(new)}", flush=True)
    if report is not None:
        levels = ", ".join(f"{level.split('-')[1]} {percent(share)}" for level, share in report.levels.items())
        print(f"{name}: missions {percent(report.success)} of {report.episodes} ({levels}), {report.mean_steps:.1f} "
              "steps", flush=True)


def percent(share: Interval) -> str:
    return f"{share.estimate:.1%} ({share.low:.1%} to {share.high:.1%})"


def baselines(train: Rows, test: Rows, args: argparse.Namespace) -> None:
    texts, actions = [text_of(row) for row in train], [int(row["actions"][0][-1]) for row in train]
    known = set(texts)
    union, features = vectorized(texts)
    predict = linear_model(features, actions)
    most = Counter(actions).most_common(1)[0][0]

    def linear(asked: Sequence[str]) -> list[int]:
        return [int(each) for each in predict(union.transform(asked))]

    def nearest(asked: Sequence[str]) -> list[int]:
        return [actions[at] for at in most_similar(features, union.transform(asked))]

    def frequent(asked: Sequence[str]) -> list[int]:
        return [most] * len(asked)

    for name, policy in (("most frequent", frequent), ("nearest", nearest), ("linear", linear)):
        report = walk(WalkOptions(walking(policy), args.episodes, args.seed, max_steps=args.max_steps))
        show(name, test, known, policy([text_of(row) for row in test]), report)


def walking(policy: Callable[[Sequence[str]], list[int]]) -> WalkPolicy:
    return lambda robots: policy([text_of({"messages": each.messages()}) for each in robots])


def served(train: Rows, test: Rows, args: argparse.Namespace) -> None:
    address = ServerAddress(args.server, args.model)

    def action_of(row: Mapping[str, Any]) -> int:
        with closing(ActingServer(address)) as server:
            return round(float(server.decide(row["messages"], 60.0).commands[0, -1]))

    with ThreadPoolExecutor(32) as threads:
        actions = list(threads.map(action_of, test))
    show(f"{args.model}, likeliest", test, {text_of(row) for row in train}, actions, None)
    wrong = Counter(f"{ACTIONS[int(row['actions'][0][-1])]} as {ACTIONS[action]}" for row, action in
                    zip(test, actions, strict=True) if action != int(row["actions"][0][-1]))
    print(f"wrong: {wrong.most_common(8)}", flush=True)
    for temperature in args.temperature:
        report = walk(WalkOptions(address, args.episodes, args.seed, temperature, args.max_steps))
        show(f"{args.model}, temperature {temperature:g}", test, set(), actions, report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--server")
    parser.add_argument("--model", default="babyai")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--temperature", type=float, nargs="*", default=[1.0, 0.0])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train, test = (list(babyai.labelled(args.data / f"{name}.jsonl")) for name in ("train", "test"))
    if args.server is None:
        baselines(train, test, args)
    else:
        served(train, test, args)


if __name__ == "__main__":
    main()
