"""The settings of a chat: one table for the command line and for /set."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from brise.engine.request import USUAL_SAMPLING, Sampling
from brise.engine.sampling import resolve
from brise.errors import RequestError
from brise.settings import MAX_THREADS
from brise.text.inputs import PartialSampling

Value = float | int | bool | str | None
T = TypeVar("T")


@dataclass(frozen=True)
class ChatSettings:
    """How answers are sampled and shown. What of the sampling is None is the model's own, or usual."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    repeat_last_n: int | None = None
    seed: int | None = None
    max_tokens: int | None = None
    thinking: str = "show"
    stats: bool = False

    def sampling(self, own: PartialSampling) -> Sampling:
        """The sampling of an answer by a model whose files suggest `own`."""
        return resolve(PartialSampling(
            temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, min_p=self.min_p,
            repetition_penalty=self.repetition_penalty, repeat_last_n=self.repeat_last_n,
            seed=None if self.seed == -1 else self.seed), own, USUAL_SAMPLING)


@dataclass(frozen=True)
class Option:
    """One field of ChatSettings: how its value is read, and what it means."""

    name: str
    metavar: str
    read: Callable[[str], Value]
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each field of ChatSettings to the parser."""
    for option in options():
        if option.read is _switch:
            parser.add_argument(option.flag, action="store_true", help=option.help)
        else:
            default = vars(ChatSettings())[option.name]
            usual = vars(USUAL_SAMPLING).get(option.name)
            known = f"default: {default}" if default is not None else f"default: the model's own, else {usual}"
            parser.add_argument(option.flag, type=_argument(option.read), default=default, metavar=option.metavar,
                                help=option.help + (f" ({known})" if default or usual is not None else ""))


def from_arguments(args: argparse.Namespace) -> ChatSettings:
    """The settings of a command line."""
    return ChatSettings(**{option.name: vars(args)[option.name] for option in options()})


def change(current: ChatSettings, name: str, text: str) -> ChatSettings:
    """The settings after `/set NAME TEXT`; RequestError says what is allowed."""
    for option in options():
        if option.name == name.replace("-", "_"):
            try:
                return replace(current, **{option.name: option.read(text)})  # type: ignore[arg-type]
            except ValueError as error:
                raise RequestError(f"{option.name} is {text!r}, {error}", param=option.name) from None
    raise RequestError(f"there is no setting {name!r}", param=name,
                       hint="settings: " + ", ".join(option.name for option in options()))


def options() -> tuple[Option, ...]:
    """All settings, in the order of the help."""
    return (
        Option("temperature", "T", _number(0, 100), "sampling temperature; 0 always takes the likeliest token"),
        Option("top_p", "P", _number(0, 1), "sample from the likeliest tokens whose probabilities add up to P"),
        Option("top_k", "K", _whole(0), "sample from the K likeliest tokens; 0 means all"),
        Option("min_p", "P", _number(0, 1), "drop tokens less likely than P times the likeliest"),
        Option("repetition_penalty", "R", _number(0.01, 10), "above 1, repetitions become less likely"),
        Option("repeat_last_n", "N", _whole(-1), "the repetition penalty looks at the last N tokens; -1 means all"),
        Option("seed", "N", _whole(-1), "the same seed gives the same answer (default: a new seed each time, as -1)"),
        Option("max_tokens", "N", _whole(1), "longest answer in tokens (default: 1024, or what the context holds)"),
        Option("thinking", "show|hide", _one_of("show", "hide"), "print the model's reasoning to stderr, or hide it"),
        Option("stats", "on|off", _switch, "after each answer, print its speed to stderr"),
    )


def count(text: str) -> int:
    """Reads a whole number of 1 or more, for argparse."""
    return _argument(_whole(1))(text)


def thread_count(text: str) -> int:
    """Reads `--threads`, for argparse."""
    return _argument(_whole(1, MAX_THREADS))(text)


def _argument(read: Callable[[str], T]) -> Callable[[str], T]:
    """Raises argparse's own kind of error, whose text it shows."""
    def argument(text: str) -> T:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None

    return argument


def _number(low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ValueError(f"a number from {low:g} to {high:g} is allowed")
        return value

    return read


def _whole(low: int, high: int = (1 << 63) - 1) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isascii() or not text.removeprefix("-").isdigit() or not low <= int(text[:20]) <= high:
            raise ValueError(f"a whole number from {low} to {high} is allowed")
        return int(text)

    return read


def _one_of(*allowed: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(" or ".join(map(repr, allowed)) + " is allowed")
        return text

    return read


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError("'on' or 'off' is allowed")
    return text == "on"
