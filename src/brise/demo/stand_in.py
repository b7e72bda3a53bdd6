"""What the simulated large model says: no model at all, but the right answer at a stated rate, and mistakes else.

It is told the truth of the workload beforehand. Which requests it gets wrong, how, and how long it takes is drawn from
a seed and from how often it was asked the same: asked again, it may answer otherwise, as large models do.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from brise.demo.workload import ARGUMENTS, FunctionCall, Talk
from brise.files.digests import text_digest

NAME = "simulated-large"
FINGERPRINT = "simulated-1"
# What a model answers that forgets what it was told.
_PROSE = ("I'm sorry, I didn't quite get that.", "Sure! I will do that for you right away.",
          "Could you tell me a little more?")
_OTHER_VALUES: Mapping[str, Sequence[object]] = {
    "zone": ("driver", "passenger", "rear", "all"), "seat": ("driver", "passenger", "rear_left", "rear_right"),
    "window": ("driver", "passenger", "rear", "all", "roof"), "position": ("open", "closed", "half"),
    "light": ("reading", "fog", "high_beam", "hazard"), "state": ("on", "off"),
    "where": ("nearby", "on_route", "at_destination"), "kind": ("parking", "restaurant", "cafe", "hotel"),
    "celsius": (18, 20, 22, 24), "level": (1, 2, 3), "percent": (60, 80, 100)}


@dataclass(frozen=True)
class Nature:
    """How the simulated model is. Latencies are log-normal: `median_s`, and `spread` the sigma of their logarithm."""

    seed: int = 0
    accuracy: float = 0.93
    median_s: float = 0.6
    spread: float = 0.45
    first_token_share: float = 0.4  # of an answer's time


@dataclass(frozen=True)
class Spoken:
    """One answer and the time it takes."""

    text: str
    wait_s: float
    prompt_tokens: int
    completion_tokens: int


class StandIn:
    """Answers requests of a workload whose truth it knows."""

    def __init__(self, truth: Mapping[str, FunctionCall], nature: Nature) -> None:
        self._truth, self.nature = truth, nature
        self._asked: Counter[str] = Counter()

    def answer(self, messages: Sequence[Mapping[str, object]]) -> Spoken:
        """What it says to these messages; to what is not of its workload: that no function does it."""
        key = key_of([str(message.get("content")) for message in messages if message.get("role") == "user"])
        self._asked[key] += 1
        draw = random.Random(f"{self.nature.seed} {key} {self._asked[key]}")
        right = self._truth.get(key, FunctionCall("none", {}))
        text = right.text() if draw.random() < self.nature.accuracy else _mistake(right, draw)
        wait_s = self.nature.median_s * draw.lognormvariate(0.0, self.nature.spread)
        read = sum(num_tokens(str(message.get("content"))) for message in messages)
        return Spoken(text, wait_s, read, num_tokens(text))


def truth_of(talks: Iterable[Talk]) -> dict[str, FunctionCall]:
    """What StandIn has to know of a workload: the call that each request means, after those before it."""
    return {key_of([turn.text for turn in talk.turns[:number + 1]]): turn.call
            for talk in talks for number, turn in enumerate(talk.turns)}


def key_of(requests: Sequence[str]) -> str:
    """A conversation's requests so far, whatever was answered in between."""
    return text_digest(json.dumps(requests))[:32]


def num_tokens(text: str) -> int:
    """About as many as a large model would bill: four characters a token."""
    return 1 + len(text) // 4


def _mistake(right: FunctionCall, draw: random.Random) -> str:
    """A wrong value mostly, sometimes an argument left out or another function, rarely no call at all."""
    kind = draw.random()
    if kind < 0.15:
        return draw.choice(_PROSE)
    arguments = dict(right.arguments)
    changeable = [name for name in arguments if name in _OTHER_VALUES]
    if kind < 0.7 and changeable:
        name = draw.choice(changeable)
        arguments[name] = draw.choice([value for value in _OTHER_VALUES[name] if value != arguments[name]])
        return FunctionCall(right.function, arguments).text()
    if kind < 0.85 and len(arguments) > 1:
        del arguments[draw.choice(sorted(arguments))]
        return FunctionCall(right.function, arguments).text()
    other = draw.choice([name for name in ARGUMENTS if name != right.function])
    # With the arguments of the right one, although it has no such: models do that.
    return json.dumps({"name": other, "arguments": arguments}, separators=(",", ":"), ensure_ascii=False)
