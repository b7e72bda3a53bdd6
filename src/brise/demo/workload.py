"""The demo's workload: an in-car assistant that turns a request into one function call.

A grammar of phrasings and slots, with politeness, fillers and typing errors, deterministic by its seed. A fifth of the
phrasings and some values of every slot are held out: training traffic never has them. No two conversations of one
workload begin with the same words, so nothing that is tested was trained on letter by letter.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from brise.demo.phrasings import FOLLOW_UPS, GROUPS
from brise.demo.slots import SLOTS, Said, Slot

# A request is of this function with this weight: what people want most in a car, and 10 % that no function does.
SHARES: Mapping[str, int] = {"climate": 16, "seat_heating": 8, "window": 10, "light": 8, "ambient": 4, "navigate": 14,
                             "find": 10, "play": 10, "volume": 6, "call": 7, "message": 6, "charge_limit": 4,
                             "none": 10}
# In this order an answer gives them, always: a model has enough to learn without it.
ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "climate": ("zone", "celsius"), "seat_heating": ("seat", "level"), "window": ("window", "position"),
    "light": ("light", "state"), "ambient": ("color",), "navigate": ("to", "avoid"), "find": ("kind", "where"),
    "play": ("what",), "volume": ("level",), "call": ("contact",), "message": ("contact", "text"),
    "charge_limit": ("percent",), "none": ()}
SYSTEM = """You are the assistant of a car. Answer with one call as JSON: climate(zone, celsius),
seat_heating(seat, level), window(window, position), light(light, state), ambient(color), navigate(to, avoid),
find(kind, where), play(what), volume(level), call(contact), message(contact, text), charge_limit(percent), none()"""

FOLLOW_UP_SHARE = 0.25  # of the conversations that can have a second request
POLITE_SHARE, FILLER_SHARE, TYPO_SHARE = 0.35, 0.12, 0.08
_BEFORE = ("please ", "hey, ", "could you please ", "hi, ", "okay, ", "listen, ", "car, ")
_AFTER = (" please", ", please", ", thanks", " now", ", would you", ", thank you")
_FILLERS = ("uh ", "um ", "well, ", "er ", "so ")
_HELD_OUT_EVERY = 5  # the last of every five phrasings
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class FunctionCall:
    """A function with its arguments."""

    function: str
    arguments: Mapping[str, object]

    def text(self) -> str:
        """As the assistant writes it: JSON without blanks."""
        arguments = {name: self.arguments[name] for name in ARGUMENTS[self.function] if name in self.arguments}
        return json.dumps({"name": self.function, "arguments": arguments}, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True)
class DemoTurn:
    """A request, and the call that it means."""

    text: str
    call: FunctionCall
    is_held_out: bool  # its phrasing, or a value in it, comes in no training traffic


@dataclass(frozen=True)
class Talk:
    """A conversation: a request, and maybe one more that only makes sense after it."""

    id: str
    turns: tuple[DemoTurn, ...]

    def messages(self, number: int, answers: Sequence[str]) -> list[dict[str, str]]:
        """What is sent for request `number`, after the answers that came before it."""
        out = [{"role": "system", "content": SYSTEM}]
        for turn, answer in zip(self.turns, answers[:number], strict=False):
            out += [{"role": "user", "content": turn.text}, {"role": "assistant", "content": answer}]
        return [*out, {"role": "user", "content": self.turns[number].text}]


@dataclass(frozen=True)
class _Phrase:
    """A phrasing of the table, flat."""

    function: str
    text: str
    fixed: Mapping[str, object]


class Workload:
    """Conversations one after the other. The same seed and the same calls give the same ones."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._seed = seed
        self._used: set[str] = set()
        self._count = 0
        self._seen, self._held_out = _split()

    def talks(self, count: int, *, held_out: float) -> list[Talk]:
        """`count` new conversations. A request is of held-out phrasings or values with the probability `held_out`."""
        return [self._talk(held_out) for _ in range(count)]

    def _talk(self, held_out: float) -> Talk:
        draw = self._random
        while True:
            is_held_out = draw.random() < held_out
            function = draw.choices(list(SHARES), list(SHARES.values()))[0]
            first = self._turn(draw.choice((self._held_out if is_held_out else self._seen)[function]), {}, is_held_out)
            if first.text.lower() not in self._used:
                break
        self._used.add(first.text.lower())
        self._count += 1
        turns = [first]
        follow_ups = [text for function, text in FOLLOW_UPS if function == first.call.function]
        if follow_ups and draw.random() < FOLLOW_UP_SHARE:
            turns.append(self._turn(_Phrase(first.call.function, draw.choice(follow_ups), {}),
                                    first.call.arguments, first.is_held_out))
        return Talk(f"car-{self._seed}-{self._count:05d}", tuple(turns))

    def _turn(self, phrase: _Phrase, before: Mapping[str, object], is_held_out: bool) -> DemoTurn:
        """Fills the slots. In a held-out request each value is one that was never trained on, every second time."""
        arguments = {**before, **phrase.fixed}
        pieces: list[tuple[str, bool]] = []  # text, and whether noise leaves it alone
        at = 0
        for match in _SLOT.finditer(phrase.text):
            slot = SLOTS[match[1]]
            words, value = self._value(slot, is_held_out)
            pieces += [(phrase.text[at:match.start()], False), (words, slot.is_open or any(map(str.isdigit, words)))]
            at = match.end()
            if slot.argument:
                arguments[slot.argument] = value
        pieces.append((phrase.text[at:], False))
        return DemoTurn(self._noisy(pieces), FunctionCall(phrase.function, arguments), is_held_out)

    def _value(self, slot: Slot, is_held_out: bool) -> Said:
        is_new = is_held_out and self._random.random() < 0.5
        return self._random.choice(slot.held_out if is_new else slot.seen)

    def _noisy(self, pieces: Sequence[tuple[str, bool]]) -> str:
        draw = self._random
        texts = [text for text, _ in pieces]
        if draw.random() < TYPO_SHARE:
            free = [index for index, (text, is_kept) in enumerate(pieces) if not is_kept and _long_words(text)]
            if free:
                index = draw.choice(free)
                texts[index] = _mistyped(texts[index], draw)
        text = " ".join("".join(texts).split())
        if draw.random() < FILLER_SHARE:
            text = draw.choice(_FILLERS) + text
        if draw.random() < POLITE_SHARE:
            text = draw.choice(_BEFORE) + text if draw.random() < 0.5 else text + draw.choice(_AFTER)
        return text[0].upper() + text[1:] if draw.random() < 0.5 else text


def num_phrasings() -> tuple[int, int]:
    """How many phrasings training traffic may have, and how many are held out."""
    return tuple(sum(map(len, side.values())) for side in _split())  # type: ignore[return-value]


def _split() -> tuple[Mapping[str, list[_Phrase]], Mapping[str, list[_Phrase]]]:
    seen: dict[str, list[_Phrase]] = {function: [] for function in SHARES}
    held_out: dict[str, list[_Phrase]] = {function: [] for function in SHARES}
    for group in GROUPS:
        for index, text in enumerate(group.texts):
            side = held_out if index % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1 else seen
            side[group.function].append(_Phrase(group.function, text, group.fixed))
    return seen, held_out


def _long_words(text: str) -> list[re.Match[str]]:
    return list(re.finditer(r"[A-Za-z]{5,}", text))


def _mistyped(text: str, draw: random.Random) -> str:
    """Two letters swapped, or one left out, within one of the longer words."""
    word = draw.choice(_long_words(text))
    at = draw.randrange(word.start() + 1, word.end() - 2)
    if draw.random() < 0.5:
        return text[:at] + text[at + 1] + text[at] + text[at + 2:]
    return text[:at] + text[at + 1:]
