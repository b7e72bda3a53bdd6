"""Runs models over texts to measure the importance of weights, and to compare two models.

A text is cut into windows of at most WINDOW tokens, which do not see each other; every token of a window except the
first is predicted. Models run one weight at a time (streamed.py), in passes of several windows, and two models are
compared one block of the output matrix's rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from brise.engine.streamed import Observer, StreamedOps, ignore
from brise.models import decoder
from brise.models.batch import Batch
from brise.models.config import Config
from brise.models.ops import Backend, Ops
from brise.models.weights import Array, Weight, Weights, part
from brise.quant.importance import Collector, Importance
from brise.quant.quality import Comparison, Predictions, QuantQuality

WINDOW = 512
PASS_TOKENS = 2048
# How many numbers of each model's output matrix, and of each model's logits, are in memory at a time.
OUTPUT_NUMBERS, LOGITS = 1 << 24, 1 << 22
_TILE_ROWS = 16  # that kernels pack together: blocks are multiples of it

Progress = Callable[[int], None]  # tokens done


@dataclass(frozen=True)
class Machine:
    """Where models run: a backend and its ops on arrays. A pass has `pass_tokens` tokens.

    `output_numbers` and `logits` limit what a comparison keeps in memory of each model.
    """

    backend: Backend
    ops: Ops
    pass_tokens: int = PASS_TOKENS
    output_numbers: int = OUTPUT_NUMBERS
    logits: int = LOGITS


@dataclass(frozen=True)
class ScoringModel:
    """A model to run, with weights as stored in the file; `forget` releases the file's pages."""

    config: Config
    weights: Weights
    forget: Callable[[], None]


def cut(texts: Sequence[Sequence[int]], bos: int | None, max_tokens: int) -> list[Array]:
    """Cuts texts into windows, of up to about `max_tokens` in all; each begins with `bos` if the model needs it."""
    room = WINDOW - (bos is not None)
    windows: list[Array] = []
    left = max_tokens
    for text in texts:
        for start in range(0, len(text), room):
            window = ([] if bos is None else [bos]) + list(text[start:start + room])
            if len(window) > 1 and left > 0:
                windows.append(np.array(window, np.int32))
                left -= len(window)
    return windows


def calibrate(machine: Machine, model: ScoringModel, names: Sequence[tuple[str, Weight]], windows: Sequence[Array],
              source: str, progress: Progress) -> Importance:
    """The importance of the columns of every weight; `names` are the weights' names in a GGUF file."""
    collector = Collector()
    names_of = {id(weight): (name, weight.shape[0] if len(weight.shape) == 3 else 1) for name, weight in names}

    def observe(weight: Weight, matrix: int, x: Array) -> None:
        name, num_matrices = names_of[id(weight)]
        collector.add_inputs(name, x, matrix, num_matrices)

    for group in _groups(windows, machine.pass_tokens):
        hidden_TD = _hidden(machine, model, group, observe, np.arange(sum(map(len, group)), dtype=np.int32))
        observe(model.weights.output, 0, hidden_TD)
        progress(sum(map(len, group)))
    return collector.finish(sum(map(len, windows)), source)


def compare(machine: Machine, original: ScoringModel, quantized: ScoringModel, windows: Sequence[Array],
            progress: Progress) -> QuantQuality:
    """How the second model's predictions differ from the first's, token by token over the full vocabulary."""
    comparison = Comparison()
    number = 0
    for group in _groups(windows, machine.pass_tokens):
        lengths = [len(window) for window in group]
        ends = np.cumsum(lengths, dtype=np.int32)
        rows = np.delete(np.arange(ends[-1], dtype=np.int32), ends - 1)  # the last token of a window predicts nothing
        hidden = [_hidden(machine, model, group, ignore, rows) for model in (original, quantized)]
        predictions = Predictions(np.concatenate([window[1:] for window in group]))
        _predict(machine, predictions, (original, quantized), hidden)
        owners = np.repeat(np.arange(number, number + len(group)), np.array(lengths) - 1)
        comparison.add_predictions(owners, predictions)
        number += len(group)
        progress(sum(lengths))
    return comparison.finish()


def _predict(machine: Machine, predictions: Predictions, models: Sequence[ScoringModel],
             hidden: Sequence[Array]) -> None:
    """Computes both models' logits of all tokens, one block of the vocabulary and a few tokens at a time."""
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
            original, quantized = (machine.ops.linear(hidden_TD[tokens], head)
                                   for hidden_TD, head in zip(hidden, heads, strict=True))
            predictions.add_logits(tokens, first, original, quantized)


def output_rows(num_rows: int, width: int, output_numbers: int = OUTPUT_NUMBERS) -> int:
    """The number of rows of an output matrix in one block."""
    return min(num_rows, max(output_numbers // width // _TILE_ROWS, 1) * _TILE_ROWS)


def _hidden(machine: Machine, model: ScoringModel, group: Sequence[Array], observe: Observer, rows: Array) -> Array:
    """The normalized last hidden states of `rows` of several windows."""
    ops = StreamedOps(machine.ops, machine.backend.place, observe, model.forget)
    lengths = [len(window) for window in group]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    positions = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    return decoder.hidden(ops, model.config, model.weights, Batch(np.concatenate(group), positions, starts, rows))


def _groups(windows: Sequence[Array], max_tokens: int) -> Iterator[list[Array]]:
    """Groups the windows, in order, into passes of at most `max_tokens`."""
    group: list[Array] = []
    for window in windows:
        if group and sum(map(len, group)) + len(window) > max_tokens:
            yield group
            group = []
        group.append(window)
    if group:
        yield group
