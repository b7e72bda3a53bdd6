"""The demo from its first stage to its last: what fails is said, what stands on it is skipped, the report comes anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from brise.demo import proofs, stages
from brise.demo.child import Brise
from brise.demo.size import Size
from brise.demo.stages import Demo, RemoteSmallModel, SkippedError, StageWatcher
from brise.errors import BriseError

Ending = Literal["done", "skipped", "failed"]
T = TypeVar("T")


@dataclass(frozen=True)
class Stage(Generic[T]):
    """A part of a demo, which works on what the stages share."""

    name: str
    about: str
    run: Callable[[T], None]


@dataclass(frozen=True)
class Ended:
    """How a stage ended, how long it took, and why it did not do what it should."""

    name: str
    ending: Ending
    seconds: float
    why: str = ""


class Teller(StageWatcher, Protocol):
    """Who shows the demo."""

    def begin(self, number: int, of: int, stage: Stage[Any]) -> None:
        """A stage begins."""

    def end(self, ended: Ended) -> None:
        """It ended."""


STAGES: Sequence[Stage[Demo]] = (
    Stage("traffic", "cars talk to a simulated large model, through the gateway", stages.traffic),
    Stage("tune", "a small model learns from the captured traffic, on this machine", stages.tune),
    Stage("shadow", "it answers new traffic in the background, where nobody sees it", stages.shadow),
    Stage("prove", "may it take over? a test that holds whenever one looks", proofs.prove),
    Stage("cascade", "of which answers is it sure enough?", proofs.cascade),
    Stage("switch", "it takes over in steps, audited at random", proofs.switch),
    Stage("outage", "the large model is killed while cars drive", proofs.outage),
    Stage("report", "what it is worth, what it costs, what is not known", proofs.report),
)


def tell(folder: Path, home: Path, size: Size, teller: Teller, stages: Sequence[Stage[Demo]] = STAGES,
         remote: RemoteSmallModel | None = None) -> list[Ended]:
    """Runs all stages, with a small model that is tuned or with one behind another server; whatever was started is
    ended on the way out, after Ctrl-C, too."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    brise = Brise(home, logs)
    with ExitStack() as stack:
        stack.callback(brise.close)
        return run_stages(Demo(folder, brise, size, teller, stack, remote), stages, teller)


def run_stages(demo: T, stages: Sequence[Stage[T]], teller: Teller, *, ends_at_failure: bool = False) -> list[Ended]:
    """One after the other; with `ends_at_failure` nothing comes after a stage that failed."""
    ended = list[Ended]()
    for number, stage in enumerate(stages, 1):
        teller.begin(number, len(stages), stage)
        ended.append(_ended(demo, stage))
        teller.end(ended[-1])
        if ends_at_failure and ended[-1].ending == "failed":
            break
    return ended


def _ended(demo: T, stage: Stage[T]) -> Ended:
    started_s = time.monotonic()
    ending, why = "done", ""
    try:
        stage.run(demo)
    except SkippedError as error:
        ending, why = "skipped", str(error)
    except BriseError as error:
        ending, why = "failed", str(error)
    return Ended(stage.name, ending, time.monotonic() - started_s, why)  # type: ignore[arg-type]
