"""What a measured process says to compare.py: one command a line in, one line of JSON out.

Standard library only, because the peer's process runs under another Python.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Protocol

Times = dict[str, float]


class Subject(Protocol):
    """A loaded engine that can be measured."""

    def prefill(self, length: int) -> Times:
        """Time of one prompt of `length` tokens up to its logits (brise: up to the picked token)."""

    def decode(self, sequences: int, depth: int, steps: int) -> Times:
        """Time of `steps` tokens for each of `sequences` sequences that hold `depth` tokens at the start."""


def serve(subject: Subject, hello: dict[str, object]) -> None:
    """Answers commands until the input ends."""
    answer({"ready": True} | hello)
    for line in sys.stdin:
        name, *rest = line.split()
        answer(_measure(subject, name, [int(number) for number in rest]))


def _measure(subject: Subject, name: str, numbers: Sequence[int]) -> Times:
    match [name, *numbers]:
        case ["prefill", int(length)]:
            return subject.prefill(length)
        case ["decode", int(sequences), int(depth), int(steps)]:
            return subject.decode(sequences, depth, steps)
    raise SystemExit(f"unknown command {name} {numbers}")


def timed(tokens: int, work: Callable[[], None]) -> Times:
    start = time.perf_counter()
    work()
    return {"tokens": tokens, "seconds": time.perf_counter() - start}


def prompt(sequence: int, length: int, vocab_size: int) -> list[int]:
    """Tokens spread over the vocabulary, the same in each run and for each engine."""
    return [(7919 * (position + 1) + 104729 * sequence) % vocab_size for position in range(length)]


def peak_bytes() -> int:
    """The most this process has had in memory; unlike ru_maxrss it does not count the parent before exec."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def answer(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
