"""The importance of each column of a weight: the mean square of its input over calibration text.

An error in a column changes the output in proportion to the column's input; quantisers therefore spend their precision
by these numbers (the importance matrix of llama.cpp).
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
    """Of one tensor: sums of squares (M, columns) of the inputs of its M matrices, and their number of rows (M,)."""

    squares: NDArray[np.float64]
    counts: NDArray[np.float64]


@dataclass(frozen=True)
class Importance:
    """The result of a calibration by GGUF tensor name, over `num_tokens` tokens."""

    sums: Mapping[str, Sums]
    num_tokens: int
    source: str

    def columns(self, name: str, matrix: int, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
        """Mean squares of the columns of one matrix of a tensor; None where they are unknown.

        They are unknown for embeddings, which have no input, and for experts that no token reached. A column that was
        always zero gets a millionth of the mean, so that its weights still count a little.
        """
        sums = self.sums.get(name)
        if sums is None:
            return None
        num_matrices, cols = (shape[0] if len(shape) == 3 else 1), shape[-1]
        if sums.squares.shape != (num_matrices, cols):
            raise CheckpointError(
                f"the importance of {name} has the shape {sums.squares.shape}, the tensor {num_matrices} matrices "
                f"of {cols} columns", field=name, value=sums.squares.shape,
                limit=(num_matrices, cols), hint="it was made for another model; calibrate again")
        if sums.counts[matrix] == 0 or not sums.squares[matrix].any():
            return None
        mean = sums.squares[matrix] / sums.counts[matrix]
        return np.asarray(np.maximum(mean, 1e-6 * mean.mean()), np.float32)


class Collector:
    """Sums up inputs while a model runs over calibration text."""

    def __init__(self) -> None:
        self._squares: dict[str, dict[int, Array]] = {}
        self._counts: dict[str, dict[int, int]] = {}
        self._num_matrices: dict[str, int] = {}

    def add_inputs(self, name: str, x: Array, matrix: int = 0, num_matrices: int = 1) -> None:
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
