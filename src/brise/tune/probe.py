"""The memory of a training step, measured on the trainer itself: every tensor that it makes, while it lives.

A model of the real widths, but with one and two layers, few tokens, a tiny vocabulary and zeros for weights, runs
forward and backward under a dispatch mode that sees each tensor come and go. The bytes are linear in tokens and in
layers. The head, which takes only so many rows at a time, runs by itself. Needs the extra `tune`.

For a GPU the same code runs on torch's device `meta`, whose tensors have sizes and no numbers: what is there would be
in the GPU's memory, and the rest, on the CPU, is not counted. So a plan needs no GPU, and is the same with one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from brise.backends.torch import weights as torch_weights
from brise.backends.torch.weights import Handle, Packed
from brise.data.example import EncodedRow
from brise.memory.training_plan import BaseStorage
from brise.models.config import Config
from brise.models.lora import OUTPUT
from brise.models.weights import Lora, LowRank, Placed, Stack, Weight, Weights, place
from brise.quant.formats import FORMATS
from brise.quant.rows import format_of, matrix_shape
from brise.tune import adapters, losses
from brise.tune.packing import pack
from brise.tune.recipe import Recipe
from brise.tune.train import HOST, ComputeOptions, Trainer

STAND_IN = torch.device("meta")  # for a GPU
_VOCABULARY = 64
_LENGTH, _ROWS = 48, (1, 3)  # tokens a row, rows of the two microbatches


@dataclass(frozen=True)
class ActivationCosts:
    """Bytes of the activations of T tokens in L layers: fixed + layer L + (token + token_layer L) T."""

    fixed: float
    layer: float
    token: float
    token_layer: float

    def bytes(self, num_layers: int, num_tokens: int) -> int:
        """The most bytes at one time."""
        return int(self.fixed + self.layer * num_layers + (self.token + self.token_layer * num_layers) * num_tokens)


def measure(config: Config, weights: Weights, recipe: Recipe, compute: ComputeOptions,
            base_storage: BaseStorage = "dense") -> ActivationCosts:
    """The costs of a model, of which only shapes and formats are used."""
    compute = on_stand_in(compute)
    peaks: dict[tuple[int, int], int] = {}
    layer = place(weights.layers[-1], lambda name, weight: _empty(weight, compute, base_storage))
    for num_layers in (1, 2):
        small = replace(config, num_layers=num_layers, vocab_size=_VOCABULARY)
        for num_rows in _ROWS:
            tree = _tree(config, [layer] * num_layers, compute)
            peaks[num_layers, num_rows] = _peak(Trainer(small, adapters.new(tree, recipe), recipe, compute,
                                                        _rows(num_rows)))
    few, many = _ROWS
    slopes = {number: (peaks[number, many] - peaks[number, few]) / (_LENGTH * (many - few)) for number in (1, 2)}
    starts = {number: peaks[number, few] - slopes[number] * _LENGTH * few for number in (1, 2)}
    token_layer, layer_fixed = max(slopes[2] - slopes[1], 0.0), max(starts[2] - starts[1], 0.0)
    return ActivationCosts(starts[1] - layer_fixed, layer_fixed, slopes[1] - token_layer, token_layer)


def _peak(trainer: Trainer) -> int:
    """The peak of a forward and a backward pass over all rows in one microbatch; gradients exist already."""
    for parameter in trainer.trained.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    packed = pack(trainer.rows)
    return peak_of(lambda: trainer._loss(trainer._ops(trains=True), packed).backward(),  # type: ignore[no-untyped-call]
                   trainer.compute.device)


def on_stand_in(compute: ComputeOptions) -> ComputeOptions:
    """The same on the device that stands in for a GPU; a CPU stands for itself."""
    return compute if compute.device.type == "cpu" else replace(compute, device=STAND_IN)


def peak_of(work: Callable[[], object], device: torch.device = HOST) -> int:
    """The most bytes of tensors on `device` that `work` makes at one time, on one thread: it is too small for two."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with LiveTensors(device) as live:
            work()
    finally:
        torch.set_num_threads(num_threads)
    peak: int = live.peak
    return peak


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts each storage on a device from the operation that makes it until it is freed; views share one."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live, self.peak = 0, 0
        self._device = device.type
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Inputs that were not made here existed before: weights, optimizer state.
        self._note((args, kwargs), is_new=False)
        if self._device == STAND_IN.type:
            kwargs = kwargs or {}
            check_devices(func, args, kwargs)
            out = _STAND_INS.get(func.overloadpacket, _as_it_is)(func, args, kwargs)
        else:
            out = func(*args, **(kwargs or {}))
        self._note(out, is_new=True)
        return out

    def _note(self, tree: Any, *, is_new: bool) -> None:
        for tensor in _pytree.tree_leaves(tree):
            if not isinstance(tensor, torch.Tensor) or tensor.device.type != self._device:
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._known:
                continue
            self._known.add(key)
            size = storage.nbytes() if is_new else 0
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.live -= size
        self._known.discard(key)


def check_devices(func: Any, args: Any, kwargs: Any) -> None:
    """Refuses an operation on tensors of two devices, as CUDA does; `meta` alone would let some pass."""
    given = [tensor for tensor in _pytree.tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)]
    devices = {tensor.device.type for tensor in given if tensor.dim()}
    if len(devices) > 1 and func.overloadpacket not in _BETWEEN_DEVICES:
        raise RuntimeError(f"{func} got tensors of {', '.join(sorted(devices))}")


def _as_it_is(func: Any, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _to_device(func: Any, args: Any, kwargs: Any) -> Any:
    """A copy to the host has the shape of what has no numbers to copy."""
    device = kwargs.get("device")
    if device is None or device.type == STAND_IN.type or args[0].device.type != STAND_IN.type:
        return func(*args, **kwargs)
    return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device=device)


def _copied(func: Any, args: Any, kwargs: Any) -> Any:
    is_to_host = args[0].device.type != STAND_IN.type and args[1].device.type == STAND_IN.type
    return args[0] if is_to_host else func(*args, **kwargs)


def _places(func: Any, args: Any, kwargs: Any) -> Any:
    """All places of x: as many as there can be, where their number depends on what x is."""
    if args[0].device.type != STAND_IN.type:
        return func(*args, **kwargs)
    return torch.empty(args[0].numel(), args[0].dim(), dtype=torch.int64, device=STAND_IN)


_BETWEEN_DEVICES = frozenset((torch.ops.aten._to_copy, torch.ops.aten.copy_))
_STAND_INS: Mapping[Any, Callable[[Any, Any, Any], Any]] = MappingProxyType({
    torch.ops.aten._to_copy: _to_device, torch.ops.aten.copy_: _copied, torch.ops.aten.nonzero: _places})


def _tree(config: Config, layers: Iterable[Any], compute: ComputeOptions) -> Weights:
    """A model of these layers, in which each weight is its own object, so that each gets its own adapter."""
    table = Placed((_VOCABULARY, config.width), torch.zeros(_VOCABULARY, config.width, dtype=compute.dtype,
                                                            device=compute.device))
    norm = Placed((config.width,), torch.zeros(config.width, device=compute.device))

    def again(name: str, weight: Weight) -> Weight:
        assert isinstance(weight, Placed)
        return replace(weight)

    return Weights(table, tuple(place(layer, again) for layer in layers), norm, table)


def weights_bytes(weights: Weights, recipe: Recipe, compute: ComputeOptions, base_storage: BaseStorage,
                  only: Callable[[str], bool] | None = None) -> int:
    """Bytes of all weights, or of `only` some, once they are placed; in float32 if all of them are trained."""
    kind = torch.float32 if recipe.method == "full" else compute.dtype
    total = 0

    def put(name: str, weight: Weight) -> Weight:
        nonlocal total
        if only is not None and not only(name):
            return weight
        empty = _empty(weight, replace(compute, device=torch.device("meta"), dtype=kind), base_storage)
        total += sum(_tensor(part).nbytes for part in _parts(empty.handle))
        return empty

    place(weights, put)
    return total


def head_bytes(weights: Weights, recipe: Recipe, compute: ComputeOptions, base_storage: BaseStorage) -> int:
    """Bytes that the loss adds, for the rows that it takes at a time. A head of zeros takes no memory."""
    compute = on_stand_in(compute)
    vocab_size, width = weights.output.shape
    is_on_host = "ends" in compute.offload
    is_whole = not is_on_host and isinstance(_handle(format_of(weights.output), (0, width), compute, base_storage),
                                             torch.Tensor)
    num_rows = max(1, losses.LOGITS // vocab_size)
    if not is_whole:  # parts of the vocabulary, for all rows; on the stand-in, or it would really compute them
        compute, num_rows = replace(compute, device=STAND_IN), compute.max_tokens
        if not recipe.takes(OUTPUT):  # all parts are alike
            vocab_size = min(vocab_size, 3 * (torch_weights.BLOCK_NUMBERS // width + 1))
    device = compute.device
    home = replace(compute, device=HOST) if is_on_host else compute
    head = Placed((vocab_size, width), _handle(format_of(weights.output), (vocab_size, width), home, base_storage))
    if recipe.method == "full":
        head = replace(head, handle=torch_weights.tensor_of(head).float().requires_grad_())
    adapted: Weight = head
    if recipe.method != "full" and recipe.takes(OUTPUT):
        a, b = (torch.zeros(shape, device=device, requires_grad=True)
                for shape in ((recipe.rank, width), (vocab_size, recipe.rank)))
        adapted = Lora(head, (LowRank(a, b, recipe.scale),))
    hidden = torch.zeros(num_rows, width, dtype=compute.dtype, device=device, requires_grad=True)
    targets = torch.zeros(num_rows, dtype=torch.int64, device=device)
    return peak_of(lambda: losses.cross_entropy(hidden, adapted, targets).backward(),  # type: ignore[no-untyped-call]
                   device)


def _empty(weight: Weight, compute: ComputeOptions, base_storage: BaseStorage) -> Placed:
    """A weight as it would be placed, of zeros: pages that nothing has written to take no memory."""
    if isinstance(weight, Stack):
        return Placed(weight.shape, tuple(_handle(matrix.format, matrix.shape, compute, base_storage)
                                          for matrix in weight.matrices))
    return Placed(weight.shape, _handle(format_of(weight), weight.shape, compute, base_storage))


def _handle(format: str, shape: tuple[int, ...], compute: ComputeOptions, base_storage: BaseStorage) -> Handle:
    if base_storage == "packed" and len(shape) > 1 and not FORMATS[format].is_plain:
        rows, cols = matrix_shape(shape)
        data = torch.zeros(rows, FORMATS[format].row_bytes(cols), dtype=torch.uint8, device=compute.device)
        return Packed(format, cols, data)
    halves = {"BF16": torch.bfloat16, "F16": torch.float16} if base_storage == "packed" else {}
    kind = torch.float32 if len(shape) == 1 else halves.get(format, compute.dtype)
    return torch.zeros(shape, dtype=kind, device=compute.device)


def _parts(handle: Handle | tuple[Handle, ...]) -> tuple[Handle, ...]:
    return handle if isinstance(handle, tuple) else (handle,)


def _tensor(handle: Handle) -> torch.Tensor:
    return handle.data if isinstance(handle, Packed) else handle


def _rows(count: int) -> list[EncodedRow]:
    """Rows with different beginnings, whose second half is learned."""
    learned = np.arange(_LENGTH) >= _LENGTH // 2
    return [EncodedRow(((np.arange(_LENGTH) + 7 * index) % _VOCABULARY).astype(np.int32), learned, f"probe:{index}")
            for index in range(count)]
