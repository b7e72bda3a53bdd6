"""A chunk of actions: the engine's request for it, and what its tokens and a fallback make of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from brise.engine.engine_thread import EngineThread
from brise.engine.request import Request
from brise.errors import RequestError
from brise.robots.command_queue import Scripted, fallback_names, fallback_step
from brise.text.action_space import Actions, ActionSpace, Floats

MAX_DEADLINE_S = 3600.0


@dataclass(frozen=True)
class ActionOptions:
    """How a control loop asks. `last` is the command that was sent last: rates are limited from there on.

    After `deadline_s` the answer ends with what there is; `fallback` gives the steps that are missing: "hold", "brake",
    or "scripted:NAME" of `scripts`. An urgent request goes before all others that are not.
    """

    deadline_s: float | None = None
    is_urgent: bool = True
    fallback: str = "hold"
    last: tuple[float, ...] | None = None
    scripts: Mapping[str, Scripted] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if self.deadline_s is not None and not 0 < self.deadline_s <= MAX_DEADLINE_S:
            raise RequestError(f"'deadline_ms' is {1e3 * self.deadline_s:g}, allowed is over 0, up to "
                               f"{1e3 * MAX_DEADLINE_S:g}", param="deadline_ms")
        if self.fallback not in (names := fallback_names(self.scripts)):
            raise RequestError(f"'fallback' is {self.fallback!r}, allowed is {', '.join(map(repr, names))}",
                               param="fallback", hint="brise.serve(..., scripts={...}) registers scripts by name")
        if self.last is not None and not all(math.isfinite(number) for number in self.last):
            raise RequestError("'last' must be finite numbers, one for each value of the action space", param="last")


@dataclass(frozen=True)
class ActionChunk:
    """Commands in the space's units, (steps, values), the first for the time of the observation, the others a period
    apart each. The first `num_decided` are the model's own, the others the fallback's; then it `is_late`.
    """

    space: ActionSpace
    commands: Floats
    num_decided: int
    is_late: bool


def actions_of(worker: EngineThread, adapter: str | None) -> Actions:
    """The actions of an adapter; RequestError if it was trained on none."""
    actions = None if adapter is None else worker.actions(adapter)
    if actions is None:
        raise RequestError(f"{adapter or worker.model.name!r} was trained on no actions", param="model",
                           code="model_not_acting", hint="ask an adapter that `brise tune --actions` made")
    return actions


def acting(request: Request, actions: Actions, options: ActionOptions) -> Request:
    """The request for a chunk of actions, of one for a chat."""
    if options.last is not None and len(options.last) != len(actions.space.values):
        raise RequestError(f"'last' has {len(options.last)} numbers, {actions.space.name} has "
                           f"{len(actions.space.values)} values", param="last")
    plain = replace(request.sampling, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0)
    return replace(request, max_tokens=actions.space.num_tokens, token_choices=actions.choices, grammar=None, stop=(),
                   sampling=plain, ignore_eos=True, deadline_s=options.deadline_s, is_urgent=options.is_urgent)


def read_chunk(actions: Actions, tokens: Sequence[int], options: ActionOptions, *, is_late: bool) -> ActionChunk:
    """The chunk that an answer's tokens are, with a step of the fallback for each that is missing."""
    space = actions.space
    decided = actions.commands(tokens, options.last)
    rows = list(decided)
    for _ in range(space.steps - len(rows)):
        before = rows[-1] if rows else None if options.last is None else np.array(options.last)
        wanted, _ = fallback_step(options.fallback, options.scripts, space.brake if before is None else before, space)
        rows.append(space.limited(wanted, before))
    return ActionChunk(space, np.array(rows), len(decided), is_late)


def as_json(chunk: ActionChunk) -> dict[str, object]:
    """A chunk as the server sends it; times are seconds after the observation."""
    space = chunk.space
    return {"space": space.name, "names": [value.name for value in space.values],
            "units": [value.unit for value in space.values], "commands": chunk.commands.tolist(),
            "times_s": [step * space.period_s for step in range(space.steps)], "num_decided": chunk.num_decided,
            "late": chunk.is_late}


