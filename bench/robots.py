"""Whether a model can make a robot do what it must not: malformed answers, and late ones.

    python bench/robots.py [--decodes 1000000] [--episodes 300] [--seed 0] [--json FILE]
    python bench/robots.py --server URL --model drone --peer URL [--ticks 200] [--pids SERVER PEER]

The first part draws answers from random logits by the engine's own constraint and sampler, and counts those that are
malformed, or whose commands leave limits or rates. The second flies the gate course with an expert whose answers come
late: a spike of two seconds, bursts, 5 % that never come, and a clock that jumps (ticks that are slept through). It
flies behind the vehicle's barrier and, for comparison, without it, and counts crashes, steps over a rate, and ticks
without a step of the model that no fallback has filled.

With `--peer` it asks two servers the same ticks in turn: brise for actions, and llama-server (or another with OpenAI's
API and `grammar`) for the same numbers as text under a grammar. Tokens and milliseconds of a tick are medians. With the
servers' process ids it says what a tick takes of a processor, too, which holds on a machine that others use.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np

from brise.engine import sampler
from brise.engine.constraint import TokenChoices
from brise.engine.request import Sampling
from brise.robots import gate_course, gate_task
from brise.robots.command_queue import CommandQueue, LateFallback
from brise.robots.gate_course import SPACE
from brise.stats.intervals import binomial_interval
from brise.text.action_space import Actions

VOCAB = 512
PERIOD_S, STEPS = 0.05, 5
FAULTS = ("none", "spike", "bursts", "drops", "jumps", "all")


def decodes(count: int, seed: int) -> dict[str, object]:
    """Answers of random logits: how many are malformed, or out of bounds."""
    random = np.random.default_rng(seed)
    words = tuple(tuple(map(int, random.permutation(VOCAB)[:value.bins])) for value in SPACE.values if value.words)
    actions = Actions(replace(SPACE, steps=2), tuple(map(int, random.permutation(VOCAB)[:21])), words)
    space, choices, sampling = actions.space, actions.choices, Sampling(temperature=1.0)
    low, high = (np.array([getattr(value, side) for value in space.values]) for side in ("low", "high"))
    rates = np.array([value.max_change for value in space.values])
    malformed = outside = 0
    begin = time.process_time()
    for number in range(count):
        logits = random.standard_normal((len(choices), VOCAB), np.float32) * np.float32(10)
        constraint, tokens = TokenChoices(choices), []
        for row in logits:
            tokens.append(sampler.pick(constraint.apply(row), sampling, sampler.uniform(seed, number, len(tokens))))
            constraint.advance(tokens[-1])
        last = random.uniform(2 * low, 2 * high)
        commands = actions.commands(tokens, last)
        malformed += not (constraint.is_complete and commands.shape == (2, len(space.values)))
        moved = np.abs(np.diff(np.vstack([np.clip(last, low, high), commands]), axis=0))
        outside += bool((commands < low).any() or (commands > high).any() or (moved > rates + 1e-9).any())
    return {"decodes": count, "malformed": malformed, "outside": outside, "seconds": time.process_time() - begin}


def delays(fault: str, count: int, random: np.random.Generator) -> np.ndarray:
    """How many ticks the answer to the question of each tick takes; -1: it never comes."""
    ticks = random.integers(1, 3, count)
    if fault in ("spike", "all"):
        at = int(random.integers(20, 200))
        ticks[at:at + 1] = round(2.0 / PERIOD_S)
    if fault in ("bursts", "all"):
        for at in random.integers(0, count, count // 100):
            ticks[at:at + 10] += random.integers(2, 12)
    if fault in ("drops", "all"):
        ticks[random.random(count) < 0.05] = -1
    return ticks


def flights(fault: str, count: int, seed: int, *, has_barrier: bool) -> dict[str, object]:
    """Episodes with late answers. One question is open at a time, as in the pilot."""
    random = np.random.default_rng(seed)
    flown, states = gate_course.started(random, "train", count)
    space = replace(SPACE, steps=STEPS, period_s=PERIOD_S, values=tuple(
        replace(value, max_change=(value.max_change or 1.0) * PERIOD_S / gate_course.TICK_S) for value in SPACE.values))
    rates = np.array([value.max_change for value in space.values])
    queues = [CommandQueue(space, LateFallback("hold", 0.1, "brake"), 1) for _ in range(count)]
    num_ticks = round(60 / PERIOD_S)
    late = np.array([delays(fault, num_ticks, random) for _ in range(count)])
    jumps = random.random((count, num_ticks)) < (0.01 if fault in ("jumps", "all") else 0)
    open_questions: list[deque[tuple[int, int, np.ndarray]]] = [deque() for _ in range(count)]
    last, over, sources = np.zeros((count, len(space.values))), 0, Counter[str]()
    begun: set[int] = set()  # whose first command was sent: no rate holds for it
    for tick in range(num_ticks):
        if all(flight.ending for flight in flown):
            break
        wanted = gate_course.expert(flown, states)
        for at, flight in enumerate(flown):
            if flight.ending is not None:
                continue
            queue, waiting = queues[at], open_questions[at]
            if waiting and waiting[0][0] <= tick:
                _, asked, commands = waiting.popleft()
                queue.put(commands, asked)
            if not waiting and late[at, tick] >= 0:
                waiting.append((tick + int(late[at, tick]), queue.num_ticks, np.tile(wanted[at], (STEPS, 1))))
            if jumps[at, tick]:  # the process was kept from running: nothing is sent, the last command goes on
                queue.skip(1)
                continue
            command = queue.take(gate_course.guard(flight, states, at) if has_barrier else None)
            over += at in begun and bool((np.abs(command.values - last[at]) > rates + 1e-9).any())
            begun.add(at)
            sources[command.source] += 1
            last[at] = command.values
        states = gate_course.advance(flown, states, last, PERIOD_S)
    endings = Counter(flight.ending or "out of time" for flight in flown)
    share = binomial_interval(endings["done"], count)
    done = [share.estimate, share.low, share.high]
    return {"fault": fault, "has_barrier": has_barrier, "episodes": count, "endings": dict(endings), "done": done,
            "steps_over_a_rate": over, "commands": dict(sources)}


def processor_s(pid: int) -> float:
    """Seconds of processor that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ticks(server: str, model: str, peer: str, peer_model: str, count: int, pids: Sequence[int],
          ) -> list[dict[str, object]]:
    """The same observations to both servers, one after the other: tokens and milliseconds of a tick."""
    flown, states = gate_course.started(np.random.default_rng(0), "combination", 1)
    asked = []
    for _ in range(count):
        asked.append([dict(message) for message in gate_task.messages_of(flown[0], states, 0)])
        states = gate_course.advance(flown, states, gate_course.expert(flown, states))
        if flown[0].ending is not None:
            flown, states = gate_course.started(np.random.default_rng(len(asked)), "combination", 1)
    sides = {"brise, actions": (f"{server}/v1/actions", {"model": model}),
             "peer, grammar": (f"{peer}/v1/chat/completions", {
                 "model": peer_model, "grammar": grammar(), "temperature": 0, "max_tokens": 64, "cache_prompt": True})}
    seen: dict[str, list[tuple[float, int, int]]] = {name: [] for name in sides}
    warm, used = len(asked) // 10, [0.0] * len(pids)  # the first ones touch cold memory
    with httpx.Client(trust_env=False, timeout=120) as client:
        for number, messages in enumerate(asked):
            if number == warm:
                used = [processor_s(pid) for pid in pids]
            for name, (url, body) in sides.items():
                begin = time.perf_counter()
                answer = client.post(url, json={**body, "messages": messages})
                took = 1e3 * (time.perf_counter() - begin)
                answer.raise_for_status()
                usage = answer.json()["usage"]
                seen[name].append((took, usage["prompt_tokens"], usage["completion_tokens"]))
    rows = []
    shares = [1e3 * (processor_s(pid) - before) / (count - warm) for pid, before in zip(pids, used, strict=True)]
    for (name, found), processor_ms in zip(seen.items(), shares or [None, None], strict=True):
        table = np.array(found[warm:])
        rows.append({"side": name, "ticks": len(table), "p50_ms": float(np.median(table[:, 0])),
                     "p95_ms": float(np.quantile(table[:, 0], 0.95)), "prompt_tokens": float(np.median(table[:, 1])),
                     "completion_tokens": float(np.median(table[:, 2])), "processor_ms": processor_ms})
    return rows


def grammar() -> str:
    """The action space as a GBNF grammar: each value's bins as numbers or words, with a blank between values."""
    rules, names = [], []
    for value in SPACE.values:
        name = value.name.replace("_", "-")
        bins = [f"{number:g}" for number in np.linspace(value.low, value.high, value.bins)]
        rules.append(f"{name} ::= " + " | ".join(json.dumps(each) for each in bins))
        names.append(name)
    return "root ::= " + ' " " '.join(names) + "\n" + "\n".join(rules)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decodes", type=int, default=1_000_000)
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--server", help="a brise server, such as http://127.0.0.1:8080")
    parser.add_argument("--model", default="drone", help="the adapter there that acts (default: drone)")
    parser.add_argument("--peer", help="a server with OpenAI's API and grammars, such as llama-server")
    parser.add_argument("--peer-model", default="peer", help="the model's name there (default: peer)")
    parser.add_argument("--ticks", type=int, default=200)
    parser.add_argument("--pids", type=int, nargs=2, metavar=("SERVER", "PEER"), default=(),
                        help="their process ids, for the processor's time (default: it is not measured)")
    args = parser.parse_args()
    if (args.server is None) != (args.peer is None):
        parser.error("--server and --peer belong together")
    if args.peer is not None:
        compared = ticks(args.server, args.model, args.peer, args.peer_model, args.ticks, args.pids)
        for row in compared:
            print("{side:>15}: p50 {p50_ms:.1f} ms, p95 {p95_ms:.1f} ms, {completion_tokens:g} tokens written of "
                  "{prompt_tokens:g} read, {ticks} ticks".format(**row)
                  + ("" if row["processor_ms"] is None else f", {row['processor_ms']:.1f} ms of processor (mean)"))
        if args.json is not None:
            args.json.write_text(json.dumps(compared, indent=1))
        return
    drawn = decodes(args.decodes, args.seed)
    print("{decodes} answers of random logits: {malformed} malformed, {outside} outside limits or rates "
          "({seconds:.0f} s of processor)".format(**drawn))
    rows = [flights(fault, args.episodes, args.seed, has_barrier=has) for has in (True, False) for fault in FAULTS]
    for row in rows:
        done, low, high = row["done"]  # type: ignore[misc]
        where = "behind the barrier" if row["has_barrier"] else "without it"
        print(f"{row['fault']:>7} {where}: done {done:.1%} ({low:.1%} to {high:.1%}), {row['endings']}, steps "
              f"over a rate {row['steps_over_a_rate']}, {row['commands']}")
    if args.json is not None:
        args.json.write_text(json.dumps({"decodes": drawn, "flights": rows}, indent=1))


if __name__ == "__main__":
    main()
