"""Runs models over texts: to see what matters in their weights, and to compare two of them.

A text is cut into windows of at most WINDOW tokens, which do not see each other; every token of a window but the first
is predicted. Models run one weight at a time (streamed.py), a pass of several windows after the other, and two of them
are compared with a block of the output's rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from brise.engine.streamed import Seen, StreamedOps, ignore
from brise.models import decoder
from brise.models.batch import Batch
from brise.models.config import Config
from brise.models.ops import Backend, Ops
from brise.models.weights import Array, Weight, Weights, part
from brise.quant.importance import Collector, Importance
from brise.quant.quality import Comparison, Predictions, QuantQuality

WINDOW = 512
PASS_TOKENS = 2048
# Numbers of each model's output matrix that are in memory at a time, and of each model's logits.
OUTPUT_NUMBERS, LOGITS = 1 << 24, 1 << 22
_TILE_ROWS = 16  # that kernels pack together: blocks are multiples

Progress = Callable[[int], None]  # tokens done


@dataclass(frozen=True)
class Machine:
    """Where models run: a backend, and its ops on arrays; `pass_tokens` go through a weight at a time.

    `output_numbers` and `logits` limit what a comparison has in memory of each model.
    """

    backend: Backend
    ops: Ops
    pass_tokens: int = PASS_TOKENS
    output_numbers: int = OUTPUT_NUMBERS
    logits: int = LOGITS


@dataclass(frozen=True)
class ScoringModel:
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


def calibrate(machine: Machine, model: ScoringModel, names: Sequence[tuple[str, Weight]], windows: Sequence[Array],
              source: str, progress: Progress) -> Importance:
    """The importance of every weight's columns; `names` says what each weight is called in a GGUF file."""
    collector = Collector()
    of = {id(weight): (name, weight.shape[0] if len(weight.shape) == 3 else 1) for name, weight in names}

    def seen(weight: Weight, matrix: int, x: Array) -> None:
        name, num_matrices = of[id(weight)]
        collector.add_inputs(name, x, matrix, num_matrices)

    for group in _groups(windows, machine.pass_tokens):
        hidden_TD = _hidden(machine, model, group, seen, np.arange(sum(map(len, group)), dtype=np.int32))
        seen(model.weights.output, 0, hidden_TD)
        progress(sum(map(len, group)))
    return collector.finish(sum(map(len, windows)), source)


def compare(machine: Machine, original: ScoringModel, quantised: ScoringModel, windows: Sequence[Array],
            progress: Progress) -> QuantQuality:
    """How the second model's predictions differ from the first's, token by token over the full vocabulary."""
    comparison = Comparison()
    number = 0
    for group in _groups(windows, machine.pass_tokens):
        lengths = [len(window) for window in group]
        ends = np.cumsum(lengths, dtype=np.int32)
        rows = np.delete(np.arange(ends[-1], dtype=np.int32), ends - 1)  # a window's last token predicts nothing
        hidden = [_hidden(machine, model, group, ignore, rows) for model in (original, quantised)]
        predictions = Predictions(np.concatenate([window[1:] for window in group]))
        _predict(machine, predictions, (original, quantised), hidden)
        owners = np.repeat(np.arange(number, number + len(group)), np.array(lengths) - 1)
        comparison.add_predictions(owners, predictions)
        number += len(group)
        progress(sum(lengths))
    return comparison.finish()


def _predict(machine: Machine, predictions: Predictions, models: Sequence[ScoringModel],
             hidden: Sequence[Array]) -> None:
    """Both models' logits of all tokens, block by block of the vocabulary, and few enough tokens at a time."""
    num_rows, width = models[0].weights.output.shape
    block = output_rows(num_rows, width, machine.output_numbers)
    step = max(1, machine.logits // block)
    for first in range(0, num_rows, block):
        heads = [machine.backend.place("output", part(model.weights.output, first, min(first + block, num_rows)))
                 for model in models]
        for model in models:
            model.forget()
        for start in range(0, len(hidden[0]), step):
            tokens = slice(start, min(start + step, len(hidden[0])))
            original, quantised = (machine.ops.linear(hidden_TD[tokens], head)
                                   for hidden_TD, head in zip(hidden, heads, strict=True))
            predictions.add_logits(tokens, first, original, quantised)


def output_rows(num_rows: int, width: int, output_numbers: int = OUTPUT_NUMBERS) -> int:
    """Rows of an output matrix in a block."""
    return min(num_rows, max(output_numbers // width // _TILE_ROWS, 1) * _TILE_ROWS)


def _hidden(machine: Machine, model: ScoringModel, group: Sequence[Array], seen: Seen, rows: Array) -> Array:
    """Normalised last hidden states of these tokens of several windows."""
    ops = StreamedOps(machine.ops, machine.backend.place, seen, model.forget)
    lengths = [len(window) for window in group]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    positions = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    return decoder.hidden(ops, model.config, model.weights, Batch(np.concatenate(group), positions, starts, rows))


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
