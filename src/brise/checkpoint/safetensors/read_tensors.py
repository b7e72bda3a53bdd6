"""Takes the weights of a safetensors checkpoint by module, with the shape that the config asks for."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from brise.checkpoint.safetensors.file import TensorEntry
from brise.checkpoint.safetensors.fp8_nvfp4 import GROUP, Fp8Rows, Nvfp4Rows
from brise.checkpoint.safetensors.shards import Shards
from brise.errors import UnsupportedError, bad_value
from brise.models.weights import Array, Dense, Stored
from brise.quant.formats import PLAIN

Matrix = Dense | Stored
Order = NDArray[np.intp]

# A weight's scale: Hugging Face's FP8, Mistral's own, compressed-tensors' and ModelOpt's. All are factors.
SCALES = ("weight_scale_inv", "qscale_weight", "weight_scale")
# Scales of activations and caches: brise computes on the weights' numbers, see read_quantization.py.
IGNORED = re.compile(r".*\.(activation_scale|input_scale|input_global_scale|qscale_act|k_scale|v_scale|"
                     r"(\w+_)?activation_scale|rotary_emb\.inv_freq)")
# Of FP8 weights whose scales say nothing else: the block of compressed-tensors and of DeepSeek.
DEFAULT_BLOCK = (128, 128)


class SafetensorsTensors:
    """Remembers which tensors were taken. `block` is the config's number of rows and columns that share a scale."""

    def __init__(self, shards: Shards, block: tuple[int, int] | None) -> None:
        self._shards, self._block = shards, block or DEFAULT_BLOCK
        self._taken: set[str] = set()

    def has(self, name: str) -> bool:
        return name in self._shards.tensors

    def vector(self, module: str, size: int, part: str = "weight") -> Dense:
        tensor = self._take(f"{module}.{part}", (size,))
        return Dense(self._plain(tensor), tensor.shape, self._shards.array(tensor.name))

    def matrix(self, module: str, rows: int, cols: int, num_heads: int | None = None) -> Matrix:
        """The weight of a linear. With `num_heads`, each head's two halves of rows become neighbours."""
        order = None if num_heads is None else interleaved(rows, num_heads)
        if self.has(f"{module}.weight_packed"):
            return self._nvfp4(module, "weight_packed", rows, cols, order)
        tensor = self._shards.tensor(f"{module}.weight")
        if tensor.dtype == "U8":
            return self._nvfp4(module, "weight", rows, cols, order)
        self._take(tensor.name, (rows, cols))
        data = self._shards.array(tensor.name)
        if tensor.dtype == "F8_E4M3":
            return self._fp8(tensor.name, data, self._scale(module), order)
        return _ordered(Dense(self._plain(tensor), (rows, cols), data), order)

    def kernel(self, module: str, rows: int, shape: tuple[int, ...]) -> Dense:
        """A convolution that reads each input once, as a matrix."""
        tensor = self._take(f"{module}.weight", (rows, *shape))
        data = self._shards.array(tensor.name).reshape(rows, math.prod(shape))
        return Dense(self._plain(tensor), (rows, math.prod(shape)), data)

    def named(self, name: str, rows: int, cols: int) -> Dense:
        """A plain matrix by its whole name."""
        tensor = self._take(name, (rows, cols))
        return Dense(self._plain(tensor), (rows, cols), self._shards.array(name))

    def stacked(self, name: str, count: int, rows: int, cols: int) -> Sequence[Matrix]:
        """The matrices of a tensor (count, rows, cols), which holds all experts."""
        tensor = self._take(name, (count, rows, cols))
        data = self._shards.array(name)
        if tensor.dtype != "F8_E4M3":
            format = self._plain(tensor)
            return [Dense(format, (rows, cols), data[index]) for index in range(count)]
        scale = self._take(f"{name}_scale_inv", None)
        scales = self._shards.array(scale.name)
        if scales.size == count:
            scales = scales.reshape(count)
        elif scales.shape[:1] != (count,):
            raise bad_value(f"shape of {scale.name}", scale.shape, f"({count},) or blocks of {self._block}")
        return [self._fp8(name, data[index], scales[index:index + 1] if scales.ndim == 1 else scales[index], None)
                for index in range(count)]

    def refuse_rest(self, *ignored: str) -> None:
        """Raises for the first tensor that nothing took."""
        for name in self._shards.tensors:
            if name in self._taken or IGNORED.fullmatch(name) or (ignored and name.startswith(ignored)):
                continue
            raise UnsupportedError(f"the model has a tensor {name}, which brise does not implement")

    def _fp8(self, name: str, codes: Array, scales: Array, order: Order | None) -> Stored:
        """Scales are one, one for each row, or one for each block."""
        rows, cols = codes.shape
        block = (rows, cols) if scales.size == 1 else self._block
        if scales.size == 1:
            scales = scales.reshape(1, 1)
        elif scales.shape in ((rows,), (rows, 1)):
            scales, block = scales.reshape(rows, 1), (1, cols)
        grid = (-(-rows // block[0]), -(-cols // block[1]))
        if scales.shape != grid:
            raise bad_value(f"shape of the scales of {name}", scales.shape,
                            f"one, ({rows}, 1), or {grid}: blocks of {block[0]} x {block[1]}")
        return Stored("BF16", (rows, cols), Fp8Rows(name, codes, scales, block, order))

    def _scale(self, module: str) -> Array:
        """The tensor of scales beside a weight, as it is in the file."""
        name = next((name for name in SCALES if self.has(f"{module}.{name}")), SCALES[0])
        return self._shards.array(self._take(f"{module}.{name}", None).name)

    def _nvfp4(self, module: str, part: str, rows: int, cols: int, order: Order | None) -> Stored:
        if cols % GROUP:
            raise bad_value(f"columns of {module}", cols, f"a multiple of {GROUP}")
        packed = self._take(f"{module}.{part}", (rows, cols // 2), ("U8",))
        scales = self._take(f"{module}.weight_scale", (rows, cols // GROUP), ("F8_E4M3",))
        divides = self.has(f"{module}.weight_global_scale")
        whole = self._take(f"{module}.weight_global_scale" if divides else f"{module}.weight_scale_2", None,
                           ("F32", "F16", "BF16"))
        if math.prod(whole.shape) != 1:
            raise bad_value(f"shape of {whole.name}", whole.shape, "one number")
        array = self._shards.array
        return Stored("BF16", (rows, cols), Nvfp4Rows(packed.name, array(packed.name), array(scales.name),
                                                      array(whole.name), divides, order))

    def _take(self, name: str, shape: tuple[int, ...] | None, dtypes: Sequence[str] = ()) -> TensorEntry:
        tensor = self._shards.tensor(name)
        if shape is not None and tensor.shape != shape:
            raise bad_value(f"shape of {name}", tensor.shape, shape)
        if shape is None and tensor.dtype not in PLAIN:
            raise UnsupportedError(f"tensor {name} has the dtype {tensor.dtype}, allowed are {', '.join(PLAIN)}")
        if dtypes and tensor.dtype not in dtypes:
            raise UnsupportedError(f"tensor {name} has the dtype {tensor.dtype}, allowed are {', '.join(dtypes)}")
        self._taken.add(name)
        return tensor

    def _plain(self, tensor: TensorEntry) -> str:
        if tensor.dtype not in PLAIN:
            raise UnsupportedError(f"tensor {tensor.name} has the dtype {tensor.dtype}, allowed are "
                                   f"{', '.join(PLAIN)}, and F8_E4M3 and packed FP4 with scales where weights are")
        return tensor.dtype


def interleaved(rows: int, num_heads: int) -> Order:
    """Row numbers that make rows i and i + half of each head neighbours: Hugging Face's rope to Mistral's."""
    return np.arange(rows).reshape(num_heads, 2, -1).swapaxes(1, 2).reshape(-1)


def _ordered(weight: Dense, order: Order | None) -> Matrix:
    if order is None:
        return weight
    data = weight.data
    return Stored(weight.format, weight.shape, lambda first, last: data[order[first:last]])
