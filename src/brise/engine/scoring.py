"""Runs models over texts: to see what matters in their weights, and to compare two of them.

A text is cut into windows of at most WINDOW tokens, which do not see each other; every token of a window but the first
is predicted. Models run one weight at a time (streamed.py), a pass of several windows after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from brise.engine.streamed import Seen, StreamedOps, ignore
from brise.models import dense
from brise.models.batch import Batch
from brise.models.config import Config
from brise.models.weights import Array, Weight, Weights
from brise.ops.contract import Backend, Ops
from brise.quant.importance import Collector, Importance
from brise.quant.quality import Comparison, Quality

WINDOW = 512
PASS_TOKENS = 2048
# Logits of both models that are in memory at a time.
_LOGITS = 1 << 22

Progress = Callable[[int], None]  # tokens done


@dataclass(frozen=True)
class Machine:
    """Where models run: a backend, and its ops on arrays; `pass_tokens` go through a weight at a time."""

    backend: Backend
    ops: Ops
    pass_tokens: int = PASS_TOKENS


@dataclass(frozen=True)
class Scored:
    """A model to run: weights as the file has them; `forget` lets go of the file's pages."""

    config: Config
    weights: Weights
    forget: Callable[[], None]


def cut(texts: Sequence[Sequence[int]], bos: int | None, max_tokens: int) -> list[Array]:
    """Windows of all texts, up to about `max_tokens` in all; each begins with `bos` where the model wants one."""
    room = WINDOW - (bos is not None)
    windows: list[Array] = []
    left = max_tokens
    for text in texts:
        for start in range(0, len(text), room):
            own = ([] if bos is None else [bos]) + list(text[start:start + room])
            if len(own) > 1 and left > 0:
                windows.append(np.array(own, np.int32))
                left -= len(own)
    return windows


def calibrate(machine: Machine, model: Scored, names: Sequence[tuple[str, Weight]], windows: Sequence[Array],
              source: str, progress: Progress) -> Importance:
    """The importance of every weight's columns; `names` says what each weight is called in a GGUF file."""
    collector = Collector()
    of = {id(weight): (name, weight.shape[0] if len(weight.shape) == 3 else 1) for name, weight in names}

    def seen(weight: Weight, matrix: int, x: Array) -> None:
        name, num_matrices = of[id(weight)]
        collector.add(name, x, matrix, num_matrices)

    for group in _groups(windows, machine.pass_tokens):
        hidden_TD = _hidden(machine, model, group, seen)
        seen(model.weights.output, 0, hidden_TD)
        progress(sum(map(len, group)))
    return collector.finish(sum(map(len, windows)), source)


def compare(machine: Machine, original: Scored, quantised: Scored, windows: Sequence[Array],
            progress: Progress) -> Quality:
    """How the second model's predictions differ from the first's, token by token over the full vocabulary."""
    heads = [machine.backend.place("output", model.weights.output) for model in (original, quantised)]
    comparison = Comparison()
    number = 0
    for group in _groups(windows, machine.pass_tokens):
        both = [_hidden(machine, model, group, ignore) for model in (original, quantised)]
        for model in (original, quantised):
            model.forget()
        start = 0
        for window in group:
            _add_window(machine, comparison, number, window,
                        [hidden_TD[start:start + len(window)] for hidden_TD in both], heads)
            start, number = start + len(window), number + 1
        progress(start)
    return comparison.finish()


def _add_window(machine: Machine, comparison: Comparison, number: int, window: Array, hidden: Sequence[Array],
                heads: Sequence[Weight]) -> None:
    step = max(1, _LOGITS // heads[0].shape[0])
    for first in range(0, len(window) - 1, step):
        last = min(first + step, len(window) - 1)
        original, quantised = (machine.ops.linear(np.ascontiguousarray(hidden_TD[first:last]), head)
                               for hidden_TD, head in zip(hidden, heads, strict=True))
        comparison.add(number, original, quantised, window[first + 1:last + 1])


def _hidden(machine: Machine, model: Scored, group: Sequence[Array], seen: Seen) -> Array:
    """Normalised last hidden states of all tokens of several windows."""
    ops = StreamedOps(machine.ops, machine.backend.place, seen, model.forget)
    lengths = [len(window) for window in group]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    positions = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    batch = Batch(np.concatenate(group), positions, starts, np.arange(starts[-1], dtype=np.int32))
    return dense.hidden(ops, model.config, model.weights, batch)


def _groups(windows: Sequence[Array], max_tokens: int) -> Iterator[list[Array]]:
    """Windows in order, as many together as `max_tokens` allow."""
    group: list[Array] = []
    for window in windows:
        if group and sum(map(len, group)) + len(window) > max_tokens:
            yield group
            group = []
        group.append(window)
    if group:
        yield group
