"""What a robot is told at each tick: the steps of the newest chunk, or a defined action where there is none.

Pure: no clock and no thread, so that a log of what came in replays to the same commands. Chunks are spliced by the
ticks that have *passed* since their observation, not by an estimate of the delay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from brise.errors import UnsupportedError
from brise.text.action_space import ActionSpace, Floats

CommandSource = Literal["model", "hold", "brake", "scripted"]
Scripted = Callable[[Floats], Floats]  # one command, (D,), to another: the last that was sent, to the next one
# What is wanted, and the least and the most that can be sent at this tick, (D,) each, to what is allowed.
Guard = Callable[[Floats, Floats, Floats], Floats]


def fallback_names(scripts: Mapping[str, Scripted]) -> list[str]:
    """What may be commanded where the model has said nothing."""
    return ["hold", "brake", *(f"scripted:{name}" for name in scripts)]


def fallback_step(name: str, scripts: Mapping[str, Scripted], last: Floats, space: ActionSpace,
                  ) -> tuple[Floats, CommandSource]:
    """The command of a fallback, and where it came from: a script that fails is no reason to command nothing.

    A script that raises, or gives another number of values, brakes.
    """
    if name == "hold":
        return last, "hold"
    if name != "brake":
        try:
            command = np.asarray(scripts[name.removeprefix("scripted:")](last), np.float64)
        except Exception:  # of the user's own code, in a loop that must go on
            return space.brake, "brake"
        if command.shape == (len(space.values),):
            return command, "scripted"
    return space.brake, "brake"


@dataclass(frozen=True)
class LateFallback:
    """What is commanded when no step is left, until a chunk comes: `first` for `first_s` seconds, `then` for `then_s`
    (None: without end), and after them `at_last`.

    Each is "hold" (the last command again), "brake" (the space's brake), or "scripted:NAME" of `scripts`.
    """

    first: str = "hold"
    first_s: float = 0.5
    then: str = "brake"
    then_s: float | None = None
    at_last: str = "brake"
    scripts: Mapping[str, Scripted] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        for name, seconds in (("first", self.first_s), ("second", self.then_s)):
            if seconds is not None and not 0 <= seconds <= 3600:
                raise UnsupportedError(f"the {name} fallback lasts {seconds} s, allowed is 0 to 3600")
        for each in (self.first, self.then, self.at_last):
            if each not in (names := fallback_names(self.scripts)):
                raise UnsupportedError(f"there is no fallback {each!r}, there are: {', '.join(names)}")

    def at(self, seconds: float) -> str:
        """What is commanded when no step has been left for so long."""
        if seconds < self.first_s:
            return self.first
        return self.then if self.then_s is None or seconds < self.first_s + self.then_s else self.at_last


@dataclass(frozen=True)
class SentCommand:
    """What is sent at a tick; `tick` counts from 0. `since_chunk` is the number of ticks since the last model's step.
    """

    tick: int
    values: Floats  # (D,)
    source: CommandSource
    since_chunk: int


class CommandQueue:
    """The steps that are still to be sent, and what was sent last.

    The first `blend` steps of a new chunk are mixed with what was planned before, or with the last command where
    nothing was. Every command is within the limits and rates of the space, whatever it came from.
    """

    def __init__(self, space: ActionSpace, fallback: LateFallback = LateFallback(), blend: int = 1) -> None:
        if not 0 <= blend <= 100:
            raise UnsupportedError(f"{blend} steps to blend were asked for, allowed is 0 to 100")
        self._space, self._fallback, self._blend = space, fallback, blend
        self._steps: list[Floats] = []
        self._last: Floats | None = None
        self._since_chunk = 0
        self.num_ticks = 0

    @property
    def num_left(self) -> int:
        """The steps that are left of the newest chunk."""
        return len(self._steps)

    def put(self, commands_HD: ArrayLike, ticks_before: int) -> int:
        """Takes a chunk whose observation was made when `ticks_before` ticks had passed; the steps that were kept.

        Steps whose time has passed are dropped. A chunk of which nothing is left changes nothing.
        """
        commands = np.asarray(commands_HD, np.float64).reshape(-1, len(self._space.values))
        fresh = list(commands[max(self.num_ticks - ticks_before, 0):])
        if not fresh:
            return 0
        before, last = self._steps, self._space.brake if self._last is None else self._last
        for at in range(min(self._blend, len(fresh)) if self._last is not None else 0):
            old = before[at] if at < len(before) else (before[-1] if before else last)
            share = (at + 1) / (self._blend + 1)
            fresh[at] = share * fresh[at] + (1 - share) * old
        self._steps = fresh
        return len(fresh)

    def take(self, guard: Guard | None = None) -> SentCommand:
        """The command of this tick. What is wanted passes the guard before it is limited, wherever it came from.

        The guard is told what the limits and rates leave, so that it can choose a command that they do not change.
        """
        source: CommandSource
        if self._steps:
            wanted, source, self._since_chunk = self._steps.pop(0), "model", 0
        else:
            self._since_chunk += 1
            wanted, source = self._instead()
        if guard is not None:
            wanted = guard(wanted, *self._space.reachable(self._last))
        self._last = self._space.limited(wanted, self._last)
        command = SentCommand(self.num_ticks, self._last, source, self._since_chunk)
        self.num_ticks += 1
        return command

    def skip(self, count: int) -> None:
        """Records that `count` ticks passed at which nothing could be sent: their steps are out of date."""
        del self._steps[:count]
        self.num_ticks += count
        self._since_chunk += count

    def _instead(self) -> tuple[Floats, CommandSource]:
        fallback, last = self._fallback, self._space.brake if self._last is None else self._last
        return fallback_step(fallback.at((self._since_chunk - 1) * self._space.period_s), fallback.scripts, last,
                             self._space)
