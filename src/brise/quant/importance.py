"""How much each column of a weight matters: the mean square of what multiplies it, over calibration text.

An error in a column of a weight moves the output by as much as the column's input is large; quantisers therefore
spend their precision by these numbers (llama.cpp calls them the importance matrix).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from brise.errors import CheckpointError
from brise.models.weights import Array


@dataclass(frozen=True)
class Sums:
    """Of one tensor: sums of squares (M, columns) of its M matrices' inputs, and how many rows went in (M,)."""

    squares: NDArray[np.float64]
    counts: NDArray[np.float64]


@dataclass(frozen=True)
class Importance:
    """What a calibration found, by GGUF tensor name; `num_tokens` went through the model."""

    sums: Mapping[str, Sums]
    num_tokens: int
    source: str

    def columns(self, name: str, matrix: int, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
        """Mean squares of the columns of one matrix of a tensor; None where nothing is known.

        That is the case for embeddings, which nothing multiplies, and for experts that no token reached. A column
        that was always zero gets a millionth of the mean, so that its weights still count a little.
        """
        found = self.sums.get(name)
        if found is None:
            return None
        num_matrices, cols = (shape[0] if len(shape) == 3 else 1), shape[-1]
        if found.squares.shape != (num_matrices, cols):
            raise CheckpointError(
                f"the importance of {name} has the shape {found.squares.shape}, the tensor {num_matrices} matrices "
                f"of {cols} columns", field=name, value=found.squares.shape,
                limit=(num_matrices, cols), hint="it was made for another model; calibrate again")
        if found.counts[matrix] == 0 or not found.squares[matrix].any():
            return None
        mean = found.squares[matrix] / found.counts[matrix]
        return np.asarray(np.maximum(mean, 1e-6 * mean.mean()), np.float32)


class Collector:
    """Adds up inputs while a model runs over calibration text."""

    def __init__(self) -> None:
        self._squares: dict[str, dict[int, Array]] = {}
        self._counts: dict[str, dict[int, int]] = {}
        self._num_matrices: dict[str, int] = {}

    def add(self, name: str, x: Array, matrix: int = 0, num_matrices: int = 1) -> None:
        """Rows x (T, columns) that multiplied this matrix of the tensor."""
        squares, counts = self._squares.setdefault(name, {}), self._counts.setdefault(name, {})
        total = np.einsum("tc,tc->c", x, x, dtype=np.float64)
        squares[matrix] = squares[matrix] + total if matrix in squares else total
        counts[matrix] = counts.get(matrix, 0) + len(x)
        self._num_matrices[name] = num_matrices

    def finish(self, num_tokens: int, source: str) -> Importance:
        return Importance(MappingProxyType(dict(self._tensors())), num_tokens, source)

    def _tensors(self) -> Iterator[tuple[str, Sums]]:
        for name, by_matrix in self._squares.items():
            count = self._num_matrices[name]
            squares = np.zeros((count, len(next(iter(by_matrix.values())))))
            counts = np.zeros(count)
            for matrix, total in by_matrix.items():
                # As float32, in which files keep it: a saved importance gives the same weights as a fresh one.
                squares[matrix], counts[matrix] = total.astype(np.float32), self._counts[name][matrix]
            yield name, Sums(squares, counts)
