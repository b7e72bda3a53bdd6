"""Argument types for numbers within limits."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

SPANS: Mapping[str, float] = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


@dataclass(frozen=True)
class Within:
    """A number from `least` to `most`; `allowed` describes the range in errors. NaN and words are refused."""

    least: float
    most: float
    allowed: str
    above: bool = False  # excludes `least`
    below: bool = False  # excludes `most`

    def __call__(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not self.least <= value <= self.most or (self.above and value == self.least) or (
                self.below and value == self.most):
            raise argparse.ArgumentTypeError(f"{text!r}: {self.allowed} is allowed")
        return value


temperature = Within(0, 100, "a number from 0 to 100")
share = Within(0, 1, "a number from 0 to 1")
some = Within(0, 1, "a share over 0, up to 1,", above=True)
percent = Within(0, 100, "over 0, under 100", above=True, below=True)
days = Within(0, 36500, "a number of days over 0, up to 36500,", above=True)
seconds = Within(0, 86400, "a number of seconds over 0, up to 86400,", above=True)
milliseconds = Within(0, 3_600_000, "a number of milliseconds over 0, up to 3600000,", above=True)


def age(text: str) -> float:
    """A time span such as 90m, 12h, 7d or 2w, in seconds."""
    matched = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([mhdw])", text)
    if matched is None or float(matched[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: a number over 0 with m, h, d or w is allowed, such as 30d")
    return float(matched[1]) * SPANS[matched[2]]


def clients(text: str) -> int:
    """A number of clients, or none."""
    if not text.isdecimal() or int(text) > 1000:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 0 to 1000 is allowed")
    return int(text)
