"""Which small model stands in for the hosted one: one for each task that has its own, and one for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from brise.errors import UnsupportedError


@dataclass(frozen=True)
class Candidates:
    """Names of models and adapters of this process."""

    default: str | None = None
    by_task: Mapping[str, str] = field(default_factory=dict)

    def of(self, task: str) -> str | None:
        """The one for a task; None if there is none."""
        return self.by_task.get(task, self.default)


def parse(words: Iterable[str], known: Sequence[str], option: str) -> Candidates:
    """From `MODEL` and `TASK=MODEL`, as an option gives them; `known` are the models that there are."""
    default: str | None = None
    by_task: dict[str, str] = {}
    for word in words:
        task, equals, model = word.rpartition("=")
        if model not in known:
            raise UnsupportedError(f"{option} {word!r}: {model!r} is not served here; there is "
                                   f"{', '.join(map(repr, known)) or 'no local model'}",
                                   hint="brise serve MODEL --upstream URL serves both")
        if (task in by_task) if equals else default is not None:
            raise UnsupportedError(f"{option} {word!r}: two models for {'the task ' + repr(task) if equals else 'all'}")
        if equals:
            by_task[task] = model
        else:
            default = model
    return Candidates(default, by_task)
