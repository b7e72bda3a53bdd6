"""Tensors of a GGUF file as weights: each taken by name with the shape that the config asks for, none overlooked."""

from __future__ import annotations

from brise.checkpoint.gguf.file import GgufFile, GgufTensor
from brise.errors import CheckpointError, UnsupportedError, bad_value
from brise.models.weights import Array, Dense, Quant, Stack
from brise.quant.formats import FORMATS


class GgufTensors:
    """Views over the file, and which of them were taken."""

    def __init__(self, gguf: GgufFile) -> None:
        self._gguf = gguf
        self._taken: set[str] = set()

    def has(self, name: str) -> bool:
        return name in self._gguf.tensors

    def matrix(self, name: str, rows: int, cols: int) -> Dense | Quant:
        return _matrix(self._take(name, (rows, cols)).format, (rows, cols), self._gguf.array(name))

    def stack(self, name: str, count: int, rows: int, cols: int) -> Stack:
        """The matrices of a tensor of three dims: slices of it, nothing is copied."""
        tensor = self._take(name, (count, rows, cols))
        data = self._gguf.array(name)
        data = data.reshape(count * rows, data.shape[-1])
        return Stack(tuple(_matrix(tensor.format, (rows, cols), data[index * rows:(index + 1) * rows])
                           for index in range(count)))

    def vector(self, name: str, size: int) -> Dense:
        tensor = self._take(name, (size,))
        if not FORMATS[tensor.format].is_plain:
            raise UnsupportedError(
                f"tensor {name} has the format {tensor.format}, allowed are F32, F16 and BF16")
        return Dense(tensor.format, tensor.shape, self._gguf.array(name))

    def refuse_rest(self, *ignored: str) -> None:
        for name in self._gguf.tensors:
            if name not in self._taken and not name.startswith(ignored):
                raise UnsupportedError(f"the model has a tensor {name}, which brise does not implement")

    def _take(self, name: str, shape: tuple[int, ...]) -> GgufTensor:
        if name not in self._gguf.tensors:
            raise missing(name)
        tensor = self._gguf.tensors[name]
        if tensor.shape != shape:
            raise bad_value(f"shape of {name}", tensor.shape, shape)
        self._taken.add(name)
        return tensor


def missing(name: str) -> CheckpointError:
    """The error for a tensor that is not in the file."""
    return CheckpointError(f"the tensor {name} is missing", field=name, limit="a tensor of this name")


def _matrix(format: str, shape: tuple[int, int], data: Array) -> Dense | Quant:
    return Dense(format, shape, data) if FORMATS[format].is_plain else Quant(format, shape, data)
