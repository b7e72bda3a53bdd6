"""Gives tensors of a GGUF file as weights, each by its path and with the shape that the config asks for."""

from __future__ import annotations

from brise.checkpoint.gguf.file import GgufFile, GgufTensor
from brise.checkpoint.gguf.names import tensor_name
from brise.checkpoint.split_latent import split
from brise.errors import CheckpointError, UnsupportedError, bad_value
from brise.models.config import Experts, Latent
from brise.models.families import FAMILIES, JOINED
from brise.models.weights import Array, Dense, Quant, Stack
from brise.quant.formats import FORMATS


class GgufTensors:
    """Views over the file, and which of them were taken (checkpoint/read_decoder.py, TensorSource)."""

    def __init__(self, gguf: GgufFile, family: str) -> None:
        self._gguf, self._family = gguf, family
        self._taken: set[str] = set()

    def has(self, path: str) -> bool:
        tail = path.split(".", 2)[-1]
        if tail in JOINED and tail not in FAMILIES[self._family].joined("gguf"):
            return False
        return tensor_name(path, self._family) in self._gguf.tensors

    def vector(self, path: str, size: int) -> Dense:
        tensor = self._take(tensor_name(path, self._family), (size,))
        if not FORMATS[tensor.format].is_plain:
            raise UnsupportedError(
                f"tensor {tensor.name} has the format {tensor.format}, allowed are F32, F16 and BF16")
        return Dense(tensor.format, tensor.shape, self._gguf.array(tensor.name))

    def matrix(self, path: str, rows: int, cols: int, num_heads: int | None = None) -> Dense | Quant:
        """Rope pairs lie in the file as in memory, whatever `num_heads` says."""
        tensor = self._take(tensor_name(path, self._family), (rows, cols))
        return matrix_of(tensor.format, (rows, cols), self._gguf.array(tensor.name))

    def key_value(self, path: str, latent: Latent, num_heads: int) -> tuple[Stack, Stack]:
        """Newer files have the keys' half transposed already, older ones both halves in one matrix."""
        if not self.has(f"{path}.wkv_b"):
            return (self._stack(f"{path}.wk_b", num_heads, latent.rank, latent.nope_dim),
                    self._stack(f"{path}.wv_b", num_heads, latent.value_dim, latent.rank))
        rows = num_heads * (latent.nope_dim + latent.value_dim)
        return split(self.matrix(f"{path}.wkv_b", rows, latent.rank), num_heads, latent.nope_dim, latent.value_dim)

    def experts(self, path: str, experts: Experts, width: int) -> tuple[Stack, Stack, Stack]:
        count, inner = experts.count, experts.width
        if not self.has(f"{path}.experts.w1") and self._of_expert(f"{path}.w1", 0) in self._gguf.tensors:
            return (self._singles(f"{path}.w1", count, inner, width), self._singles(f"{path}.w2", count, width, inner),
                    self._singles(f"{path}.w3", count, inner, width))
        if self.has(f"{path}.experts.w1_w3"):
            gates, ups = self._halves(f"{path}.experts.w1_w3", count, inner, width)
            return gates, self._stack(f"{path}.experts.w2", count, width, inner), ups
        return (self._stack(f"{path}.experts.w1", count, inner, width),
                self._stack(f"{path}.experts.w2", count, width, inner),
                self._stack(f"{path}.experts.w3", count, inner, width))

    def refuse_rest(self, *ignored: str) -> None:
        for name in self._gguf.tensors:
            if name not in self._taken and not name.startswith(ignored):
                raise UnsupportedError(f"the model has a tensor {name}, which brise does not implement")

    def _of_expert(self, path: str, index: int) -> str:
        """What files of 2023 and early 2024 call a matrix of one expert: blk.N.ffn_gate.M.weight."""
        return f"{tensor_name(path).removesuffix('.weight')}.{index}.weight"

    def _singles(self, path: str, count: int, rows: int, cols: int) -> Stack:
        """The matrices of all experts, each a tensor of its own."""
        tensors = [self._take(self._of_expert(path, index), (rows, cols)) for index in range(count)]
        return Stack(tuple(matrix_of(tensor.format, (rows, cols), self._gguf.array(tensor.name)) for tensor in tensors))

    def _stack(self, path: str, count: int, rows: int, cols: int) -> Stack:
        """The matrices of a tensor of three dims: slices of it, nothing is copied."""
        return self._slices(path, count, rows, cols, 1)[0]

    def _halves(self, path: str, count: int, rows: int, cols: int) -> tuple[Stack, Stack]:
        """The first and the second half of each matrix of a tensor."""
        first, second = self._slices(path, count, rows, cols, 2)
        return first, second

    def _slices(self, path: str, count: int, rows: int, cols: int, num_slices: int) -> list[Stack]:
        tensor = self._take(tensor_name(path, self._family), (count, num_slices * rows, cols))
        data = self._gguf.array(tensor.name)
        data = data.reshape(count * num_slices * rows, data.shape[-1])
        return [Stack(tuple(matrix_of(tensor.format, (rows, cols), data[start * rows:(start + 1) * rows])
                            for start in range(part, count * num_slices, num_slices))) for part in range(num_slices)]

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


def matrix_of(format: str, shape: tuple[int, int], data: Array) -> Dense | Quant:
    """Numbers or blocks of a file as a weight."""
    return Dense(format, shape, data) if FORMATS[format].is_plain else Quant(format, shape, data)
