"""How well policies do in BabyAI's levels: steps of the data set, and missions in closed loop.

    python bench/babyai.py DATA [--rows FILE] [--without-map] [--server URL --model NAME]
                           [--episodes 300] [--max-steps N] [--temperature 0]

DATA is the folder of the data set babyai_steps (train.jsonl, test.jsonl), whose missions are walked again: the robot
has a map of what it has seen and reads the ways on it. With --without-map it reads the data set's own text instead,
what is in view now. Without a server: a rule that parses missions (which needs the map), the most frequent action, the
nearest row by TF-IDF, and TF-IDF with a linear model, learned from train.jsonl or from --rows; with one: its model.
Intervals of steps are over missions, those of missions over missions. Steps whose text is also among the rows that are
learned from are counted apart: the first view of one mission can be that of another.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from brise.evals.baseline import linear_model, most_similar, vectorized
from brise.robots import babyai
from brise.robots.acting_server import ActingServer, ServerAddress
from brise.robots.babyai import ACTIONS, MissionWalk
from brise.robots.babyai_task import DEADLINE_S, WalkOptions, WalkPolicy, WalkReport, walk
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


def by_rule(text: str) -> int:
    """The action of a robot that understands the levels' missions: the first way that fits, or else to a new place."""
    lines = text.split("\n")
    mission = lines[0]
    words = re.search(r"(?:(red|green|blue|purple|yellow|grey) )?(ball|box|key|object)", mission)
    where = re.search(r"front|behind|left|right", mission)
    wanted = [each for each in (*(words.groups() if words else ()), where and where[0]) if each and each != "object"]
    if lines[1].startswith("holds"):
        wanted = ["free"]
    ways = [way.split() for way in lines[-1].split("; ") if way]
    fitting = [way for way in ways if set(wanted) <= set(way[:-1]) and (way[1] != "place" or "free" in wanted)]
    first = (fitting or [way for way in ways if way[0] == "new"] or [["done"]])[0][-1]
    return ACTIONS.index(first if first != "here" else "pickup" if mission.startswith("pick") else "done")


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

    def rule(asked: Sequence[str]) -> list[int]:
        return [by_rule(each) for each in asked]

    policies = [("most frequent", frequent), ("nearest", nearest), ("linear", linear)]
    for name, policy in policies if args.without_map else [("rule", rule), *policies]:
        report = walk(WalkOptions(walking(policy), args.episodes, args.seed, max_steps=args.max_steps,
                                  has_map=not args.without_map))
        show(name, test, known, policy([text_of(row) for row in test]), report)


def walking(policy: Callable[[Sequence[str]], list[int]]) -> WalkPolicy:
    """A policy of robots of one of texts, which is asked each text once."""
    known: dict[str, int] = {}

    def actions(robots: Sequence[MissionWalk]) -> list[int]:
        texts = [text_of({"messages": each.messages()}) for each in robots]
        if new := sorted(set(texts) - known.keys()):
            known.update(zip(new, policy(new), strict=True))
        return [known[text] for text in texts]

    return actions


def served(train: Rows, test: Rows, args: argparse.Namespace) -> None:
    address = ServerAddress(args.server, args.model)

    def action_of(row: Mapping[str, Any]) -> int:
        with closing(ActingServer(address)) as server:
            return round(float(server.decide(row["messages"], DEADLINE_S).commands[0, -1]))

    different = {text_of(row): row for row in test}
    with ThreadPoolExecutor(32) as threads:
        answers = dict(zip(different, threads.map(action_of, different.values()), strict=True))
    actions = [answers[text_of(row)] for row in test]
    show(f"{args.model}, likeliest", test, {text_of(row) for row in train}, actions, None)
    wrong = Counter(f"{ACTIONS[int(row['actions'][0][-1])]} as {ACTIONS[action]}" for row, action in
                    zip(test, actions, strict=True) if action != int(row["actions"][0][-1]))
    print(f"wrong: {wrong.most_common(8)}", flush=True)
    for temperature in args.temperature:
        report = walk(WalkOptions(address, args.episodes, args.seed, temperature, args.max_steps,
                                  has_map=not args.without_map))
        show(f"{args.model}, temperature {temperature:g}", test, set(), actions, report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--server")
    parser.add_argument("--model", default="babyai")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--temperature", type=float, nargs="*", default=[0.0])
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--without-map", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    test = list(babyai.labelled(args.data / "test.jsonl", not args.without_map))
    train = (list(babyai.labelled(args.data / "train.jsonl", not args.without_map)) if args.rows is None else
             [json.loads(line) for line in args.rows.read_text(encoding="utf-8").splitlines()])
    if args.server is None:
        baselines(train, test, args)
    else:
        served(train, test, args)


if __name__ == "__main__":
    main()
